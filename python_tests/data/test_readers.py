"""Readers of published data sets, on tiny ones in exactly the published layout."""

import contextlib
import datetime
import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from geoloc_fast.cli.run import app
from geoloc_fast.data.manifest import PHOTOS, PLACES, Manifest
from geoloc_fast.data.readers import READERS, read
from geoloc_fast.data.readers.mat import load_mat
from geoloc_fast.errors import ManifestError
from geoloc_fast.geo.sphere import great_circle_m, move_m
from geoloc_fast.geo.utm import utm_to_lat_lon, zone_is_south


def picture(path: Path, size: tuple[int, int] = (8, 8), exif: Image.Exif | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {} if exif is None else {"exif": exif}
    Image.new("RGB", size, (10, 20, 30)).save(path, **options)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def assert_sound(manifest: Manifest, tmp_path: Path) -> None:
    """Every image is there, and the manifest survives being written."""
    assert manifest.validate(images=True) == []
    manifest.save(tmp_path / "saved")
    again = Manifest.load(tmp_path / "saved")
    assert again == manifest


# --- UTM ---


def test_utm_of_a_known_place() -> None:
    """CN Tower, 17T 630084 4833438, to the metre that this is given with."""
    lat, lon = utm_to_lat_lon(630084.0, 4833438.0, 17, south=False)
    assert great_circle_m(float(lat), float(lon), 43.642567, -79.387139) < 1


@pytest.mark.parametrize("zone", [2, 31, 55, 59])
def test_utm_by_itself(zone: int) -> None:
    """The central meridian maps to its own longitude, northings are arcs of the ellipsoid times 0.9996, and both sides
    of the meridian and the equator mirror each other."""
    middle = 6 * zone - 183
    a, f = 6378137.0, 1 / 298.257223563
    e2 = f * (2 - f)
    phi = np.linspace(0, math.radians(60), 200_001)
    radius = a * (1 - e2) / (1 - e2 * np.sin(phi) ** 2) ** 1.5
    arc = float(np.trapezoid(radius, phi))
    lat, lon = utm_to_lat_lon(500_000.0, 0.9996 * arc, zone, south=False)
    assert (lat, lon) == pytest.approx((60, middle), abs=1e-8)
    east, west = (utm_to_lat_lon(500_000.0 + side, 6e6, zone, south=False) for side in (2e5, -2e5))
    assert east[0] == pytest.approx(west[0], abs=1e-12) and east[1] - middle == pytest.approx(
        middle - west[1], abs=1e-9
    )
    mirrored = utm_to_lat_lon(700_000.0, 10e6 - 6e6, zone, south=True)
    assert mirrored == pytest.approx((-east[0], east[1]), abs=1e-9)


def test_utm_bands() -> None:
    assert [zone_is_south(letter) for letter in "CMNSX"] == [True, True, False, False, False]
    for wrong in ("", "I", "O", "A", "Z", "NN"):
        with pytest.raises(ValueError, match="band"):
            zone_is_south(wrong)
    with pytest.raises(ValueError, match="zone: expected 1 to 60"):
        utm_to_lat_lon(5e5, 0, 61, south=False)


# --- CVUSA ---


def make_cvusa(root: Path, locations: bool = True) -> None:
    for split, numbers in (("train", (1, 3)), ("val", (2,))):
        lines = []
        for number in numbers:
            picture(root / f"bingmap/19/{number:07d}.jpg")
            picture(root / f"streetview/panos/{number:07d}.jpg", (88, 16))
            lines.append(
                f"bingmap/19/{number:07d}.jpg,streetview/panos/{number:07d}.jpg,streetview/annotations/{number:07d}.png"
            )
        write(root / f"splits/{split}-19zl.csv", "\n".join(lines) + "\n")
    if locations:
        write(
            root / "split_locations/all.csv",
            "".join(f"{30 + n},{-90 - n},{30.001 + n},{-90.001 - n},7\n" for n in (1, 2, 3)),
        )


def test_cvusa(tmp_path: Path) -> None:
    make_cvusa(tmp_path)
    manifest = read("cvusa", tmp_path)
    assert manifest.places["id"].to_pylist() == ["0000001", "0000003", "0000002"]
    assert manifest.place(1)["satellite"] == "bingmap/19/0000003.jpg"
    assert (manifest.place(1)["lat"], manifest.place(1)["lon"]) == (33, -93)
    photo = manifest.photo(2)
    assert photo["image"] == "streetview/panos/0000002.jpg" and photo["place"] == "0000002" and photo["split"] == "val"
    assert (photo["lat"], photo["heading_deg"], photo["fov_deg"]) == pytest.approx((32.001, 0.0, 360.0))
    assert_sound(manifest, tmp_path)


def test_cvusa_without_positions(tmp_path: Path) -> None:
    make_cvusa(tmp_path, locations=False)
    manifest = read("cvusa", tmp_path)
    assert not manifest.has_positions and manifest.photos.num_rows == 3
    assert_sound(manifest, tmp_path)


def test_cvusa_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"splits/train-19zl.csv: is missing"):
        read("cvusa", tmp_path)
    make_cvusa(tmp_path)
    write(tmp_path / "splits/train-19zl.csv", "bingmap/19/0000009.jpg,a.jpg,b.png\nonly one cell\n")
    with pytest.raises(ManifestError) as caught:
        read("cvusa", tmp_path)
    assert [(problem.row, problem.file) for problem in caught.value.problems] == [
        (1, "splits/train-19zl.csv"),
        (2, "splits/train-19zl.csv"),
    ]


