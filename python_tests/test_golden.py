"""What the shipped model makes of ten places and ten photos, what the demonstration answers, and what three steps of
training lose. Numbers of `golden.json` change only in a commit that says so and why:

    python python_tests/test_golden.py > python_tests/golden.json
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geoloc_fast.city.views import Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.demo import run_demo
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.locator import Locator
from geoloc_fast.models.backbones import backbone
from geoloc_fast.models.contract import load_model, shipped_model
from geoloc_fast.region.encode import build_index, encode_places

HERE = Path(__file__).resolve().parent
TRAIN = HERE.parent / "train"
pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not TRAIN.is_dir(), reason="not in a checkout: there are no scripts to train with"),
]
PROJECTIONS = 6


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in float32 on every processor."""
    monkeypatch.setattr(backbone, "_BF16", False)


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


def golden_demo(folder: Path) -> list[list[float]]:
    run_demo(folder / "demo", model_path=shipped_model(), places=16, photos=10, seed=20_000)
    features = json.loads((folder / "demo" / "predictions.geojson").read_text())["features"]
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


def test_strips_and_answers(tmp_path: Path, golden: dict[str, Any], one_thread: None) -> None:
    found = golden_strips(tmp_path)
    for name, strips in found["places"].items():
        np.testing.assert_allclose(strips, golden["strips"]["places"][name], atol=2e-3)
    expected = golden["strips"]["photos"]
    assert [row[0] for row in found["photos"]] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1:] for row in found["photos"]], [row[1:] for row in expected], atol=2e-3)


def test_the_demonstration(tmp_path: Path, golden: dict[str, Any], one_thread: None) -> None:
    found = np.array(golden_demo(tmp_path))
    expected = np.array(golden["demo"])
    assert found[:, 0].tolist() == expected[:, 0].tolist()
    np.testing.assert_allclose(found[:, 1:3], expected[:, 1:3], atol=2e-2)
    np.testing.assert_allclose(found[:, 3:], expected[:, 3:], atol=1e-6)


def test_losses_of_three_steps(tmp_path: Path, golden: dict[str, Any], one_thread: None) -> None:
    np.testing.assert_allclose(golden_losses(tmp_path), golden["losses"], atol=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    backbone._BF16 = False
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        with contextlib.redirect_stdout(sys.stderr):  # training says how far it is
            found = {"strips": golden_strips(at), "demo": golden_demo(at), "losses": golden_losses(at)}
    print(json.dumps(found, indent=1))
