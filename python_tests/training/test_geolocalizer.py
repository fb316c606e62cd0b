"""Whole runs of the geolocalizer, from manifests of every kind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_runs import NETWORK, configured, given, log_of

from geoloc_fast import strip_topk
from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import write_city
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig
from geoloc_fast.region.prepare import Settings as PrepareSettings
from geoloc_fast.region.prepare import prepare
from geoloc_fast.training.recipes.geolocalizer import GeolocalizerRecipe, evaluate_model, read_settings
from geoloc_fast.training.recipes.geolocalizer.evaluate import (
    evaluate,
    photo_batches,
    place_bank,
)
from geoloc_fast.training.region import chosen
from geoloc_fast.training.trainer import Trainer


def recipe_of(region: Path, out: Path, *more: str) -> GeolocalizerRecipe:
    return GeolocalizerRecipe(configured(region, out, *more))


def trained(region: Path, out: Path, *more: str) -> GeolocalizerRecipe:
    recipe = recipe_of(region, out, *more)
    Trainer(recipe).run()
    return recipe


def test_a_tiny_run_learns_and_its_model_is_evaluated_alone(region: Path, tmp_path: Path) -> None:
    more = ("train.steps=60", "train.lr=3e-3", "train.warmup=5", "train.evaluate_every=30", "train.batch=12")
    more += ("data.search_fov_deg=[80, 100]", "data.in_memory=true", "data.field_of_view=known")
    quiet = "data.augment={turn: true, brightness: 0.1, contrast: 0.1, saturation: 0.1, tint: 0, grey: 0, blur: 0}"
    recipe = recipe_of(region, tmp_path, *more, quiet)
    trainer = Trainer(recipe)
    trainer.run()
    log = log_of(tmp_path)
    assert {"assumed", "known", "search"} == log[-1]["evaluation"].keys()
    found = [line["evaluation"]["assumed"] for line in log if "evaluation" in line]
    assert len(found) == 2
    places = found[0]["places"]
    assert found[-1]["recall_at_5"] > 2 * 5 / places  # chance is about 5 of all places
    losses = [line["loss"] for line in log if "loss" in line]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert {"true_window", "right", "scale", "temperature", "gradient_norm", "lr"} <= log[0].keys()
    assert trainer.best == max(part["recall_at_1"] for part in found)
    for name in ("best.safetensors", "model.safetensors"):
        assert Geolocalizer.load(tmp_path / name).config == recipe.model.config
    alone = evaluate_model(given(region, Path("nowhere"), *more, quiet), tmp_path / "model.safetensors")
    assert alone.numbers == log[-1]["evaluation"] and alone.best == found[-1]["recall_at_1"]
    assert alone.text.startswith("field of view assumed: ") and not Path("nowhere").exists()


@pytest.mark.slow
def test_a_tiny_run_learns_about_photos_it_has_not_seen(tmp_path: Path) -> None:
    sizes = Sizes(satellite_px=64, panorama=(32, 128), photo=(48, 64))
    write_city(tmp_path / "region", seed=5, cities=2, places=100, sizes=sizes, fov_range=(80.0, 100.0), capture=TIDY)
    more = ("train.steps=100", "train.batch=32", "train.lr=3e-3", "train.warmup=5", "data.evaluate={split: test}")
    more += ("data.in_memory=true", "data.field_of_view=known", "train.evaluate_every=100")
    recipe = trained(tmp_path / "region", tmp_path / "run", *more)
    recipe.model.eval()
    data, held_out = recipe.settings.data, recipe.held_out
    assert held_out is not None and set(held_out.photos["split"].to_pylist()) == {"test"}
    bank = place_bank(recipe.model, held_out)
    photos = list(photo_batches(recipe.model, held_out, data, recipe.device, known=True))
    readings = [photo.readings[0] for photo in photos]
    index = torch.cat([strip_topk(strips, bank, 200, query_width=width).index for strips, width in readings])
    own = torch.from_numpy(np.concatenate([photo.place for photo in photos]))
    assert bool((own >= 0).all()) and bool((index == own[:, None]).any(1).all())
    rank = (index == own[:, None]).float().argmax(1) / 200  # evenly from 0 to 1 if nothing was learned
    assert len(rank) == 40
    assert float(rank.mean()) < 0.5 - 3 / math.sqrt(12 * 40)


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_negatives_and_noise_survive_an_interruption(region: Path, tmp_path: Path, in_memory: str) -> None:
    """Over epochs (of three batches), and from neighbours on the ground to similar ones."""
    more = ("train.steps=7", "train.hard=2", "train.similar_every=1", "step.chunk=5", f"data.in_memory={in_memory}")
    trained(region, tmp_path / "whole", *more)
    recipe = recipe_of(region, tmp_path / "parts", *more)
    before = recipe.gradients

    def interrupted(batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return before(batch, step=step, epoch=epoch)

    recipe.gradients = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe).run()
    Trainer(recipe_of(region, tmp_path / "parts", *more), resume=True).run()
    whole = log_of(tmp_path / "whole")
    assert log_of(tmp_path / "parts") == whole and whole[-1]["epoch"] == 2
    one, two = (Geolocalizer.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.fingerprint == two.fingerprint


def test_no_value_of_the_best_yet_is_no_end(region: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no place is right, headings have no value; and batches without headings have no true window."""

    def without(*arguments: Any, **more: Any) -> dict[str, Any]:
        found = evaluate(*arguments, **more)
        found["assumed"]["heading_within_22_5_deg"] = None
        return found

    monkeypatch.setattr("geoloc_fast.training.recipes.geolocalizer.recipe.evaluate", without)
    rows = Manifest.load(region).photos.to_pylist()
    shutil.copytree(region, tmp_path / "r")
    photos = [{**row, "heading_deg": None} for row in rows]
    Manifest.from_rows(tmp_path / "r", Manifest.load(region).places.to_pylist(), photos).save()
    trained(
        tmp_path / "r",
        tmp_path / "run",
        *("train.steps=2", "train.evaluate_every=1", "train.best=heading_within_22_5_deg"),
    )
    assert not (tmp_path / "run/best.safetensors").exists()
    steps_logged = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert len(steps_logged) == 2 and not any("true_window" in line for line in steps_logged)