# --- CVACT and MSGD: MATLAB files ---


def canberra_utm(count: int) -> np.ndarray:
    """Zone 55 south, near Parliament House (about 694 km east, 6090 km north)."""
    return np.array([[693_500.0 + 40 * i, 6_090_500.0 + 30 * i] for i in range(count)])


def element(kind: int, content: bytes, order: str) -> bytes:
    if 0 < len(content) <= 4:  # the short form
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def matrix(value: Any, name: str, order: str) -> bytes:
    """A variable as MATLAB 5 to 7.2 stores it."""
    if isinstance(value, dict):
        kind, shape = 2, (1, 1)
        names = b"".join(key.encode().ljust(32, b"\0") for key in value)
        content = element(5, struct.pack(f"{order}i", 32), order) + element(1, names, order)
        content += b"".join(matrix(part, "", order) for part in value.values())
    elif isinstance(value, list):
        kind, shape = 1, (len(value), 1)
        content = b"".join(matrix(part, "", order) for part in value)
    elif np.asarray(value).dtype.kind == "U":
        rows = np.atleast_1d(np.asarray(value))
        length = max(len(row) for row in rows)
        kind, shape = 4, (len(rows), length)
        text = "".join(row.ljust(length)[i] for i in range(length) for row in rows)
        content = element(4, text.encode("utf-16-le" if order == "<" else "utf-16-be"), order)
    else:
        kind, shape = 6, np.asarray(value).shape
        content = element(9, np.asarray(value).astype(f"{order}f8").tobytes(order="F"), order)
    head = element(6, struct.pack(f"{order}II", kind, 0), order) + element(5, struct.pack(f"{order}2i", *shape), order)
    body = head + element(1, name.encode(), order) + content
    return struct.pack(f"{order}II", 14, len(body)) + body


def savemat(path: Path, content: dict[str, Any], *, order: str = "<", compress: bool = True) -> None:
    data = b"MATLAB 5.0 MAT-file".ljust(116) + b"\0" * 8 + (b"\0\x01IM" if order == "<" else b"\x01\0MI")
    for name, value in content.items():
        stored = matrix(value, name, order)
        if compress:
            packed = zlib.compress(stored)
            stored = struct.pack(f"{order}II", 15, len(packed)) + packed
        data += stored
    path.write_bytes(data)


