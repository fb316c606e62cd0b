"""The gate for models: pairs, turns, floors, the bootstrap, and the log of looks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from geoloc_fast.city.views import make_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ManifestError
from geoloc_fast.evaluation import gate
from geoloc_fast.images.decode import fit_panorama
from geoloc_fast.models.layered import Layered, LayeredConfig


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Panoramas and satellite images of the same day's light are easy; these are of different days."""
    root = tmp_path_factory.mktemp("pairs")
    views = make_city(5, places=8, satellite_px=128, panorama_size=(128, 512), photo_size=(16, 16))
    places, photos = [], []
    for n in range(8):
        # Stored turned by some columns, so that a wrong sign of the heading cannot hide.
        turned = np.roll(views.panorama[n], 16 * n, axis=1)
        cv2.imwrite(str(root / f"{n}.s.png"), views.satellite[n][..., ::-1])
        cv2.imwrite(str(root / f"{n}.p.png"), turned[..., ::-1])
        places.append({"id": f"p{n}", "lat": 50.0 + n, "lon": 0.0, "city": "x", "satellite": f"{n}.s.png"})
        photos.append(
            {"id": f"q{n}", "image": f"{n}.p.png", "city": "x", "place": f"p{n}", "fov_deg": 360.0,
             "heading_deg": (-360 / 512 * 16 * n) % 360}
        )  # fmt: skip
    manifest = Manifest.from_rows(root, places, photos)
    manifest.save()
    return manifest


@pytest.fixture(scope="module")
def pairs(manifest: Manifest) -> gate.Pairs:
    return gate.Pairs(manifest)


def test_panoramas_are_turned_to_one_frame(pairs: gate.Pairs) -> None:
    views = make_city(5, places=8, satellite_px=128, panorama_size=(128, 512), photo_size=(16, 16))
    for n, image in enumerate(pairs.panoramas((128, 512))):
        assert np.array_equal(image, fit_panorama(views.panorama[n], (128, 512)))
    cut = pairs.cuts((128, 512), 90)[3]
    start = round(pairs.headings_deg[3] * 512 / 360)
    assert np.array_equal(cut, np.roll(views.panorama[0], -start, 1)[:, :128])


def test_hand_made_features_find_heading_and_place_in_easy_pairs(pairs: gate.Pairs) -> None:
    curves = gate.hand_made(pairs)
    assert curves[90].shape == (8, gate.TURNS, 8, 32)
    # Of a synthetic city they know little, but more than chance: a mean log-rank of 1.33, a heading of one in eight.
    assert np.log(gate.ranks(curves)[:, 0]).mean() < 1.2
    assert gate.headings_right(curves, pairs.headings_deg)[0] > 0.4


def test_frozen_features_of_random_weights_run(pairs: gate.Pairs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    safetensors.torch.save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.safetensors")
    curves = gate.frozen(pairs, str(tmp_path / "w.safetensors"))
    assert all(curve.isfinite().all() for curve in curves.values())
    both = gate.summed({"a": (1.0, curves), "b": (0.5, curves)})
    assert np.array_equal(gate.ranks(both), gate.ranks(curves))  # an order does not change by standardising


def test_ranks_and_headings_of_known_curves() -> None:
    curves = {fov: torch.zeros(2, 2, 3, 32) for fov in gate.FIELDS_DEG}
    for curve in curves.values():
        curve[0, 0, 0, 4] = 1.0  # right, at heading column 4
        curve[0, 1, 1, 9] = 2.0  # another is better
        curve[0, 1, 2, 9] = 1.5
        curve[1, :, 1, 16] = 1.0
    square = {fov: curve[:, :, :2] for fov, curve in curves.items()}
    assert gate.ranks(square).tolist() == [[[1, 2]] * 4, [[1, 1]] * 4]
    assert gate.headings_right(square, [4 * 360 / 32, 180.0]) == [0.5] * 4


def test_bootstrap_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(1, 20, (30, 1, 1))  # pairs differ more than models
    model, floor = np.tile(hard, (1, 4, 8)), np.tile(hard + 1, (1, 4, 8))
    better, worse = gate.compare(model, floor), gate.compare(floor, model)
    assert better.passes
    assert better.high < 0
    assert not worse.passes
    assert worse.worse == 1.0
    same = gate.compare(model, model)
    assert same.passes
    assert same.difference == 0
    with pytest.raises(ValueError, match="floor: expected ranks"):
        gate.compare(model, floor[:5])


def test_a_model_goes_through_and_the_look_is_logged(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = LayeredConfig(
        level_size=(64, 256), polar_size=(64, 256), channels=8, satellite_px=64, standpoints_m=((0.0, 0.0),)
    )
    Layered(config).save(tmp_path / "m.safetensors")
    monkeypatch.setattr(gate, "FROZEN", "package:none")
    looks = tmp_path / "looks.jsonl"
    arguments = ["gate", str(tmp_path / "m.safetensors"), "--pairs", str(manifest.root), "--looks", str(looks)]
    monkeypatch.setattr("sys.argv", [*arguments, "--floor", str(tmp_path / "m.safetensors")])
    for count in (1, 2):
        code = gate.main()
        shown = capsys.readouterr()
        assert "passes against m.safetensors: +0.000" in shown.out  # a model is not worse than itself
        assert code == ("FAILS" in shown.out)
        assert f"look {count} at these pairs" in shown.out
        assert "no frozen features" in shown.err
    assert len([json.loads(line) for line in looks.read_text().splitlines()]) == 2


def test_too_few_pairs(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="at least 5 panoramas"):
        gate.Pairs(manifest.replace(photos=manifest.photos.slice(0, 4)))