def test_a_region_of_ones_own_trains_as_the_readme_says(
    root: Path, region: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared photos have the field of view they were prepared with, whatever the configuration says of others."""
    settings = PrepareSettings(size=(32, 128), satellite_px=64)
    prepare(Manifest.load(region), tmp_path / "ready", settings=settings, workers=1)
    recipe = trained(tmp_path / "ready", tmp_path / "run", "train.steps=2", "train.evaluate_every=2")
    assert "photos have the field of view that they were prepared with" in capsys.readouterr().err
    (found,) = [line["evaluation"] for line in log_of(tmp_path / "run") if "evaluation" in line]
    assert list(found) == ["as prepared"] and found["as prepared"]["photos"] == len(recipe.training.photos)
    assert (tmp_path / "run/best.safetensors").exists()

    small = [str(root / "train/configs/small.yaml"), 'data.train={"split": "train"}', "train.steps=1"]
    small += ["train.batch=4", f"data.manifest={tmp_path / 'ready'}", f"out={tmp_path / 'small'}", "train.device=cpu"]
    recipe = GeolocalizerRecipe(read_settings(small))
    assert recipe.settings.data.field_of_view == "mixed" and recipe.settings.data.in_memory
    Trainer(recipe).run()
    tested = [*small, "data.evaluate={split: test}"]
    assert list(evaluate_model(tested, tmp_path / "small/model.safetensors").numbers) == ["as prepared"]


def test_photos_that_go_all_the_way_round_train_in_cuts(region: Path, tmp_path: Path) -> None:
    """The published protocols: the street view of one place is the photo of another, cut."""
    manifest = Manifest.load(region)
    places = {place["id"]: place for place in manifest.places.to_pylist()}
    photos = []
    for photo in manifest.photos.to_pylist():
        place = places[photo["place"]]
        if place["street_column0_deg"] is not None:
            heading = place["street_column0_deg"] + 180
            photos.append({**photo, "image": place["street"], "heading_deg": heading % 360, "fov_deg": 360.0})
    table = pa.Table.from_pylist(photos, schema=manifest.photos.schema)
    shutil.copytree(region, tmp_path / "around")
    manifest.replace(photos=table).save(tmp_path / "around")
    for reading, width, memory in (("assumed", 32, "true"), ("known", 64, "true"), ("known", 64, "false")):
        out = tmp_path / f"{reading}.{memory}"
        more = ("data.crop_fov_deg=180", f"data.field_of_view={reading}", f"data.in_memory={memory}")
        recipe = recipe_of(tmp_path / "around", out, *more, "train.steps=1", "train.evaluate_every=1")
        batch = next(recipe.batches(0, 0))
        assert batch["photo"].shape[3] == width and set(batch["photo_width"].tolist()) == {width}
        assert len(set(batch["heading_deg"].tolist())) > 5
        Trainer(recipe).run()
        (found,) = [line["evaluation"] for line in log_of(out) if "evaluation" in line]
        assert found["assumed"]["photos"] == found["known"]["photos"] == len(recipe.training.photos)
    known, assumed = (
        next(photo_batches(recipe.model, recipe.training, recipe.settings.data, recipe.device, known=way))
        for way in (True, False)
    )
    widths = [int(batch.readings[0][1].max()) for batch in (known, assumed)]
    assert widths == [4, 2] and np.array_equal(known.heading_deg, assumed.heading_deg)
    with pytest.raises(ValueError, match="crop_fov_deg: expected at least one column"):
        recipe_of(tmp_path / "around", tmp_path / "x", "data.crop_fov_deg=400")


def test_a_run_starts_from_a_trained_model(region: Path, tmp_path: Path) -> None:
    before = Geolocalizer(GeolocalizerConfig(**NETWORK))
    before.save(tmp_path / "trained.safetensors")
    start = f"start={tmp_path / 'trained.safetensors'}"
    recipe = recipe_of(region, tmp_path / "run", start, "train.steps=1")
    for own, theirs in zip(recipe.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(own, theirs)
    Trainer(recipe).run()
    assert not torch.equal(recipe.model.log_scale, before.log_scale)
    other = json.dumps({**NETWORK, "fusion": "concat"})
    with pytest.raises(ValueError, match="start: expected a model of these settings, got one with fusion: 'iaff'"):
        recipe_of(region, tmp_path / "other", start, f"model={other}")
    with pytest.raises(ValueError, match="pretrained: expected none beside start"):
        recipe_of(region, tmp_path / "both", start, "pretrained=timm")


def test_what_nothing_has_trained_has_a_rate_of_its_own(region: Path, tmp_path: Path) -> None:
    Geolocalizer(GeolocalizerConfig(**NETWORK)).save(tmp_path / "trained.safetensors")
    pretrained = f"pretrained={tmp_path / 'trained.safetensors'}"
    more = ("train.fresh=4", "train.steps=1", "train.warmup=0", "train.lr=1e-3")
    one_column = json.dumps({**NETWORK, "strip": [32, 1, 1]})  # of another head
    for out, changes, fresh in (
        ("same", (pretrained,), {"fusion", "log_scale", "log_temperature"}),
        (
            "other",
            (pretrained, f"model={one_column}"),
            {"fusion", "log_scale", "log_temperature", "encoder.network.head"},
        ),
        ("nothing", (), set()),
    ):
        recipe = trained(region, tmp_path / out, *changes, *more)
        rate = {id(p): group["lr"] for group in recipe.optimiser.param_groups for p in group["params"]}
        base = min(rate.values())
        assert len(rate) == len(list(recipe.model.parameters()))
        for name, p in recipe.model.named_parameters():
            assert rate[id(p)] == pytest.approx(base * (4 if name.startswith(tuple(fresh)) else 1)), name


def test_a_manifest_that_cannot_be_trained_on_is_named(region: Path, tmp_path: Path) -> None:
    whole = Manifest.load(region)
    for name, places, photos, message in (
        ("no_photos", whole.places, whole.photos.slice(0, 0), "data: expected photos with"),
        ("one_place", whole.places.slice(0, 1), whole.photos.slice(0, 1), "place: expected at least two"),
    ):
        Manifest.from_rows(region, places.to_pylist(), photos.to_pylist()).save(tmp_path / name)
        more = ("train.batch=1", f"data.manifest={tmp_path / name}", "data.train={city: 00-harbour}")
        with pytest.raises(ValueError, match=message):
            recipe_of(region, tmp_path / "out", *more)


def test_what_a_manifest_need_not_know(region: Path, tmp_path: Path) -> None:
    """Cities of places, positions of photos, positions at all."""
    whole = Manifest.load(region)
    one = chosen(whole, {"city": "00-harbour"})
    assert set(one.places["city"].to_pylist()) == {"00-harbour"} and len(one.places) == 20
    places, photos = whole.places.to_pylist(), whole.photos.to_pylist()
    moved = [{**row, "city": "01-grid"} if n == 0 else row for n, row in enumerate(places)]
    kept = chosen(Manifest.from_rows(region, moved, photos), {"city": "00-harbour"})
    assert len(kept.places) == 20  # with the one that its photo is of
    without = [{**row, "city": None} for row in places]
    assert len(chosen(Manifest.from_rows(region, without, photos), {"city": "00-harbour"}).places) == 40

    nowhere = {"lat": None, "lon": None}
    shutil.copytree(region, tmp_path / "region")
    manifest = Manifest.from_rows(region, [row | nowhere for row in places], [row | nowhere for row in photos])
    manifest.save(tmp_path / "region")
    more = ("train.steps=2", "train.evaluate_every=2", "data.in_memory=true")
    recipe = trained(tmp_path / "region", tmp_path / "run", *more)
    (found,) = [line["evaluation"]["known"] for line in log_of(tmp_path / "run") if "evaluation" in line]
    # As if every place were alone, which in this city they are not all.
    expected = evaluate(recipe.model, chosen(whole, {"split": "train"}), recipe.settings.data, recipe.device)["known"]
    assert found["photos_with_no_place_in_range"] == 0
    assert 0 < found["recall_at_10"] <= expected["recall_at_10"]
