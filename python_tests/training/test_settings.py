"""Settings that are wrong are named, and those that ship are right."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import configured

from geoloc_fast.models import GeolocalizerConfig
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, read_settings


def test_wrong_settings_are_named(root: Path, region: Path, tmp_path: Path) -> None:
    for more, message in (
        ("train.stpes=3", "stpes"),
        ("train.steps=many", "train.steps=many"),
        ("step.loss.kind=hinge", "loss.kind: expected one of"),
        ("data.field_of_view=guessed", "data.field_of_view: expected"),
        ("data.field_of_view=mixed", "data.field_of_view: expected"),
        ("data.cut=0.2", r"data\.cut: expected 0\.0 without data\.in_memory"),
        ("data.street=orb", r"data\.street: expected 'known' without"),
        ("data.street=paved", r"data\.street: expected one of"),
        ("data.views=some", r"data\.views: expected one of"),
        ("train.log_every=0", r"train\.log_every: expected at least 1"),
        ("train.similar_every=-1", r"train\.similar_every: expected at least 0"),
        ("train.best=median_error_m", r"train\.best: expected one of recall_at_1, "),
        ("train.best=recall_at_7", r"train\.best: expected one of recall_at_1, "),
        ("step.chunk=-1", r"step\.chunk: expected at least 0"),
        ("step.without_panorama=2", r"step\.without_panorama: expected a share"),
        ("step.loss.cuts=-1", r"loss\.cuts: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            configured(region, tmp_path, more)
    with pytest.raises(ValueError, match="out: expected a value"):
        read_settings(["data.manifest=x"])
    (tmp_path / "broken.yaml").write_text("train: {steps: [")
    with pytest.raises(ValueError, match=r"broken\.yaml: "):
        configured(region, tmp_path, str(tmp_path / "broken.yaml"))
    (tmp_path / "broken.yaml").unlink()
    for more, message in (
        ("model.bakcbone=x", "model: expected settings"),
        ("model.backbone=nosuch", "model: expected a network that can be built, got RuntimeError: Unknown model"),
        ("model.backbone_kwargs={colour: red}", "model: expected a network that can be built"),
        ("model.backbone_kwargs={depths: [1]}", "model: expected a network that can be built, got IndexError"),
        ("model.column0_deg=.nan", "column0_deg: expected an angle"),
        ("train.device=abacus", r"train\.device: expected auto, or one of \['cpu'.*\], got 'abacus'"),
        ("data.train={split: never}", "data: expected photos with"),
        ("data.train={colour: red}", "data: expected a column of the photos"),
        ("train.batch=64", "batch_size: expected at most the"),
    ):
        with pytest.raises(ValueError, match=message):
            GeolocalizerRecipe(configured(region, tmp_path, more))
    for names in (
        ("small",),
        ("small", "small_first"),
        ("small", "small_last"),
        ("base",),
        ("tables",),
        ("tables_base",),
    ):
        files = [str(root / f"train/configs/{name}.yaml") for name in names]
        GeolocalizerConfig(**read_settings([*files, "out=x", "data.manifest=y"]).model)
    assert not list(tmp_path.iterdir())


def test_a_choice_of_photos_replaces_the_one_before(root: Path) -> None:
    base = [str(root / "train/configs/base.yaml"), "out=x", "data.manifest=y"]
    made = read_settings([*base, "data.train={area: train}", "data.workers=3"])
    assert (made.data.train, made.data.evaluate) == ({"area": "train"}, {"split": "val"})
    assert read_settings([*base, "data.train={}"]).data.train == {}
