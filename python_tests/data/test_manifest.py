"""The manifest: what goes in comes out, every problem is named, and no path leaves the folder."""

import datetime
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geoloc_fast.data.manifest import PHOTOS, PLACES, Manifest
from geoloc_fast.errors import ImageError, ManifestError
from geoloc_fast.images.storage import Storage, unsafe_path_reason

PLACE: dict[str, Any] = {"id": "a", "lat": 52.5, "lon": 13.4, "satellite": "sat/a.jpg"}
PHOTO: dict[str, Any] = {"id": "p", "image": "photos/p.jpg"}
FULL_PLACE: dict[str, Any] = {
    **PLACE,
    "id": 'b, "c" é',
    "city": "Berlin",
    "metres_per_pixel": 0.1,
    "street": "street/b.png",
    "street_views": ["v/0.jpg", "v/90.jpg", "v/180.jpg", "shard.tar::v/270.jpg"],
    "street_lat": 52.5001,
    "street_lon": 13.4001,
    "street_date": datetime.date(2021, 5, 4),
    "satellite_date": datetime.date(2020, 1, 31),
    "street_column0_deg": 180.0,
    "calibration_column0_deg": 179.123456789012345,
    "calibration_quality": 1e-3,
    "calibration_status": "measured",
    "street_synthetic": "generator 1",
}
FULL_PHOTO: dict[str, Any] = {
    **PHOTO,
    "id": "q",
    "lat": 52.5,
    "lon": 13.4,
    "heading_deg": 12.5,
    "fov_deg": 90.0,
    "date": datetime.date(2021, 6, 1),
    "city": "Berlin",
    "place": "a",
    "split": "val",
}


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist()


def problems_of(folder: Path, places: list[dict[str, Any]], photos: list[dict[str, Any]] = ()) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_rows(folder, places, photos)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_round_trip(tmp_path: Path, format: str) -> None:
    manifest = Manifest.from_rows(tmp_path, [PLACE, FULL_PLACE], [PHOTO, FULL_PHOTO])
    manifest.save(format=format)
    again = Manifest.load(tmp_path)
    assert again == manifest
    assert again.places.schema == PLACES and again.photos.schema == PHOTOS
    assert again.format == format and again.root == tmp_path
    assert again.place(1)["street_views"] == FULL_PLACE["street_views"]
    assert again.place(0)["calibration_status"] == "none" and again.place(0)["city"] == ""
    before = (tmp_path / f"places.{format}").read_bytes()
    again.save()
    assert (tmp_path / f"places.{format}").read_bytes() == before
    assert Manifest.load(tmp_path / f"places.{format}") == manifest
    assert manifest.validate() == []


def test_extra_columns_are_kept(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [{**PLACE, "floors": 3, "tags": ["x"]}], [{**PHOTO, "camera": "phone"}])
    manifest.save()
    again = Manifest.load(tmp_path)
    assert again.place(0)["floors"] == 3 and again.place(0)["tags"] == ["x"] and again.photo(0)["camera"] == "phone"
    assert again == manifest


def test_positions_are_all_there_or_none_is(tmp_path: Path) -> None:
    nowhere = {**PLACE, "lat": None, "lon": None}
    manifest = Manifest.from_rows(tmp_path, [nowhere, {**nowhere, "id": "b"}], [])
    assert not manifest.has_positions
    assert Manifest.from_rows(tmp_path, [PLACE], []).has_positions
    assert len(problems_of(tmp_path, [PLACE, {**nowhere, "id": "b"}])) == 2


def test_empty(tmp_path: Path) -> None:
    for format in ("parquet", "csv"):
        folder = tmp_path / format
        Manifest.from_rows(folder, [], []).save(format=format)
        again = Manifest.load(folder)
        assert again.places.num_rows == again.photos.num_rows == 0
        assert again.places.schema == PLACES
    with pytest.raises(ManifestError, match=r"no places.parquet"):
        Manifest.load(tmp_path)
    with pytest.raises(ManifestError, match="no such file"):
        Manifest.load(tmp_path / "nowhere")


