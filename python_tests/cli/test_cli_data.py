"""From a folder of photos to a contact sheet, by commands: what they print, write, refuse, and exit with."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from geoloc_fast import cli
from geoloc_fast.data.manifest import Manifest

LAT, LON = 52.5, 13.4


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The installed command's function in this process: what a person sees, without starting Python for each."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["geoloc-fast", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    return run


def picture(path: Path, size: tuple[int, int] = (80, 60), at: tuple[float, float] | None = None) -> None:
    """A textured image with, if asked for, a position in its EXIF block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = np.random.default_rng(len(path.name)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC))
    exif = Image.Exif()
    if at is not None:
        exif.get_ifd(0x8825).update({1: "N", 2: (at[0], 0.0, 0.0), 3: "E", 4: (at[1], 0.0, 0.0), 16: "T", 17: 45.0})
    image.save(path, exif=exif)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """What docs/guide/data.md tells people to gather: two places as CSV, and photos with positions."""
    root = tmp_path / "region"
    for n in range(2):
        picture(root / f"satellite/{n}.jpg", (128, 128))
        picture(root / f"street/{n}.jpg", (256, 64))
    picture(root / "photos/near.jpg", at=(LAT, LON + 0.0001))
    picture(root / "photos/far.jpg", at=(LAT + 0.1, LON))
    picture(root / "photos/nowhere.jpg")
    rows = [f"{n},{LAT + 0.001 * n},{LON},satellite/{n}.jpg,0.39,street/{n}.jpg" for n in range(2)]
    (root / "places.csv").write_text("\n".join(["id,lat,lon,satellite,metres_per_pixel,street", *rows]) + "\n")
    return root


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_region_from_photos_to_a_sheet(run: Run, region: Path, tmp_path: Path) -> None:
    done = run("read", "photos", region / "photos", region, "--assign", 25)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"2 places and 3 photos, 2 of them without a place in {region}\n"
    assert sorted(path.name for path in region.iterdir() if path.is_file()) == ["photos.parquet", "places.csv"]
    manifest = Manifest.load(region)
    assert manifest.validate(images=True) == []
    assert dict(zip(*(manifest.photos[name].to_pylist() for name in ("image", "place")), strict=True)) == {
        "photos/near.jpg": "0", "photos/far.jpg": None, "photos/nowhere.jpg": None
    }  # fmt: skip

    done = run("prepare", region, tmp_path / "ready", "--workers", 1)
    assert done.code == 0 and done.out.startswith(f"2 places and 3 photos are ready in {tmp_path / 'ready'}\n")
    before = tree(tmp_path / "ready")
    assert run("prepare", region, tmp_path / "ready", "--workers", 1).code == 0, "goes on with what is complete"
    assert tree(tmp_path / "ready") == before

    for source, name in ((region, "raw.png"), (tmp_path / "ready", "ready.jpg")):
        done = run("show", source, "--out", tmp_path / name, "--places", 2)
        assert (done.code, done.out, done.err) == (0, f"Written to {tmp_path / name}\n", "")
    one = run("show", region, "--out", tmp_path / "one.png", "--id", "1")
    assert one.code == 0
    heights = [cv2.imread(str(tmp_path / name)).shape[0] for name in ("raw.png", "ready.jpg", "one.png")]
    assert heights[0] == heights[1] == 2 * heights[2] + 2


def test_csv_and_parquet_convert_into_each_other(run: Run, region: Path) -> None:
    original = Manifest.load(region)
    refused = run("read", "manifest", region)
    assert refused.code == 1 and "places.csv: exists already" in refused.err
    assert run("read", "manifest", region, "--replace").out == f"2 places and 0 photos in {region}\n"
    assert (region / "places.csv.old").exists() and not (region / "places.csv").exists()
    assert Manifest.load(region) == original
    assert run("read", "manifest", region / "places.parquet", "--format", "csv", "--replace").code == 0
    assert (region / "places.csv").exists() and not (region / "places.parquet").exists()
    assert Manifest.load(region) == original
    # Into a folder above: every path is prefixed.
    assert run("read", "manifest", region, region.parent).code == 0
    above = Manifest.load(region.parent)
    assert above.place(1)["street"] == "region/street/1.jpg" and above.validate(images=True) == []


