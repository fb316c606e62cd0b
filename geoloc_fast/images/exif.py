"""Read position, heading, date and field of view from the EXIF block of a photo.

EXIF is written by any camera, editor or attacker. Nothing in it raises: a field that is absent, malformed or
ambiguous is None, and `reasons` says why. A heading measured from magnetic north is never given as one from true north.
"""

from __future__ import annotations

import datetime
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PhotoExif", "orientation_of", "parse_exif", "time_of"]

_MAX_ENTRIES = 512
_MAX_VALUES = 64
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
_FILM_DIAGONAL_MM = math.hypot(36, 24)

ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
DATE_ORIGINAL, DATE_DIGITIZED, WIDTH, HEIGHT = 0x9003, 0x9004, 0xA002, 0xA003
OFFSET_ORIGINAL, PART_ORIGINAL = 0x9011, 0x9291
DIGITAL_ZOOM, FOCAL_35MM = 0xA404, 0xA405
LAT_REF, LAT, LON_REF, LON, STATUS, DIRECTION_REF, DIRECTION, DATUM, GPS_DATE = 1, 2, 3, 4, 9, 16, 17, 18, 29


@dataclass(frozen=True)
class PhotoExif:
    """Attributes:
    lat, lon: degrees, WGS84; both or neither.
    heading_deg: of the photo's centre, from true north.
    heading_magnetic_deg: the same from magnetic north, where that is what the camera wrote. Not a true heading:
        declination reaches tens of degrees.
    date: when the photo was taken.
    fov_deg: horizontal field of view of the upright image.
    reasons: why fields are missing, where the block has something to say of them.
    """

    lat: float | None = None
    lon: float | None = None
    heading_deg: float | None = None
    heading_magnetic_deg: float | None = None
    date: datetime.date | None = None
    fov_deg: float | None = None
    reasons: tuple[str, ...] = ()


class _Bad(Exception):
    """A field that cannot be used; the message becomes a reason."""


def parse_exif(block: bytes, size: tuple[int, int] | None = None) -> PhotoExif:
    """Reads an EXIF block (a TIFF structure, with or without the leading `Exif\\0\\0`). Never raises.

    Args:
        size: (height, width) of the upright image; without it the field of view stays unknown.
    """
    reasons: list[str] = []
    if not block:
        return PhotoExif()
    try:
        tiff = _Tiff(block)
        main = tiff.directory(tiff.first)
    except _Bad as bad:
        return PhotoExif(reasons=(f"EXIF: {bad}",))

    def directory(tag: int, name: str) -> dict[int, Any]:
        try:
            return tiff.directory(int(_one(main[tag]))) if tag in main else {}
        except (_Bad, ValueError) as bad:
            reasons.append(f"{name}: {bad}")
            return {}

    def field(name: str, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except _Bad as bad:
            reasons.append(f"{name}: {bad}")
        except Exception as error:
            # Whatever a hostile block provokes ends here, and is told.
            reasons.append(f"{name}: cannot be read ({type(error).__name__})")
        return None

    camera = directory(EXIF_IFD, "camera settings")
    gps = directory(GPS_IFD, "GPS")
    position = field("position", _position, gps) or (None, None)
    true, magnetic = field("heading", _heading, gps) or (None, None)
    return PhotoExif(
        lat=position[0],
        lon=position[1],
        heading_deg=true,
        heading_magnetic_deg=magnetic,
        date=field("date", _date, camera, gps),
        fov_deg=field("field of view", _fov_deg, camera, size),
        reasons=tuple(
            reasons + ([] if magnetic is None else ["heading: from magnetic north, so not used as a heading"])
        ),
    )


def orientation_of(block: bytes) -> int:
    """1 to 8 as EXIF numbers them; 1 (upright) where it is absent or nonsense."""
    try:
        tiff = _Tiff(block)
        value = _one(tiff.directory(tiff.first)[ORIENTATION])
        return int(value) if value in range(1, 9) else 1
    except (_Bad, KeyError, ValueError, TypeError):
        return 1


def time_of(block: bytes) -> datetime.datetime | None:
    """When the photo was taken, to the second or finer; without a time zone unless the block has one."""
    try:
        tiff = _Tiff(block)
        camera = tiff.directory(int(_one(tiff.directory(tiff.first)[EXIF_IFD])))
        when = datetime.datetime.strptime(str(camera[DATE_ORIGINAL])[:19], "%Y:%m:%d %H:%M:%S")
    except (_Bad, KeyError, ValueError, TypeError):
        return None
    part = str(camera.get(PART_ORIGINAL, ""))
    if part.isascii() and part.isdigit():
        when += datetime.timedelta(seconds=float(f"0.{part[:6]}"))
    try:
        zone = datetime.datetime.strptime(str(camera.get(OFFSET_ORIGINAL, "")), "%z").tzinfo
    except ValueError:
        zone = None
    return when.replace(tzinfo=zone)


class _Tiff:
    def __init__(self, block: bytes) -> None:
        self.data = block.removeprefix(b"Exif\x00\x00")
        self.order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(self.data[:4], "")
        if not self.order or len(self.data) < 8:
            raise _Bad("is no TIFF structure")
        self.first: int = self.unpack("I", 4)[0]

    def unpack(self, code: str, offset: int) -> tuple[Any, ...]:
        try:
            return struct.unpack_from(self.order + code, self.data, offset)
        except (struct.error, OverflowError):
            raise _Bad("points beyond the end of the block") from None

    def directory(self, offset: int) -> dict[int, Any]:
        """tag -> str, or list of numbers (a fraction with denominator 0 is None). Follows no further pointer."""
        if offset < 8:
            raise _Bad("points into its own header")
        (count,) = self.unpack("H", offset)
        if count > _MAX_ENTRIES:
            raise _Bad(f"{count} entries")
        found: dict[int, Any] = {}
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, length = self.unpack("HHI", entry)
            if kind not in _SIZES or length > (4096 if kind in (2, 7) else _MAX_VALUES):
                continue
            size = _SIZES[kind] * length
            start = entry + 8 if size <= 4 else self.unpack("I", entry + 8)[0]
            if start + size > len(self.data):
                continue
            found.setdefault(tag, self.values(kind, length, start))
        return found

    def values(self, kind: int, length: int, start: int) -> Any:
        if kind in (2, 7):
            text = self.data[start : start + length].split(b"\x00")[0]
            return text.decode("ascii", "replace").strip()
        if kind in (5, 10):
            parts = self.unpack(f"{2 * length}{'I' if kind == 5 else 'i'}", start)
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return [above / below if below else None for above, below in pairs]
        return list(self.unpack(f"{length}{_CODES[kind]}", start))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, str):
        raise _Bad("text where a number belongs")
    if not value:
        raise _Bad("is empty")
    if None in value:
        raise _Bad("a fraction with denominator 0")
    if not all(math.isfinite(number) for number in value):
        raise _Bad("not a finite number")
    return [float(number) for number in value]