LISTS = {
    "ids": np.array(["a", "bcd"]),
    "x": np.arange(12.0).reshape(4, 3),
    "c": ["a", "bb"],
    "s": {"f": np.ones((2, 1))},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_matlab_files(tmp_path: Path, order: str, compress: bool) -> None:
    savemat(tmp_path / "a.mat", {**LISTS, "other": np.ones((300, 300))}, order=order, compress=compress)
    got = load_mat((tmp_path / "a.mat").read_bytes(), set(LISTS))
    check_lists(got)


def check_lists(got: dict[str, Any]) -> None:
    assert set(got) == set(LISTS)
    assert got["ids"] == ["a  ", "bcd"] and got["c"] == [["a"], ["bb"]]
    np.testing.assert_array_equal(got["x"], LISTS["x"])
    np.testing.assert_array_equal(got["s"]["f"], [[1], [1]])


@pytest.mark.parametrize("compress", [False, True])
def test_matlab_files_of_another_writer(compress: bool) -> None:
    io_module = pytest.importorskip("scipy.io", reason="SciPy writes the files that this test reads")
    out = io.BytesIO()
    lists = {**LISTS, "c": np.array(LISTS["c"], object)[:, None], "big": np.ones((9, 9), np.uint8)}
    io_module.savemat(out, lists, do_compression=compress)
    check_lists(load_mat(out.getvalue(), set(LISTS)))


def test_damaged_matlab_files(tmp_path: Path) -> None:
    """Every cut and many altered bytes: an error that says so, or something that was read."""
    for compress in (False, True):
        savemat(tmp_path / "a.mat", LISTS, compress=compress)
        data = (tmp_path / "a.mat").read_bytes()
        for end in range(0, len(data), 3):
            with contextlib.suppress(ValueError):
                assert len(load_mat(data[:end], set(LISTS))) < len(LISTS)
        rng = np.random.default_rng(0)
        for _ in range(1500):
            bad = bytearray(data)
            at = int(rng.integers(120, len(bad) - 4))
            bad[at : at + 4] = struct.pack(
                "<I", int(rng.choice([0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, rng.integers(2**32)]))
            )
            with contextlib.suppress(ValueError):
                load_mat(bytes(bad), set(LISTS))


def test_matlab_bomb() -> None:
    """A variable that unpacks to more than any list needs is refused, not unpacked."""
    head = matrix(np.zeros((0, 0)), "ids", "<")
    packed = zlib.compress(head + b"\0" * (80 << 20), 1)
    data = b" " * 124 + b"\0\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match="too large"):
        load_mat(data, {"ids"})
    assert load_mat(data, {"other"}) == {}


def index_set(field: str, numbers: list[int]) -> dict[str, Any]:
    return {"note": np.array(["x"]), field: np.array(numbers, np.float64)[:, None]}


def make_cvact(root: Path, utm: np.ndarray | None = None, test: bool = True, **changes: Any) -> list[str]:
    ids = [f"pano_{i}-Ab" for i in range(6)]
    content = {
        "panoIds": np.array(ids),
        "utm": canberra_utm(6) if utm is None else utm,
        "trainSet": index_set("trainInd", [1, 2, 3]),
        "valSet": index_set("valInd", [4]),
        "valSetAll": index_set("valInd", [4, 5, 6]),
        **changes,
    }
    savemat(root / "ACT_data.mat", content)
    for i, pano in enumerate(ids):
        part = "ANU_data_small" if i < 4 else "ANU_data_test"
        if part == "ANU_data_small" or test:
            picture(root / part / "satview_polish" / f"{pano}_satView_polish.jpg")
            picture(root / part / "streetview" / f"{pano}_grdView.jpg", (64, 32))
    return ids


def test_cvact(tmp_path: Path) -> None:
    make_cvact(tmp_path)
    manifest = read("cvact", tmp_path)
    assert manifest.photos["split"].to_pylist() == ["train"] * 3 + ["val"] + ["test"] * 2
    assert manifest.place(5)["satellite"] == "ANU_data_test/satview_polish/pano_5-Ab_satView_polish.jpg"
    assert manifest.photo(0)["image"] == "ANU_data_small/streetview/pano_0-Ab_grdView.jpg"
    assert great_circle_m(manifest.place(0)["lat"], manifest.place(0)["lon"], -35.308, 149.124) < 1500
    steps = great_circle_m(*(manifest.place(i)[name] for i in (0, 1) for name in ("lat", "lon")))
    assert steps == pytest.approx(50, rel=2e-3)
    assert_sound(manifest, tmp_path)


@pytest.mark.parametrize("reading", ["northing first", "northing from the equator"])
def test_cvact_positions_lie_in_canberra(tmp_path: Path, reading: str) -> None:
    utm = canberra_utm(6)
    make_cvact(tmp_path, utm[:, ::-1] if reading == "northing first" else utm - [0, 1e7])
    place = read("cvact", tmp_path).place(0)
    assert great_circle_m(place["lat"], place["lon"], -35.308, 149.124) < 1500


def test_cvact_incomplete(tmp_path: Path) -> None:
    ids = make_cvact(tmp_path, test=False)
    assert read("cvact", tmp_path).photos.num_rows == 4  # the small part alone is common
    (tmp_path / "ANU_data_small/streetview" / f"{ids[1]}_grdView.jpg").unlink()
    with pytest.warns(
        UserWarning, match=r"1 of 4 entries of ACT_data.mat are left out, their image is missing: pano_1-Ab"
    ):
        assert read("cvact", tmp_path).photos.num_rows == 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"utm": np.ones((6, 2))}, "expected UTM coordinates of Canberra"),
        ({"utm": np.ones((5, 2))}, "utm: expected 6 pairs"),
        ({"utm": np.full((6, 2), np.nan)}, "row 6, column utm: expected two finite numbers"),
        (
            {"trainSet": index_set("trainInd", [1, 7])},
            r"row 2, column trainSet.trainInd: expected a number from 1 to 6, got 7",
        ),
        ({"trainSet": index_set("trainInd", [0])}, "got 0"),
        ({"trainSet": index_set("other", [1])}, "column trainSet.trainInd: is missing"),
    ],
)
def test_cvact_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    make_cvact(tmp_path, **changes)
    with pytest.raises(ManifestError, match=match):
        read("cvact", tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "is missing in"),
        (b"", "no header"),
        (b"x" * 500, "no header"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM", "save it in MATLAB"),
        (b" " * 124 + b"\0\x01IM", "column panoIds: is missing"),
        (b" " * 124 + b"\0\x01IM" + b"\x0e\0\0\0\xff\xff\0\0", "it ends inside an element"),
    ],
)
def test_no_matlab_files(tmp_path: Path, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / "ACT_data.mat").write_bytes(content)
    with pytest.raises(ManifestError, match=rf"ACT_data\.mat.*{match}"):
        read("cvact", tmp_path)


