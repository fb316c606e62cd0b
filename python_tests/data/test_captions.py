"""Descriptions of places: a CSV, and the published data sets of images with descriptions."""

import json
from pathlib import Path

import pytest

from geoloc_fast.data.captions import Caption, add_captions, captions_of, read_captions
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.data.readers import read
from geoloc_fast.errors import ManifestError


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8\xff")  # readers look at names alone
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [{"id": name, "lat": 1.0, "lon": 2.0 + n, "satellite": f"{name}.jpg"} for n, name in enumerate("abc")]
    return Manifest.from_rows(tmp_path, rows, [])


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_csv_brings_descriptions_to_any_region(manifest: Manifest, tmp_path: Path, form: str) -> None:
    assert captions_of(manifest) == []
    path = tmp_path / "captions.csv"
    path.write_text('\ufeffplace,who,text\nb,me,"a church, red roof; ""old"""\na,me,a park\nb,you,une église\n')
    found = add_captions(manifest, path)
    want = [Caption(0, "a park"), Caption(1, 'a church, red roof; "old"'), Caption(1, "une église")]
    assert captions_of(found) == want
    found.save(format=form)
    assert captions_of(Manifest.load(tmp_path)) == want
    again = add_captions(Manifest.load(tmp_path), path)  # beside those that are there
    assert [caption.place for caption in captions_of(again)] == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\na,b\n", "captions.csv, column place: expected the columns place and text, got id, text"),
        ("", "expected the columns place and text, got "),
        ("place,text\na,\n", "row 1, column text: expected a description"),
        ("place,text\n,words\n", "row 1, column place: expected the id"),
        ("place,text\nz,words\n", "row 1, column place: there is no place 'z'"),
        ('place,text\na,"words\n', "expected a CSV in UTF-8"),
        (b"place,text\na,\xff\xfe\n", "expected a CSV in UTF-8"),
        ("place,text\na," + "x" * 200_000, "field larger than field limit"),
    ],
)
def test_what_is_wrong_in_a_csv_is_said(manifest: Manifest, tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError, match=message):
        add_captions(manifest, path)


def test_a_column_that_is_no_list_of_texts(tmp_path: Path) -> None:
    for cell in ("not json", "[1]", '{"a": 1}'):
        row = {"id": "a", "lat": 1.0, "lon": 2.0, "satellite": "a.jpg", "captions": cell}
        with pytest.raises(ManifestError, match="row 1, column captions: expected a list of texts"):
            captions_of(Manifest.from_rows(tmp_path, [row], []))
    with pytest.raises(FileNotFoundError):
        read_captions(tmp_path / "none.csv")


def test_cvg_text(tmp_path: Path) -> None:
    names = ["40.70,-73.95_2019-06_abc_d90_z2.png", "40.71,-73.96_2020-01_x_d0_z1.png"]
    for version in ("NewYork", "NewYork-photos"):
        folder = tmp_path / "annotation" / version
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps({names[0]: f"a wide road ({version})"}))
        (folder / "test.json").write_text(json.dumps({names[1]: "a park", "no position.png": "a shop"}))
        for name in names:
            image(tmp_path / f"{version}-satellite" / name)
    with pytest.warns(UserWarning, match="2 of 6 descriptions are left out"):
        found = read("cvg-text", tmp_path)
    rows = found.places.to_pylist()
    assert [(row["city"], row["split"]) for row in rows] == [("NewYork", "train"), ("NewYork", "test")] * 2
    assert (rows[0]["lat"], rows[0]["lon"], rows[0]["satellite"]) == (40.7, -73.95, f"NewYork-satellite/{names[0]}")
    assert abs(rows[0]["metres_per_pixel"] - 0.1132) < 1e-4
    assert next(caption.text for caption in captions_of(found)) == "a wide road (NewYork)"
    with pytest.raises(ManifestError, match="annotation: expected this folder"):
        read("cvg-text", tmp_path / "annotation")


def test_rsicd(tmp_path: Path) -> None:
    image(tmp_path / "RSICD_images" / "airport_1.jpg")
    sentences = [{"raw": "many planes are parked ."}, {"raw": "an airport ."}, {"raw": "an airport ."}]
    entry = {"filename": "airport_1.jpg", "split": "val", "sentences": sentences}
    told = tmp_path / "dataset_rsicd.json"
    told.write_text(json.dumps({"images": [entry, entry | {"filename": "gone.jpg"}]}))
    with pytest.warns(UserWarning, match="1 of 2 images"):
        found = read("rsicd", tmp_path)
    assert captions_of(found) == [Caption(0, "many planes are parked ."), Caption(0, "an airport .")]
    assert found.places["split"].to_pylist() == ["val"] and found.places["lat"].null_count == 1
    for broken in ("[]", "{", '{"images": [{"filename": "a.jpg"}]}', '{"images": 3}'):
        told.write_text(broken)
        with pytest.raises(ManifestError, match=r"dataset_rsicd\.json"):
            read("rsicd", tmp_path)


def test_geotext(tmp_path: Path) -> None:
    drone, satellite = "train/drone/0001/image-01.jpg", "test/satellite/0002/0002.jpg"
    for name in (drone, satellite):
        image(tmp_path / name)
    (tmp_path / "train.json").write_text(
        json.dumps([{"image_id": "1", "image": drone, "caption": ["a hall", "a lawn"], "bbox": []}])
    )
    (tmp_path / "test_951_version.json").write_text(
        json.dumps(
            [
                {"image_id": "2", "image": satellite, "caption": "a round building"},
                {"image_id": "2", "image": satellite, "caption": "trees round it"},
            ]
        )
    )
    found = read("geotext", tmp_path)
    by_image = {row["satellite"]: row for row in found.places.to_pylist()}
    assert by_image[drone]["captions"] == ["a hall", "a lawn"] and by_image[drone]["platform"] == "drone"
    assert by_image[satellite]["captions"] == ["a round building", "trees round it"]
    assert by_image[satellite]["split"] == "test" and by_image[satellite]["platform"] == "satellite"
    (tmp_path / "train.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(ManifestError, match=r"train\.json, row 1: expected image and caption"):
        read("geotext", tmp_path)