def test_reading_says_what_it_leaves_out(run: Run, tmp_path: Path) -> None:
    for split, number in (("train", 1), ("val", 2)):
        picture(tmp_path / f"bingmap/19/{number:07d}.jpg", (96, 96))
        picture(tmp_path / f"streetview/panos/{number:07d}.jpg", (1232 // 4, 224 // 4))
        (tmp_path / "splits").mkdir(exist_ok=True)
        line = f"bingmap/19/{number:07d}.jpg,streetview/panos/{number:07d}.jpg,a.png\n"
        (tmp_path / f"splits/{split}-19zl.csv").write_text(line)
    assert run("read", "cvusa", tmp_path).out == f"2 places and 2 photos in {tmp_path}\n"
    # The photos are panoramas: prepared as such, from the command line too.
    done = run("prepare", tmp_path, tmp_path.parent / "ready-cvusa", "--workers", 1)
    assert done.code == 0 and "2 places and 2 photos are ready" in done.out
    assert Manifest.load(tmp_path.parent / "ready-cvusa").photos["strip_fov_deg"].to_pylist() == [360.0, 360.0]

    folder = tmp_path / "mine"
    picture(folder / "good.jpg")
    (folder / "broken.jpg").write_text("no image")
    done = run("read", "photos", folder)
    assert (done.code, done.err) == (0, "geoloc-fast read: 1 of 2 photos cannot be read: broken.jpg\n")
    done = run("read", "utm-names", folder)
    assert done.code == 1 and done.err.splitlines() == [
        "geoloc-fast: the manifest has 2 problems",
        "  broken.jpg: expected a name of the form @easting@northing@...@.jpg",
        "  good.jpg: expected a name of the form @easting@northing@...@.jpg",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["read", "flickr", "."], 2, "KIND: expected manifest, tiles, .*photos, .*got 'flickr'"),
        (["read", "photos", ".", "--zone", "50"], 2, "--zone means nothing to photos"),
        (["read", "manifest", ".", "--panoramas"], 2, "--panoramas means nothing to manifest"),
        (["read", "msgd", "."], 2, "msgd needs --zone"),
        (["read", "photos", ".", "--format", "xlsx"], 2, "--format: expected parquet or csv, got 'xlsx'"),
        (["read", "photos", ".", "--assign", "-1"], 2, "assign"),
        (["read", "photos", "nowhere"], 1, "expected the folder of a data set, got 'nowhere'"),
        (["read", "photos", "empty"], 1, "no places and no photos"),
        (["read", "photos", "photos", "empty"], 1, "expected photos or a folder above it"),
        (["read", "manifest", "empty"], 1, "no places.parquet"),
        (["prepare", "empty", "out"], 1, "no places.parquet"),
        (["prepare", "photos"], 2, "Missing argument"),
        (["prepare", "photos", "out", "--method", "superpoint"], 2, "method: expected one of 'azimuth'"),
        (["prepare", "photos", "out", "--workers", "0"], 2, "workers"),
        (["prepare", "photos", "out", "--image-format", "gif"], 2, "image_format: expected 'jpeg' or 'png'"),
        (["prepare", "table", "table"], 1, "is the folder of the manifest itself"),
        (["prepare", "table", "photos"], 1, "is not empty, and holds no preparation to continue"),
        (["show", "empty"], 1, "no places.parquet"),
        (["show", "table"], 1, "the manifest has no places to show"),
        (["show", "table", "--out", "sheet.gif"], 2, "--out: expected a .png or .jpg file, got 'sheet.gif'"),
        (["show", "table", "--places", "0"], 2, "places"),
        (["city", "make"], 2, "Missing argument"),
        (["city", "make", "out", "--places", "0"], 2, "places"),
        (["city", "make", "out", "--seed", "-1"], 2, "seed"),
        (["city", "make", "file"], 1, "expected a folder, got the file"),
    ],
)
def test_what_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    picture(tmp_path / "photos/a.jpg")
    (tmp_path / "table").mkdir()
    (tmp_path / "table/photos.csv").write_text("id,image\na,a.jpg\n")
    before = tree(tmp_path)
    done = run(*arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert re.search(message, done.err), done.err
    assert tree(tmp_path) == before, "a refusal writes nothing"


@pytest.mark.parametrize("command", [["read"], ["prepare"], ["show"], ["synthesize"], ["city", "make"]])
def test_help_has_an_example_that_names_the_command(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.code == 0 and f"Example: geoloc-fast {' '.join(command)} " in " ".join(done.out.split())


def test_problems_of_a_manifest_are_a_list(run: Run, region: Path) -> None:
    (region / "places.csv").write_text("id,lat,lon,satellite\na,91,0,../x.jpg\na,0,nan,x.jpg\n")
    done = run("prepare", region, region.parent / "out")
    assert done.code == 1 and done.err.splitlines() == [
        "geoloc-fast: the manifest has 4 problems",
        "  places.csv, row 2, column id: 'a' is the id of row 1 too",
        "  places.csv, row 1, column lat: expected a latitude from -90 to 90, got 91",
        "  places.csv, row 2, column lon: expected a longitude from -180 to 180, got nan",
        "  places.csv, row 1, column satellite: '../x.jpg' goes up by ..; paths stay below the manifest's folder",
    ]
    assert not (region.parent / "out").exists()


def test_a_city_is_made_shown_and_not_mixed_with_another(run: Run, tmp_path: Path) -> None:
    make = ("city", "make", tmp_path / "city", "--places", 3, "--cities", 1, "--jobs", 1)
    done = run(*make, "--seed", 4)
    assert (done.code, done.out) == (0, f"3 places and 3 photos of 1 cities in {tmp_path / 'city'}\n")
    before = tree(tmp_path / "city")
    assert run(*make, "--seed", 4).code == 0 and tree(tmp_path / "city") == before
    other = run(*make, "--seed", 5)
    assert other.code == 1 and "expected the same recipe" in other.err and tree(tmp_path / "city") == before
    assert run("show", tmp_path / "city", "--out", tmp_path / "sheet.png").code == 0
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


def test_preparation_stopped_by_ctrl_c_goes_on_to_the_same_bytes(run: Run, region: Path, tmp_path: Path) -> None:
    rows = (region / "places.csv").read_text().splitlines()
    many = [f"{n}{rows[1 + n % 2][1:]}" for n in range(700)]
    (region / "places.csv").write_text("\n".join([rows[0], *many]) + "\n")
    options = ("--rows", "64", "--columns", "256", "--workers", "2")
    code = "from geoloc_fast.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "prepare", str(region), str(tmp_path / "cut"), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("places-*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "geoloc-fast: interrupted; no incomplete file was left" in err.splitlines()
    assert not (tmp_path / "cut/places.parquet").exists()
    for folder in ("cut", "whole"):
        assert run("prepare", region, tmp_path / folder, *options[:-1], 1).code == 0
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


DATA_MD = Path(__file__).resolve().parents[2] / "docs/guide/data.md"


@pytest.mark.checkout
def test_what_the_manual_says_to_do_works(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CSV and the commands of docs/guide/data.md as they stand there, on images of the names they give."""
    section = DATA_MD.read_text().split("## Your own region")[1].split("\n## ")[0]
    (table,) = re.findall(r"```csv\n(.*?)```", section, re.DOTALL)
    commands = re.findall(r"^ *geoloc-fast (.*)$", section, re.MULTILINE)
    assert len(commands) == 6
    monkeypatch.chdir(tmp_path)
    (tmp_path / "region").mkdir()
    (tmp_path / "region/places.csv").write_text(
        "".join(line.strip() + "\n" for line in table.splitlines() if line.strip())
    )
    for image in re.findall(r"(?:satellite|street)/\w+\.jpg", table):
        picture(tmp_path / "region" / image, (256, 256) if image.startswith("satellite") else (512, 128))
    picture(tmp_path / "region/photos/mine.jpg", at=(52.51911, 13.40212))
    for command in commands:
        done = run(*command.split())
        assert done.code == 0, (command, done.err)
    ready = Manifest.load("ready")
    assert ready.photos["place"].to_pylist() == ["cafe"] and ready.places["satellite"].null_count == 0
    assert ready.place(0)["calibration_status"] in ("measured", "low quality")
    assert (tmp_path / "sheet.jpg").exists() and (tmp_path / "city.jpg").exists()
    for picture_path in re.findall(r"\]\((\.\./pictures/[^)]+)\)", DATA_MD.read_text()):
        assert 10_000 < (DATA_MD.parent / picture_path).stat().st_size < 1_000_000


def test_torchvision_of_another_build_is_explained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("geoloc_fast.cli.run.app", broken)
    done = run("demo")
    assert done.code == 1 and "install both from the same index" in done.err