def test_one_table_is_enough(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("id,image\n1,a.jpg\n")
    assert Manifest.load(tmp_path).photo(0)["image"] == "a.jpg"
    assert Manifest.load(tmp_path / "photos.csv").places.num_rows == 0


def test_two_formats_at_once_are_not_guessed_between(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [PLACE], [])
    manifest.save()
    manifest.save(format="csv")
    with pytest.raises(ManifestError, match=r"both places.parquet and places.csv"):
        Manifest.load(tmp_path)
    assert Manifest.load(tmp_path / "places.csv") == manifest


def test_geoparquet(tmp_path: Path) -> None:
    west = {**PLACE, "id": "w", "lat": -33.0, "lon": -70.5}
    Manifest.from_rows(tmp_path, [PLACE, west], [PHOTO]).save()
    table = pq.read_table(tmp_path / "places.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"][geo["primary_column"]] == {
        "encoding": "WKB",
        "geometry_types": ["Point"],
        "bbox": [-70.5, -33.0, 13.4, 52.5],
    }
    wkb = table["geometry"][0].as_py()
    assert wkb == b"\x01" + np.uint32(1).tobytes() + np.float64(13.4).tobytes() + np.float64(52.5).tobytes()
    assert pq.read_table(tmp_path / "photos.parquet")["geometry"].null_count == 1


def test_geometry_of_other_tools(tmp_path: Path) -> None:
    """A table with a geometry column and no lat and lon, as geopandas writes it."""
    points = [b"\x00" + b"\x00\x00\x00\x01" + np.array([13.4, 52.5], ">f8").tobytes()]
    table = pa.table({"id": ["a"], "satellite": ["a.jpg"], "place": pa.array(points, pa.binary())})

    def write(column: dict[str, Any], points: list[bytes] = points) -> None:
        geo = {"version": "1.1.0", "primary_column": "place", "columns": {"place": column}}
        changed = table.set_column(2, "place", pa.array(points, pa.binary()))
        pq.write_table(changed.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "places.parquet")

    for crs in ({}, {"crs": {"id": {"authority": "EPSG", "code": 4326}}}):
        write({"encoding": "WKB", **crs})
        manifest = Manifest.load(tmp_path)
        assert (manifest.place(0)["lat"], manifest.place(0)["lon"]) == (52.5, 13.4)
        assert "place" not in manifest.places.column_names
    for crs in ({"crs": None}, {"crs": {"id": {"authority": "EPSG", "code": 25833}}}):
        write({"encoding": "WKB", **crs})
        with pytest.raises(ManifestError, match="another crs"):
            Manifest.load(tmp_path)
    write({"encoding": "WKB"}, [b"\x01\x03"])
    with pytest.raises(ManifestError, match="row 1, column place: expected a point"):
        Manifest.load(tmp_path)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    places = [
        {**PLACE, "lat": 91.0, "lon": float("nan")},
        {**PLACE, "satellite": "../x.jpg", "metres_per_pixel": 0.0},
        {"id": "c", "lat": None, "lon": 181, "satellite": None},
        {**PLACE, "id": "d", "lat": "north", "street_lat": 3.0, "street_date": "4.5.2021", "street_views": ["a", "b"]},
        {**PLACE, "id": "e", "street_views": ["a", "b", None, "/etc/passwd"], "calibration_status": "fine"},
        {**PLACE, "id": "", "calibration_status": "known", "street_column0_deg": -1.0},
    ]
    photos = [
        {**PHOTO, "image": None, "heading_deg": 361.0, "fov_deg": 0.0, "split": "dev"},
        {"id": None, "image": "a", "lat": 1.0, "place": "zz"},
    ]
    found = problems_of(tmp_path, places, photos)
    expected = [
        "places, row 1, column lat: expected a latitude from -90 to 90, got 91",
        "places, row 1, column lon: expected a longitude from -180 to 180, got nan",
        "places, row 2, column id: 'a' is the id of row 1 too",
        "places, row 2, column satellite: '../x.jpg' goes up by ..; paths stay below the manifest's folder",
        "places, row 2, column metres_per_pixel: expected metres above 0, got 0",
        "places, row 3, column lat: is empty",
        "places, row 3, column lon: expected a longitude from -180 to 180, got 181",
        "places, row 3, column satellite: there is no image: expected satellite, street or street_views",
        "places, row 4, column lat: expected a number, got 'north'",
        "places, row 4, column street_lon: is empty, but street_lat is given",
        "places, row 4, column street_date: expected a date as YYYY-MM-DD, got '4.5.2021'",
        "places, row 4, column street_views: expected four paths, of the views at headings 0, 90, 180, 270, got 2",
        "places, row 5, column street_views: one of the four paths is empty",
        "places, row 5, column street_views: '/etc/passwd' is absolute; paths are relative to the manifest's folder",
        "places, row 5, column calibration_status: "
        "expected one of 'known', 'measured', 'low quality', 'none', got 'fine'",
        "places, row 5, column calibration_status: 'fine', but no heading of column 0 is given",
        "places, row 6, column id: is empty",
        "places, row 6, column street_column0_deg: expected degrees from 0 up to 360, got -1",
        "photos, row 1, column image: is empty",
        "photos, row 1, column heading_deg: expected degrees from 0 up to 360, got 361",
        "photos, row 1, column fov_deg: expected degrees above 0, at most 360, got 0",
        "photos, row 1, column split: expected one of 'train', 'val', 'test', got 'dev'",
        "photos, row 2, column id: is empty",
        "photos, row 2, column lon: is empty, but lat is given",
        "photos, row 2, column place: there is no place 'zz'",
    ]
    assert sorted(found) == sorted(expected)


def test_every_problem_of_a_csv_is_listed(tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text('id,lat,satellite\na,1_0,s.jpg\n"b\nb",5,"s.jpg",x\na,1,s.jpg\n')
    (tmp_path / "photos.csv").write_text("id,image,id\n1,a.jpg,1\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.load(tmp_path)
    assert {str(problem) for problem in caught.value.problems} == {
        *(f"places.csv, row {row}, column lon: is empty" for row in (1, 2, 3)),
        "places.csv, row 1, column lat: expected a number, got '1_0'",
        "places.csv, row 2: expected 3 cells as in the header, got 4",
        "places.csv, row 2, column id: has a control character in it",
        "places.csv, row 3, column id: 'a' is the id of row 1 too",
        "photos.csv, column id: more than one column of this name",
    }


def test_the_message_stays_readable(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_rows(tmp_path, [{**PLACE, "id": str(i), "lat": 95.0} for i in range(1000)], [])
    assert len(caught.value.problems) == 1000
    assert str(caught.value).startswith("the manifest has 1000 problems\n  places, row 1, column lat")
    assert str(caught.value).endswith("and 980 more")
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"\x00" * 1000])
def test_broken_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "places.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match=r"places.parquet: is not a readable Parquet file"):
        Manifest.load(tmp_path)


def test_altered_parquet_is_a_typed_error_or_a_valid_manifest(tmp_path: Path) -> None:
    Manifest.from_rows(tmp_path, [PLACE, FULL_PLACE], [FULL_PHOTO]).save()
    good = (tmp_path / "places.parquet").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(150):
        bad = bytearray(good)
        if trial % 2:
            bad = bad[: int(rng.integers(len(good)))]
        else:
            for at in rng.integers(len(good), size=3):
                bad[at] ^= int(rng.integers(1, 256))
        (tmp_path / "places.parquet").write_bytes(bad)
        try:
            Manifest.load(tmp_path)
        except ManifestError as error:
            assert error.problems  # noqa: PT017


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"id,lat,lon,satellite\n\xff\xfe,1,1,a", "expected UTF-8 text, got other bytes in line 2"),
        (b'id,lat,lon,satellite\na,1,1,"unclosed', "line 2: unexpected end of data"),
        (b"", "column id: is missing"),
        (b"id,lat,lon,satellite\na,1,1," + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_broken_csv(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "places.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=match):
        Manifest.load(tmp_path)


def test_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    text = '\ufeffid,lat,lon,satellite,note\r\na,1.5,2,s.jpg,"x, y"\r\n\r\nb,-1,2,s.jpg,\r\n'
    (tmp_path / "places.csv").write_bytes(text.encode())
    manifest = Manifest.load(tmp_path)
    assert manifest.places["id"].to_pylist() == ["a", "b"]
    assert manifest.places["note"].to_pylist() == ["x, y", None]


def test_heading_of_360_is_north(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [{**PLACE, "street_column0_deg": -1e-17 % 360}], [])
    assert manifest.place(0)["street_column0_deg"] == 0.0


def test_replace_checks(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [PLACE], [{**PHOTO, "place": "a"}])
    with pytest.raises(ManifestError, match="there is no place 'a'"):
        manifest.replace(places=manifest.places.slice(0, 0))


UNSAFE = [
    "", "/etc/passwd", "../a", "a/../../b", "a/..", "..", "a\\b", "C:/a", "c:a", "http://x/a.jpg", "a\x00b", "a\nb",
    "a.tar::/b", "a.tar::../b", "a.tar::b/../../c", "a.tar::", "::a", "a.zip::b", "a::b", "a.tar::b::c", "/a.tar::b",
    "tar::b",
]  # fmt: skip
SAFE = [
    "a", "a/b.jpg", "a..b/c...jpg", "@0486.06@5430@.jpg", "satellite_41.8_-87.6.png", "x,41.8,-87.6,.jpg", "é/ü.jpg",
    "a.tar::b", "d/a.tar::b/c.jpg", "./a", "..a/b", ".tar::b",
]  # fmt: skip


def test_unsafe_paths(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [{**PLACE, "id": path, "satellite": path} for path in SAFE], [])
    for path in UNSAFE:
        assert unsafe_path_reason(path), path
        with pytest.raises(ImageError, match="the path"):
            manifest.open_image(path)
        with pytest.raises(ManifestError) as caught:
            Manifest.from_rows(tmp_path, [{**PLACE, "satellite": path}], [])
        assert len(caught.value.problems) == 1, path  # Arrow's expressions agree with Python's
    for path in SAFE:
        assert unsafe_path_reason(path) is None, path


def test_open_image_stays_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"bytes of " + folder.name.encode())
    (root / "out.jpg").symlink_to(outside / "a.jpg")
    (root / "folder").symlink_to(outside)
    (root / "in.jpg").symlink_to("a.jpg")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    storage = pickle.loads(pickle.dumps(Storage(root)))
    assert storage.read("a.jpg") == storage.read("in.jpg") == storage.read("./a.jpg") == b"bytes of root"
    for path in ("out.jpg", "folder/a.jpg"):
        with pytest.raises(ImageError, match="a symbolic link leads out"):
            storage.read(path)
    for path, reason in (("pipe", "not a plain file"), (".", "not a plain file"), ("b.jpg", "no such file")):
        with pytest.raises(ImageError, match=reason):
            storage.read(path)
    with pytest.raises(ImageError):
        storage.read("loop")
    # The manifest's folder itself may be a link.
    (tmp_path / "link").symlink_to(root)
    assert Storage(tmp_path / "link").read("a.jpg") == b"bytes of root"


def test_tar_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as shard:

        def add(name: str, content: bytes = b"", **attributes: Any) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in attributes.items():
                setattr(entry, key, value)
            shard.addfile(entry, io.BytesIO(content))

        add("./a.jpg", b"first")
        add("d/" + "long" * 60 + ".jpg", b"second")
        add("link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard", type=tarfile.LNKTYPE, linkname="a.jpg")
        add("device", type=tarfile.CHRTYPE)
        add("../up.jpg", b"up")
        add("/absolute.jpg", b"absolute")
    storage = Storage(tmp_path)
    assert storage.read("s.tar::a.jpg") == b"first"
    assert storage.read("s.tar::d/" + "long" * 60 + ".jpg") == b"second"
    for name in ("link", "hard", "device", "none"):
        with pytest.raises(ImageError, match=f"s.tar::{name}: s.tar has no plain file"):
            storage.read(f"s.tar::{name}")
    content = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(content[:700])  # another file now: the old table of contents is not used
    with pytest.raises(ImageError, match=r"not a readable tar|cut off|no plain file"):
        storage.read("s.tar::d/" + "long" * 60 + ".jpg")
    (tmp_path / "t.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(ImageError, match="not a readable tar file"):
        storage.read("t.tar::a")


def test_oversize_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="at most"):
        Storage(tmp_path).read("huge.jpg")


def test_validate_images(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [PLACE], [PHOTO])
    assert manifest.validate() == []
    found = [str(problem) for problem in manifest.validate(images=True)]
    assert found == [
        "places.parquet, row 1, column satellite: sat/a.jpg: there is no such file",
        "photos.parquet, row 1, column image: photos/p.jpg: there is no such file",
    ]


def test_validate_images_knows_panoramas(tmp_path: Path) -> None:
    for name, size in (("square", (128, 128)), ("sphere", (128, 64)), ("photo", (64, 48))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    places = [{**PLACE, "id": name, "satellite": None, "street": f"{name}.png"} for name in ("square", "sphere")]
    photos = [
        {"id": f"{name} {fov:g}", "image": f"{name}.png", "fov_deg": fov}
        for name, fov in (("photo", 90.0), ("photo", 360.0), ("sphere", 360.0), ("square", 200.0))
    ]
    assert [str(problem) for problem in Manifest.from_rows(tmp_path, places, photos).validate(images=True)] == [
        "places.parquet, row 1, column street: square.png: 128 x 128 pixels are no panorama of the whole circle",
        "photos.parquet, row 2, column image: photo.png: 64 x 48 pixels are no panorama of the whole circle",
        "photos.parquet, row 4, column image: square.png: 128 x 128 pixels are no panorama of 200 degrees",
    ]


def test_a_text_that_stands_in_every_row_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    rows = 40
    huge = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 1_000_000]))
    number = pa.array(np.zeros(rows))
    table = pa.table({"id": huge, "lat": number, "lon": number})
    pq.write_table(table, tmp_path / "places.parquet", use_dictionary=["id"])
    with pytest.raises(ManifestError, match="column id: a text of 1000000 bytes; at most 65536 are read"):
        Manifest.load(tmp_path)
