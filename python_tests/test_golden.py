"""What the shipped model makes of ten places and ten photos, what the demonstration answers, and what three steps of
training lose. Numbers of `golden.json` change only in a commit that says so and why:

    python python_tests/test_golden.py > python_tests/golden.json
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.cli.run import app
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.demo import summary
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.backbones import backbone
from geoloc_fast.models.contract import load_model
from geoloc_fast.region.encode import build_index, encode_places

HERE = Path(__file__).resolve().parent
TRAIN = HERE.parent / "train"
CHECKOUT = pytest.mark.checkout
PROJECTIONS = 6
DEMO = ("--places", "16", "--photos", "10", "--seed", "20000")


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """Features in float32 on every processor."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backbone, "_BF16", False)
        yield


def projected(strips: torch.Tensor) -> list[list[float]]:
    """Every strip on fixed random directions: short, and any change of a value shows."""
    flat = strips.reshape(len(strips), -1).double().numpy()
    directions = np.random.default_rng(0).standard_normal((flat.shape[1], PROJECTIONS))
    return [[round(float(value), 5) for value in row] for row in flat @ directions]


def made_region(folder: Path) -> Manifest:
    sizes = Sizes(satellite_px=128, panorama=(64, 256), photo=(96, 128))
    return write_city(folder, seed=11, cities=1, places=10, sizes=sizes, jobs=1)


def golden_strips(folder: Path) -> dict[str, Any]:
    manifest, model = made_region(folder / "region"), load_model()
    (part,) = encode_places(model, manifest)
    build_index(folder / "index", model, manifest, dtype="fp32")
    photos = []
    for answer in Locator(PlaceIndex.open(folder / "index"), model).locate(
        [manifest.root / name for name in manifest.photos["image"].to_pylist()[:10]], candidates=1
    ):
        first = answer.candidates[0]
        photos.append([first.place, round(first.score, 5), round(first.heading_deg or 0.0, 3)])
    places = {}
    for name, rows in part.layers.items():
        assert rows.place is not None
        places[name] = projected(rows.strips[np.unique(rows.place, return_index=True)[1]])  # the first row of each
    return {"places": places, "photos": photos}


def demonstrated(out: Path) -> dict[str, Any]:
    """What the command prints."""
    done = CliRunner().invoke(app, ["demo", "--out", str(out), *DEMO, "--json"])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def golden_demo(out: Path) -> list[list[float]]:
    features = json.loads((out / "predictions.geojson").read_text())["features"]
    return [
        [
            feature["properties"]["place"],
            feature["properties"]["score"],
            feature["properties"]["heading_deg"],
            *feature["geometry"]["coordinates"],
        ]
        for feature in features
    ]


def golden_losses(folder: Path) -> list[float]:
    from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, read_settings
    from geoloc_fast.training.trainer import Trainer

    region = folder / "region"
    if not region.is_dir():
        made_region(region)
    network = {
        "backbone": "convnext_atto",
        "backbone_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 32], "ls_init_value": None},
        "image_size": [32, 128],
        "strip": [8, 2, 8],
        "satellite_px": 96,
    }
    settings = read_settings(
        [
            {
                "out": str(folder / "run"),
                "model": network,
                "data": {"manifest": str(region), "train": {"area": "train"}},
                "step": {"bf16": False},
                "train": {
                    "steps": 3,
                    "batch": 4,
                    "log_every": 1,
                    "warmup": 1,
                    "evaluate_every": 0,
                    "device": "cpu",
                },
            }
        ]
    )
    Trainer(GeolocalizerRecipe(settings)).run()
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [round(line["loss"], 6) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
    return found


@CHECKOUT
def test_strips_and_answers(tmp_path: Path, golden: dict[str, Any], one_thread: None) -> None:
    found = golden_strips(tmp_path)
    for name, strips in found["places"].items():
        np.testing.assert_allclose(strips, golden["strips"]["places"][name], atol=2e-3)
    expected = golden["strips"]["photos"]
    assert [row[0] for row in found["photos"]] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1:] for row in found["photos"]], [row[1:] for row in expected], atol=2e-3)