def make_msgd(root: Path, cells: bool = False) -> None:
    ids = ["a", "bb", "ccc", "dddd"]
    content = {
        "panoIds": ids if cells else np.array(ids),
        "utm": np.array([[207_500.0 + 30 * i, 2_467_500.0] for i in range(4)]),
        "trainSet": index_set("trainInd", [1, 2]),
        "valSet": index_set("valInd", [3]),
    }
    savemat(root / "matdata.mat", content)
    for pano in ids:
        picture(root / "satview_all" / f"{pano}_satView.jpg")
        picture(root / "polarmap_all" / f"{pano}_satView.png")
        picture(root / "polarmap_all_caijian" / f"{pano}_satView_wrapped.png")
        picture(root / "crdview_resize_all" / f"{pano}_crdView.png", (17, 12))
        if pano != "bb":
            picture(root / "streetview_all" / f"{pano}_grdView_pano.png", (102, 24))


@pytest.mark.parametrize("cells", [False, True])
def test_msgd(tmp_path: Path, cells: bool) -> None:
    make_msgd(tmp_path, cells)
    manifest = read("msgd", tmp_path, zone=50, city="Hong Kong")
    assert manifest.places["id"].to_pylist() == ["a", "bb", "ccc", "dddd"]
    assert manifest.photos["split"].to_pylist() == ["train", "train", "val", None]
    assert manifest.place(1)["street"] is None and manifest.place(1)["satellite"] == "satview_all/bb_satView.jpg"
    assert manifest.place(0)["street"] == "streetview_all/a_grdView_pano.png"
    assert manifest.place(0)["street_column0_deg"] is None
    assert manifest.photo(2)["image"] == "crdview_resize_all/ccc_crdView.png"
    assert great_circle_m(manifest.place(0)["lat"], manifest.place(0)["lon"], 22.29, 114.17) < 5000
    assert_sound(manifest, tmp_path)
    known = read("msgd", tmp_path, zone=50, street_column0_deg=315.0)
    assert known.places["street_column0_deg"].to_pylist() == [315.0, None, 315.0, 315.0]