def _one(value: Any) -> float:
    return _numbers(value)[0]


def _letter(gps: dict[int, Any], tag: int) -> str:
    value = gps.get(tag, "")
    return value[:1].upper() if isinstance(value, str) else ""


def _angle(gps: dict[int, Any], tag: int, ref_tag: int, letters: str, limit: float) -> float:
    parts = _numbers(gps[tag])[:3]
    if any(part < 0 for part in parts) or any(part >= 60 for part in parts[1:]):
        raise _Bad(f"degrees, minutes, seconds of {parts}")
    angle = sum(part / 60**i for i, part in enumerate(parts))
    if angle > limit:
        raise _Bad(f"{angle:g} degrees, more than {limit:g}")
    letter = _letter(gps, ref_tag)
    if letter not in tuple(letters):
        raise _Bad(f"expected {letters[0]} or {letters[1]} as reference, got {letter!r}")
    return -angle if letter == letters[1] else angle


def _position(gps: dict[int, Any]) -> tuple[float, float] | None:
    if LAT not in gps and LON not in gps:
        return None
    if LAT not in gps or LON not in gps:
        raise _Bad("only one of latitude and longitude")
    if _letter(gps, STATUS) == "V":
        raise _Bad("the receiver says it had no fix")
    datum = gps.get(DATUM, "")
    if isinstance(datum, str) and "".join(c for c in datum.upper() if c.isalnum()) not in ("", "WGS84", "WGS1984"):
        raise _Bad(f"datum {datum[:20]!r}, not WGS84")
    lat = _angle(gps, LAT, LAT_REF, "NS", 90)
    lon = _angle(gps, LON, LON_REF, "EW", 180)
    if lat == 0 and lon == 0:
        raise _Bad("0, 0 is the position that cameras without a fix write")
    return lat, lon


def _heading(gps: dict[int, Any]) -> tuple[float | None, float | None] | None:
    """(from true north, from magnetic north), at most one of them."""
    if DIRECTION not in gps:
        return None
    heading = _one(gps[DIRECTION])
    if not 0 <= heading <= 360:
        raise _Bad(f"{heading:g} degrees, not within 0 to 360")
    heading %= 360.0
    letter = _letter(gps, DIRECTION_REF)
    if letter == "T":
        return heading, None
    if letter == "M":
        return None, heading
    raise _Bad(f"expected T or M as reference, got {letter!r}")


def _date(camera: dict[int, Any], gps: dict[int, Any]) -> datetime.date | None:
    bad = None
    for values, tag in ((camera, DATE_ORIGINAL), (camera, DATE_DIGITIZED), (gps, GPS_DATE)):
        text = values.get(tag)
        if text is None:
            continue
        try:
            year, month, day = (int(part) for part in text[:10].replace("-", ":").split(":"))
            if 1826 <= year <= 2200:  # since the first photograph
                return datetime.date(year, month, day)
        except (ValueError, TypeError):
            pass
        bad = text
    if bad is not None:
        raise _Bad(f"expected YYYY:MM:DD, got {str(bad)[:20]!r}")
    return None


def _fov_deg(camera: dict[int, Any], size: tuple[int, int] | None) -> float | None:
    if FOCAL_35MM not in camera or size is None:
        return None
    focal_mm = _one(camera[FOCAL_35MM])
    if focal_mm == 0:
        return None  # "unknown", as EXIF has it
    height, width = size
    if DIGITAL_ZOOM in camera and camera[DIGITAL_ZOOM] != [None] and _one(camera[DIGITAL_ZOOM]) > 1:
        raise _Bad("digital zoom, which cameras count in different ways")
    if max(height, width) > 2.2 * min(height, width):
        raise _Bad(f"{width} x {height} pixels look stitched or cropped")
    if WIDTH in camera and HEIGHT in camera:
        sides = sorted((_one(camera[WIDTH]), _one(camera[HEIGHT])))
        if sides[0] > 0 and abs(sides[1] / sides[0] * min(size) / max(size) - 1) > 0.02:
            raise _Bad("cropped since it was taken")
    # The equivalent focal length compares diagonals.
    width_mm = _FILM_DIAGONAL_MM * width / math.hypot(width, height)
    fov = math.degrees(2 * math.atan(width_mm / (2 * focal_mm)))
    if not 1 <= fov <= 170:
        raise _Bad(f"{focal_mm:g} mm would be {fov:g} degrees")
    return fov