@CHECKOUT
@pytest.mark.skipif(not TRAIN.is_dir(), reason="not in a checkout: there are no scripts to train with")
def test_losses_of_three_steps(tmp_path: Path, golden: dict[str, Any], one_thread: None) -> None:
    np.testing.assert_allclose(golden_losses(tmp_path), golden["losses"], atol=1e-4)


# --- the demonstration -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demonstration(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the command prints, and the folder it writes."""
    out = tmp_path_factory.mktemp("demo")
    return demonstrated(out), out


@CHECKOUT
def test_its_answers(demonstration: tuple[dict[str, Any], Path], golden: dict[str, Any]) -> None:
    found, expected = np.array(golden_demo(demonstration[1])), np.array(golden["demo"])
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    np.testing.assert_allclose(found[:, 1:3], expected[:, 1:3], atol=2e-2)
    np.testing.assert_allclose(found[:, 3:], expected[:, 3:], atol=1e-6)


def test_it_locates_far_above_chance(demonstration: tuple[dict[str, Any], Path]) -> None:
    metrics, _ = demonstration
    assert metrics["city"]["photos"] == 10
    chance = metrics["chance_recall_at_1"]
    for key in ("field_of_view_unknown", "field_of_view_known"):
        recall = metrics[key]
        assert recall["recall_at_1"] > 5 * chance
        assert recall["recall_at_1"] <= recall["recall_at_5"] <= recall["recall_at_10"] <= 1
        assert abs(recall["answers"]["heading_error_deg_when_right"]["mean"]) < 15


def test_it_writes_geojson_with_longitude_first(demonstration: tuple[dict[str, Any], Path]) -> None:
    metrics, out = demonstration
    assert json.loads((out / "metrics.json").read_text()) == metrics
    collection = json.loads((out / "predictions.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == 10
    for feature in collection["features"]:
        lon, lat = feature["geometry"]["coordinates"]
        properties = feature["properties"]
        assert abs(lat - properties["true_lat"]) < 0.1
        assert abs(lon - properties["true_lon"]) < 0.1
        assert 0 <= properties["heading_deg"] < 360


def test_it_writes_a_report_of_a_sane_size(demonstration: tuple[dict[str, Any], Path]) -> None:
    page = (demonstration[1] / "report.html").read_text()
    assert len(page) < 6 << 20
    assert page.count('<article class="card"') == 10
    for picture in ("photo", "matched place", "street view", "satellite, polar"):
        assert page.count(f'<img alt="{picture}" src="data:image/webp;base64,') == 10
    assert '"image_url"' in page or "ImageURL" in page  # the map has its background


README = HERE.parent / "README.md"


@pytest.mark.checkout
@pytest.mark.skipif(not README.exists(), reason="not in a checkout: there is no README to compare with")
def test_the_readme_shows_what_it_prints(demonstration: tuple[dict[str, Any], Path]) -> None:
    (shown,) = re.findall(r"```\n(Synthetic city .*?)```", README.read_text(), re.DOTALL)

    def skeleton(text: str) -> list[str]:
        return [re.sub(r"[+-]?\d+(\.\d+)?", "#", " ".join(line.split())) for line in text.strip().splitlines()]

    printed = f"{summary(demonstration[0])}\nWritten to demo: predictions.geojson, metrics.json, report.html, "
    printed += "index, region\n\nNext: geoloc-fast locate demo/region/city/photo/city-00005.jpg --index demo/index"
    said = skeleton(printed)
    assert [line for line in skeleton(shown) if not line.startswith("Answered")] == [
        line for line in said if not line.startswith("Answered")
    ]
    assert sum(line.startswith("Answered #% of the photos (#% correctly)") for line in skeleton(shown)) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    backbone._BF16 = False
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        with contextlib.redirect_stdout(sys.stderr):  # training says how far it is
            demonstrated(at / "demo")
        found = {"strips": golden_strips(at), "demo": golden_demo(at / "demo"), "losses": golden_losses(at)}
    print(json.dumps(found, indent=1))
