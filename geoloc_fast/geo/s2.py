"""S2 cells, vectorised: the quarters of quarters of a cube's six faces on the sphere, numbered along a Hilbert curve.

An id is uint64: three bits of face, two for every level, a one that marks the end. Ids of one level sort along the
curve, and all below a cell lie between `id - lowest bit` and `id + lowest bit`. Level 15 is about 280 m across, 16 half
of that. Every function takes arrays (or scalars) and gives arrays of the broadcast shape; positions are degrees in
float64. The numbers are those of the S2 library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geoloc_fast.geo.regions import Box, Circle, Region
from geoloc_fast.geo.sphere import EARTH_RADIUS_M

__all__ = [
    "MAX_LEVEL",
    "area_m2",
    "center",
    "children",
    "corners",
    "cover",
    "edge_m",
    "from_lat_lon",
    "from_token",
    "level",
    "parent",
    "stencil",
    "token",
]

MAX_LEVEL = 30
_SIZE = 1 << MAX_LEVEL  # leaf cells along a face
_ONE = np.uint64(1)
_STEP = 1 << 17  # points at a time: their intermediate arrays stay in the cache
# Where a quarter lies, by its position on the curve, for each of the curve's four turns; and the turn within it.
_POS_TO_IJ = ((0, 1, 3, 2), (0, 2, 3, 1), (3, 2, 0, 1), (3, 1, 0, 2))
_TURNS = (1, 0, 0, 3)


def _curve() -> tuple[np.ndarray, np.ndarray]:
    """Four levels at once: (4 bits of i, 4 of j, turn) to (8 bits of position, turn), and back."""
    there, back = np.zeros(1024, np.uint64), np.zeros(1024, np.uint64)
    for first in range(4):
        for position in range(256):
            i = j = 0
            turn = first
            for shift in (6, 4, 2, 0):
                quarter = (position >> shift) & 3
                ij = _POS_TO_IJ[turn][quarter]
                i, j, turn = 2 * i + (ij >> 1), 2 * j + (ij & 1), turn ^ _TURNS[quarter]
            there[(i << 6) + (j << 2) + first] = (position << 2) + turn
            back[(position << 2) + first] = (i << 6) + (j << 2) + turn
    return there, back


_TO_POSITION, _TO_IJ = _curve()


# Faces, and the coordinates on them.


def _to_xyz(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    north, east = lat * (np.pi / 180), lon * (np.pi / 180)
    level_part = np.cos(north)
    return np.stack([np.cos(east) * level_part, np.sin(east) * level_part, np.sin(north)])


def _to_lat_lon(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = xyz
    return np.arctan2(z, np.sqrt(x * x + y * y)) * (180 / np.pi), np.arctan2(y, x) * (180 / np.pi)


def _to_face(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(face, u, v), each coordinate in [-1, 1]."""
    x, y, z = xyz
    size = np.abs(xyz)
    axis = np.where(size[0] > size[1], np.where(size[0] > size[2], 0, 2), np.where(size[1] > size[2], 1, 2))
    largest = np.choose(axis, xyz)
    face = axis + 3 * (largest < 0)
    u = np.choose(face, [y, -x, -x, z, z, -y]) / largest
    v = np.choose(face, [z, z, -y, y, -x, -x]) / largest
    return face, u, v