def test_msgd_incomplete(tmp_path: Path) -> None:
    make_msgd(tmp_path)
    (tmp_path / "crdview_resize_all/a_crdView.png").unlink()
    (tmp_path / "satview_all/bb_satView.jpg").unlink()
    with pytest.warns(UserWarning, match="left out") as caught:
        manifest = read("msgd", tmp_path, zone=50)
    assert [str(warning.message).split(" are")[0] for warning in caught] == [
        "1 of 4 places of matdata.mat",
        "1 of 4 photos of matdata.mat",
    ]
    assert manifest.photo(0) == {**manifest.photo(0), "id": "bb", "place": None}
    (tmp_path / "cross.mat").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"expected one .mat file"):
        read("msgd", tmp_path, zone=50)


# --- VIGOR ---

SPACING = (0.00032807, 0.00044059)  # degrees between satellite images of Chicago
CENTRE = (41.877971796211014, -87.68943505304125)


def satellite_name(row: int, column: int) -> str:
    return f"satellite_{CENTRE[0] - row * SPACING[0]}_{CENTRE[1] + column * SPACING[1]}.png"


def make_vigor(root: Path, splits: str = "splits", label_end: str = "") -> list[str]:
    """Four satellite images on a grid; a panorama 2.5 m south and 3.2 m east of the first."""
    satellites = [satellite_name(row, column) for row in (0, 1) for column in (0, 1)]
    panoramas = [
        "L-1poX8YZAmBZVLMqBu-4w,41.877949,-87.689396,.jpg",
        "aa_bb,41.877700,-87.689100,.jpg",
        "cc,41.8779,-87.6893,.jpg",
    ]
    for name in satellites:
        picture(root / "Chicago/satellite" / name)
    for name in panoramas:
        picture(root / "Chicago/panorama" / name, (64, 32))
    write(root / splits / "Chicago/satellite_list.txt", "\n".join(satellites) + "\n")

    def line(panorama: str, first: int) -> str:
        order = [first, *(i for i in range(4) if i != first)]
        return " ".join([panorama, *(f"{satellites[i]} 23.0 -29.0" for i in order)])

    labels = {
        "pano_label_balanced": [line(panoramas[0], 0), line(panoramas[1], 3), line(panoramas[2], 0)],
        "same_area_balanced_train": [line(panoramas[0], 0)],
        "same_area_balanced_test": [line(panoramas[1], 3)],
    }
    for name, lines in labels.items():
        write(root / splits / f"Chicago/{name}{label_end}.txt", "\n".join(lines) + "\n")
    return satellites