def _from_face(face: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    one = np.ones_like(u)
    x = np.choose(face, [one, -u, -u, -one, v, v])
    y = np.choose(face, [u, one, -v, -v, -one, u])
    z = np.choose(face, [v, v, one, -u, -u, -one])
    return np.stack([x, y, z])


def _uv_to_st(u: np.ndarray) -> np.ndarray:
    """The quadratic that makes cells of one level more alike; st is in [0, 1]."""
    root = np.sqrt(1 + 3 * np.abs(u))
    return np.where(u >= 0, 0.5 * root, 1 - 0.5 * root)


def _st_to_uv(s: np.ndarray) -> np.ndarray:
    return np.where(s >= 0.5, (1 / 3) * (4 * s * s - 1), (1 / 3) * (1 - 4 * (1 - s) * (1 - s)))


def _st_to_ij(s: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(_SIZE * s - 0.5), 0, _SIZE - 1).astype(np.int64)


def _id_of(face: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The leaf cell at (i, j)."""
    turn = face.astype(np.uint64) & _ONE
    i, j = i.astype(np.uint64), j.astype(np.uint64)
    found = np.zeros_like(i)
    for shift in range(28, -1, -4):
        at = (((i >> np.uint64(shift)) & np.uint64(15)) << np.uint64(6)) + turn
        at += ((j >> np.uint64(shift)) & np.uint64(15)) << np.uint64(2)
        entry = _TO_POSITION[at]
        found = (found << np.uint64(8)) | (entry >> np.uint64(2))
        turn = entry & np.uint64(3)
    # 30 levels are 7.5 tables: what the first leaves empty is the face's place.
    return (((face.astype(np.uint64) << np.uint64(60)) | found) << _ONE) | _ONE


def _place_of(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(face, i, j) of the leaf at the end of the curve within each cell; its upper bits are the cell's own."""
    face = ids >> np.uint64(61)
    turn = face & _ONE
    i, j = np.zeros_like(ids), np.zeros_like(ids)
    for k in range(7, -1, -1):
        mask = np.uint64(15 if k == 7 else 255)  # of the first table only the lower half is used
        at = (((ids >> np.uint64(8 * k + 1)) & mask) << np.uint64(2)) + turn
        entry = _TO_IJ[at]
        i = (i << np.uint64(4)) + (entry >> np.uint64(6))
        j = (j << np.uint64(4)) + ((entry >> np.uint64(2)) & np.uint64(15))
        turn = entry & np.uint64(3)
    return face.astype(np.int64), i.astype(np.int64), j.astype(np.int64)


# Ids.


def from_lat_lon(lat: Any, lon: Any, level: int) -> np.ndarray:
    """The cell of a level that holds each point: uint64 [...]."""
    _check_level(level)
    lat, lon = _positions(lat, lon)
    ids = np.empty(lat.shape, np.uint64)
    flat_lat, flat_lon, flat = lat.reshape(-1), lon.reshape(-1), ids.reshape(-1)
    for start in range(0, flat.size, _STEP):
        part = np.s_[start : start + _STEP]
        face, u, v = _to_face(_to_xyz(flat_lat[part], flat_lon[part]))
        flat[part] = _ancestor(_id_of(face, _st_to_ij(_uv_to_st(u)), _st_to_ij(_uv_to_st(v))), level)
    return ids


def level(ids: Any) -> np.ndarray:
    """Level of each cell: int64 [...], 0 to 30."""
    ids = _cells(ids)
    # A power of two is exact in float64, and its exponent is its bit.
    return MAX_LEVEL - (np.frexp(_lowest_bit(ids).astype(np.float64))[1].astype(np.int64) - 1) // 2


def parent(ids: Any, level: int) -> np.ndarray:
    """The ancestor at a level of each cell, itself at its own level: uint64 [...]."""
    _check_level(level)
    ids = _cells(ids)
    if ids.size and _lowest_bit(ids).max() > _bit_of(level):
        raise ValueError(f"level: expected at most the cells' own, got {level} for cells above it")
    return _ancestor(ids, level)


def children(ids: Any) -> np.ndarray:
    """The four cells below each, in the curve's order: uint64 [..., 4]."""
    ids = _cells(ids)
    bit = _lowest_bit(ids)
    if ids.size and bit.min() == 1:
        raise ValueError(f"ids: expected cells above level {MAX_LEVEL}, got a leaf, which has no children")
    first = ids - bit + (bit >> np.uint64(2))
    return first[..., None] + (bit >> _ONE)[..., None] * np.arange(4, dtype=np.uint64)


def token(cell: Any) -> str:
    """One id as people write it: hexadecimal without the zeros at the end."""
    return f"{int(_cells(cell)):016x}".rstrip("0")


def from_token(token: str) -> np.uint64:
    """The cell of a token, such as "479e75": the hexadecimal digits of its id, without trailing zeros."""
    try:
        if not 1 <= len(token) <= 16:
            raise ValueError
        return np.uint64(_cells(np.uint64(int(token.ljust(16, "0"), 16))))
    except ValueError:
        raise ValueError(f"token: expected the hexadecimal digits of an S2 cell, got {token!r}") from None


def _ancestor(ids: np.ndarray, level: int) -> np.ndarray:
    bit = _bit_of(level)
    return (ids & ~(bit * np.uint64(2) - _ONE)) | bit


def _bit_of(level: int) -> np.uint64:
    return np.uint64(1 << (2 * (MAX_LEVEL - level)))


def _lowest_bit(ids: np.ndarray) -> np.ndarray:
    return ids & (~ids + _ONE)


# Shapes.


def center(ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(lat, lon) of each cell's centre: float64 [...], degrees."""
    ids = _cells(ids)
    lat, lon = np.empty(ids.shape), np.empty(ids.shape)
    flat, flat_lat, flat_lon = ids.reshape(-1), lat.reshape(-1), lon.reshape(-1)
    for start in range(0, flat.size, _STEP):
        part = np.s_[start : start + _STEP]
        face, s, t, half = _square(flat[part])
        flat_lat[part], flat_lon[part] = _to_lat_lon(_from_face(face, _st_to_uv(s + half), _st_to_uv(t + half)))
    return lat, lon


def corners(ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """(lat, lon) of each cell's four corners, counterclockwise: float64 [..., 4]."""
    return _to_lat_lon(_corner_points(_cells(ids)))


def edge_m(ids: Any) -> np.ndarray:
    """Length of each cell's four edges in metres, the first from corner 0 to corner 1: float64 [..., 4]."""
    points = _unit(_corner_points(_cells(ids)))
    chord = np.linalg.norm(np.roll(points, -1, axis=-1) - points, axis=0)
    return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(chord / 2, 1.0))


def area_m2(ids: Any) -> np.ndarray:
    """Area of each cell: float64 [...], square metres."""
    a, b, c, d = np.moveaxis(_unit(_corner_points(_cells(ids))), -1, 0)
    return (_excess(a, b, c) + _excess(a, c, d)) * EARTH_RADIUS_M**2


def _square(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(face, s, t, half): each cell's least corner in st, and half its side."""
    face, i, j = _place_of(ids)
    size = np.int64(1) << (MAX_LEVEL - level(ids))
    return face, (i & -size) / _SIZE, (j & -size) / _SIZE, size / (2 * _SIZE)


def _corner_points(ids: np.ndarray) -> np.ndarray:
    """Not of unit length: [3, ..., 4]."""
    face, s, t, half = _square(ids)
    s, t = s[..., None] + 2 * half[..., None] * (0, 1, 1, 0), t[..., None] + 2 * half[..., None] * (0, 0, 1, 1)
    return _from_face(np.broadcast_to(face[..., None], s.shape), _st_to_uv(s), _st_to_uv(t))


def _unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=0)


def _excess(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Area of triangles on the unit sphere. Edges from a corner keep the digits of a small one."""
    volume = np.abs((np.cross(b - a, c - a, axis=0) * a).sum(axis=0))
    ab, bc, ca = ((p * q).sum(axis=0) for p, q in ((a, b), (b, c), (c, a)))
    return 2 * np.arctan2(volume, 1 + ab + bc + ca)


# Around a point.


def stencil(lat: Any, lon: Any, level: int) -> tuple[np.ndarray, np.ndarray]:
    """The four cells whose centres surround each point, and what each of them weighs there.

    Weights are bilinear in the coordinates of the cube's face, sum to 1 and do not jump from cell to cell, nor from
    face to face. At a cube's corner only three cells meet: the fourth has id 0 and weight 0, and the others share its
    part.

    Returns:
        ids: uint64 [..., 4], the first the point's own.
        weights: float64 [..., 4].
    """
    _check_level(level)
    lat, lon = _positions(lat, lon)
    shape = lat.shape
    face, u, v = _to_face(_to_xyz(lat.reshape(-1), lon.reshape(-1)))
    size = 1 << level
    near: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for coordinate in (_uv_to_st(u), _uv_to_st(v)):
        at = _st_to_ij(coordinate) >> (MAX_LEVEL - level)
        within = np.clip(coordinate * size - at, 0.0, 1.0)
        near.append((at, at + np.where(within >= 0.5, 1, -1), np.abs(within - 0.5)))
    (i, beside_i, weight_i), (j, beside_j, weight_j) = near
    cells = [_cell_near(face, x, y, level) for x, y in ((i, j), (beside_i, j), (i, beside_j), (beside_i, beside_j))]
    outside = (beside_i < 0) | (beside_i >= size)
    none = outside & ((beside_j < 0) | (beside_j >= size))
    cells[3] = np.where(none, np.uint64(0), cells[3])
    weights = [(1 - weight_i) * (1 - weight_j), weight_i * (1 - weight_j), (1 - weight_i) * weight_j]
    weights.append(np.where(none, 0.0, weight_i * weight_j))
    stacked = np.stack(weights, axis=-1)
    stacked /= stacked.sum(axis=-1, keepdims=True)
    return np.stack(cells, axis=-1).reshape(*shape, 4), stacked.reshape(*shape, 4)


def _cell_near(face: np.ndarray, i: np.ndarray, j: np.ndarray, level: int) -> np.ndarray:
    """The cell at (i, j) of a level, which may lie one step over the border of the face."""
    size = 1 << level
    over = (i < 0) | (i >= size) | (j < 0) | (j >= size)
    leaf = np.int64(1) << (MAX_LEVEL - level)
    ids = _id_of(face, np.clip(i, 0, size - 1) * leaf, np.clip(j, 0, size - 1) * leaf)
    if over.any():
        # A hair outside the face, where the next one begins: along the border both have the same coordinates.
        outside = 1 + 1e-15
        s, t = (((x[over] + 0.5) / size) for x in (i, j))
        u, v = (np.where(x < 0, -outside, np.where(x > 1, outside, _st_to_uv(x))) for x in (s, t))
        face_over, u, v = _to_face(_from_face(face[over], u, v))
        ids[over] = _id_of(face_over, _st_to_ij(_uv_to_st(u)), _st_to_ij(_uv_to_st(v)))
    return _ancestor(ids, level)


# Parts of the Earth.


def cover(region: Region, level: int) -> np.ndarray:
    """All cells of a level that touch a region, in ascending order: uint64 [n].

    For a circle just these. For a box also cells outside its four corners whose extent in degrees reaches into it.
    """
    _check_level(level)
    touches = _touches_box if isinstance(region, Box) else _touches_circle
    ids = ((np.arange(6, dtype=np.uint64) << np.uint64(61)) | _bit_of(0)).astype(np.uint64)
    ids = ids[touches(ids, region)]  # type: ignore[arg-type]
    for _ in range(level):
        ids = children(ids).reshape(-1)
        ids = ids[touches(ids, region)]  # type: ignore[arg-type]
    return ids


def _touches_circle(ids: np.ndarray, circle: Circle) -> np.ndarray:
    point = _to_xyz(np.float64(circle.lat), np.float64(circle.lon))
    points = _unit(_corner_points(ids))
    ends = np.roll(points, -1, axis=-1)
    normal = np.cross(points, ends, axis=0)
    beside = np.tensordot(point, normal, axes=1)  # [n, 4], positive inside the edge
    inside = (beside >= 0).all(axis=-1)
    nearest = np.linalg.norm(points - point[:, None, None], axis=0)  # chords
    # An edge is nearer than its ends where the point's foot on its great circle lies between them.
    foot = point[:, None, None] - normal * (beside / (normal**2).sum(axis=0))
    between = (np.cross(normal, points, axis=0) * foot).sum(axis=0) > 0
    between &= (np.cross(normal, ends, axis=0) * foot).sum(axis=0) < 0
    sine = np.abs(beside) / np.linalg.norm(normal, axis=0)
    to_edge = 2 * np.sin(np.arcsin(np.minimum(sine, 1.0)) / 2)
    nearest = np.where(between, np.minimum(nearest, to_edge), nearest).min(axis=-1)
    reach = 2 * np.sin(min(circle.metres / EARTH_RADIUS_M, np.pi) / 2)
    return inside | (nearest <= reach + 1e-15)


def _touches_box(ids: np.ndarray, box: Box) -> np.ndarray:
    points = _unit(_corner_points(ids))
    ends = np.roll(points, -1, axis=-1)
    lat, lon = _to_lat_lon(points)
    # A great circle bulges away from the equator: its highest and lowest point, where an edge has it.
    normal = np.cross(points, ends, axis=0)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-300)
    top = np.stack([-normal[0] * normal[2], -normal[1] * normal[2], 1 - normal[2] ** 2])
    bulges = [
        ((np.cross(normal, points, axis=0) * sign * top).sum(axis=0) > 0)
        & ((np.cross(normal, ends, axis=0) * sign * top).sum(axis=0) < 0)
        for sign in (1, -1)
    ]
    highest = np.degrees(np.arccos(np.minimum(np.abs(normal[2]), 1.0)))
    north = np.maximum(lat, np.where(bulges[0], highest, -90)).max(axis=-1)
    south = np.minimum(lat, np.where(bulges[1], -highest, 90)).min(axis=-1)
    face, s, t, half = _square(ids)
    polar = (face % 3 == 2) & (s <= 0.5) & (s + 2 * half >= 0.5) & (t <= 0.5) & (t + 2 * half >= 0.5)
    north, south = np.where(polar & (face == 2), 90.0, north), np.where(polar & (face == 5), -90.0, south)
    turn = (lon - lon[..., :1] + 180) % 360 - 180  # from the first corner
    west, east = lon[..., 0] + turn.min(axis=-1), lon[..., 0] + turn.max(axis=-1)
    across = (box.east - box.west) % 360 if box.east != box.west else 0.0
    if box.east - box.west == 360:
        across = 360.0
    apart = (west - box.west) % 360  # how far east of the box's border the cell begins
    near = polar | (apart <= across + 1e-12) | (apart + (east - west) >= 360 - 1e-12)
    return near & (north >= box.south - 1e-12) & (south <= box.north + 1e-12)


# What is refused.


def _check_level(level: int) -> None:
    if isinstance(level, bool) or not isinstance(level, int | np.integer) or not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"level: expected an integer from 0 to {MAX_LEVEL}, got {level!r}")


def _positions(lat: Any, lon: Any) -> tuple[np.ndarray, np.ndarray]:
    lat, lon = np.broadcast_arrays(np.asarray(lat, np.float64), np.asarray(lon, np.float64))
    for name, value, limit in (("lat", lat, 90.0), ("lon", lon, 180.0)):
        wrong = ~(np.abs(value) <= limit)  # NaN too
        if wrong.any():
            raise ValueError(f"{name}: expected degrees from {-limit:g} to {limit:g}, got {value[wrong].flat[0]!r}")
    return lat, lon


def _cells(ids: Any) -> np.ndarray:
    array = np.asarray(ids)
    if array.dtype != np.uint64:
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"ids: expected uint64, got {array.dtype}")
        array = array.astype(np.uint64)  # of int64 the same bits, as tables keep them
    odd_bits = np.uint64(0x1555555555555555)
    wrong = (array >> np.uint64(61) > 5) | (_lowest_bit(array) & odd_bits == 0)
    if wrong.any():
        raise ValueError(f"ids: expected S2 cells, got {int(array[wrong].flat[0]):#x}")
    return array