@pytest.mark.parametrize(("splits", "label_end"), [("splits", ""), ("splits__corrected", "__corrected")])
def test_vigor(tmp_path: Path, splits: str, label_end: str) -> None:
    satellites = make_vigor(tmp_path, splits, label_end)
    manifest = read("vigor", tmp_path)
    assert manifest.places["id"].to_pylist() == satellites
    place = manifest.place(0)
    assert (place["lat"], place["lon"], place["city"]) == (*CENTRE, "Chicago")
    assert place["metres_per_pixel"] == pytest.approx(0.11117, abs=1e-4)
    assert manifest.photos["split"].to_pylist() == ["train", "test", None]
    photo = manifest.photo(0)
    assert photo["place"] == satellites[0] and photo["semi_positives"] == satellites[1:]
    # The corrected labels say 23 pixels down and 29 to the right.
    assert (photo["rows_px"][0], photo["columns_px"][0]) == pytest.approx((23, 29), abs=0.6)
    for name, row, column in zip(
        [photo["place"], *photo["semi_positives"]], photo["rows_px"], photo["columns_px"], strict=True
    ):
        lat, lon = (float(part) for part in name.removesuffix(".png").split("_")[1:])
        resolution = place["metres_per_pixel"]
        at = move_m(lat, lon, column * resolution, -row * resolution)
        assert great_circle_m(*at, photo["lat"], photo["lon"]) < 0.2
    assert manifest.photo(1)["place"] == satellites[3]
    assert_sound(manifest, tmp_path)


def test_vigor_incomplete_and_wrong(tmp_path: Path) -> None:
    satellites = make_vigor(tmp_path)
    (tmp_path / "Chicago/satellite" / satellites[1]).unlink()
    with pytest.warns(UserWarning, match="left out") as caught:
        manifest = read("vigor", tmp_path)
    assert len(caught) == 2 and manifest.places.num_rows == 3 and manifest.photos.num_rows == 0
    write(
        tmp_path / "splits/Chicago/pano_label_balanced.txt",
        "x,1,2,.jpg unknown.png 1 2\nno,position,here,.jpg" + " a 0 0" * 4,
    )
    with pytest.raises(ManifestError) as error, pytest.warns(UserWarning, match="left out"):
        read("vigor", tmp_path)
    assert [problem.row for problem in error.value.problems] == [1, 2]
    with pytest.raises(ManifestError, match="expected folders splits__corrected or splits"):
        read("vigor", tmp_path / "Chicago")


# --- names with UTM ---


def test_utm_names(tmp_path: Path) -> None:
    toronto = "@630084.00@4833438.00@17@T@43.64257@-79.38714@CN@@370@@@@20131105@@.jpg"
    bare = "@0630084.0@4833438.0@.jpg"
    zoned = "@630084@4833438@17@T@@@@@90@@@@201311@@.jpg"
    for name in (f"images/train/database/{toronto}", f"images/train/database/{zoned}", f"images/test/queries/{bare}"):
        picture(tmp_path / name)
    with pytest.raises(ManifestError, match="neither latitude and longitude nor a UTM zone"):
        read("utm-names", tmp_path)
    manifest = read("utm-names", tmp_path, zone=17)
    assert manifest.photos["role"].to_pylist() == ["queries", "database", "database"]
    assert manifest.photos["split"].to_pylist() == ["test", "train", "train"]
    assert manifest.photos["heading_deg"].to_pylist() == [None, 10.0, 90.0]
    assert manifest.photos["date"].to_pylist() == [None, datetime.date(2013, 11, 5), datetime.date(2013, 11, 1)]
    for photo in manifest.photos.to_pylist():
        assert great_circle_m(photo["lat"], photo["lon"], 43.642567, -79.387139) < 1
    assert_sound(manifest, tmp_path)
    places = read("utm-names", tmp_path, zone=17, panoramas=True)
    assert places.photos.num_rows == 1 and places.places["street_column0_deg"].to_pylist() == [190.0, 270.0]


@pytest.mark.parametrize(
    "name", ["photo.jpg", "@1@.jpg", "@a@4833438@17@T@@.jpg", "@1@2@17@I@@.jpg", "@1@2@99@T@@.jpg"]
)
def test_utm_names_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name)
    with pytest.raises(ManifestError) as caught:
        read("utm-names", tmp_path)
    assert caught.value.problems[0].file == name


# --- a folder of photos ---


def test_photo_folder(tmp_path: Path) -> None:
    def exif(reference: str, lat: float = 52.5) -> Image.Exif:
        block = Image.Exif()
        gps = {1: "N", 2: (lat, 0.0, 0.0), 3: "W", 4: (13.0, 30.0, 0.0), 16: reference, 17: 45.0}
        block.get_ifd(0x8825).update(gps)
        block.get_ifd(0x8769).update({0x9003: "2022:03:04 05:06:07", 0xA405: 28})
        return block

    root = tmp_path / "photos"
    picture(root / "b/true.jpg", (80, 60), exif("T"))
    picture(root / "a/magnetic.JPG", (60, 80), exif("M"))
    picture(root / "a/plain.png")
    picture(root / "a/lat91.jpg", (80, 60), exif("T", 91.0))
    write(root / "broken.jpg", "no image")
    write(root / "phone.heic", "ftypheic")
    write(root / "notes.txt", "not listed")
    write(root / ".hidden/x.jpg", "not listed")
    (root / "outside.jpg").symlink_to(tmp_path / "secret.jpg")
    picture(tmp_path / "secret.jpg")
    with pytest.warns(UserWarning, match=r"3 of 7 photos cannot be read: broken.jpg, outside.jpg, phone.heic"):
        manifest = read("photos", root)
    rows = {row["id"]: row for row in manifest.photos.to_pylist()}
    assert list(rows) == sorted(rows)
    assert (rows["b/true.jpg"]["lat"], rows["b/true.jpg"]["lon"]) == (52.5, -13.5)
    assert rows["b/true.jpg"]["heading_deg"] == 45.0 and rows["b/true.jpg"]["date"] == datetime.date(2022, 3, 4)
    assert rows["b/true.jpg"]["fov_deg"] == pytest.approx(63.4, abs=0.1)
    magnetic = rows["a/magnetic.JPG"]
    assert magnetic["heading_deg"] is None and magnetic["heading_magnetic_deg"] == 45.0
    assert rows["a/lat91.jpg"]["lat"] is None and "more than 90" in rows["a/lat91.jpg"]["exif_reasons"]
    assert rows["a/plain.png"]["lat"] is None and rows["a/plain.png"]["exif_reasons"] is None
    assert "symbolic link" in rows["outside.jpg"]["problem"]
    manifest.save()
    assert Manifest.load(root) == manifest


# --- as a command ---


def make_utm_names(root: Path) -> None:
    picture(root / "test/queries/@630084@4833438@17@T@@@@@90@@@@201311@@.jpg")


@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        ("cvusa", make_cvusa, {}),
        ("cvact", make_cvact, {}),
        ("msgd", make_msgd, {"zone": 50, "city": "Hong Kong", "street_column0_deg": 315.0}),
        ("vigor", make_vigor, {}),
        ("utm-names", make_utm_names, {}),
        ("photos", make_utm_names, {}),
    ],
)
@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_every_reader_is_a_command(
    tmp_path: Path, kind: str, make: Callable[[Path], Any], options: dict[str, Any], format: str
) -> None:
    """The same manifest as from Python, in either format (of CSV without the types of further columns)."""
    make(tmp_path)
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(app, ["read", kind, str(tmp_path), "--format", format, *arguments])
    assert done.exit_code == 0, done.output
    expected, got = read(kind, tmp_path, **options), Manifest.load(tmp_path)
    assert f"{len(expected.places)} places and {len(expected.photos)} photos in {tmp_path}" in done.output
    assert got.places.select(PLACES.names) == expected.places.select(PLACES.names)
    assert got.photos.select(PHOTOS.names) == expected.photos.select(PHOTOS.names)
    assert format == "csv" or got == expected
    assert got.validate(images=True) == []


def test_empty_folder(tmp_path: Path) -> None:
    assert read("photos", tmp_path).photos.num_rows == 0
    assert read("utm-names", tmp_path).photos.num_rows == 0


def test_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of 'manifest', 'cvusa'.*got 'x'"):
        read("x", tmp_path)
    for kind in READERS:
        with pytest.raises(NotADirectoryError, match="path: expected the folder"):
            read(kind, tmp_path / "nowhere")
    manifest = Manifest.from_rows(tmp_path, [], [])
    manifest.save()
    assert read("manifest", tmp_path) == manifest
