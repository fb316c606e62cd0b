"""Training the cell model: what is read, batches, gradients of the three pairs, rows that move, and that it learns."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from geoloc_fast.city.continent import write_continent
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.cells import CellDatabase
from geoloc_fast.geo import s2
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.models.cells import CellGeolocalizer, CellsConfig
from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.cells import (
    CellData,
    CellsRecipe,
    evaluate_model,
    losses,
    make_recipe,
    read_settings,
)
from geoloc_fast.training.trainer import Trainer

MODEL: dict[str, Any] = {
    "prototype_level": 16,
    "cell_level": 17,
    "clusters": 6,
    "cluster_dim": 4,
    "global_dim": 8,
    "hidden": 16,
    "photo_size": [48, 64],
    "tile_px": 48,
}


@pytest.fixture(scope="module")
def continent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continent") / "small"
    write_continent(folder, cities=2, places=40, photos_per_cell=3.0, photo_size=(48, 64), tile_px=48)
    return folder


def recipe(folder: Path, out: Path, **changes: Any) -> CellsRecipe:
    settings: dict[str, Any] = {
        "out": str(out),
        "pretrained": "",
        "model": MODEL,
        "data": {"manifest": str(folder)},
        "train": {"batch": 16, "steps": 20, "lr": 3e-3, "warmup": 1, "evaluate_every": 20, "device": "cpu"},
    }
    return CellsRecipe(read_settings([settings, *(f"{name}={value}" for name, value in changes.items())]))


def test_photos_tiles_and_stencils_belong_together(continent: Path, tmp_path: Path) -> None:
    made = recipe(continent, tmp_path / "run")
    data = made.data
    found = next(iter(made.batches(0, 0)))
    rows = np.array([data.photos["id"].to_pylist().index(name) for name in found["photo_id"]])
    assert (data.split[rows] == "train").all()
    own = found["own"].numpy()
    has = own >= 0
    assert has.any()
    tiles = np.unique(data.tile[rows[has]])
    np.testing.assert_array_equal(
        data.tiles[tiles[own[has]]], s2.from_lat_lon(data.lat[rows[has]], data.lon[rows[has]], 17)
    )
    assert not found["apart"].numpy()[np.flatnonzero(has), own[has]].any()
    torch.testing.assert_close(made.tiles[torch.from_numpy(tiles)], found["tile"])
    for photo, near in zip(rows, found["near"].numpy(), strict=True):
        lat, lon = s2.center(made.model.prototypes.ids)
        away = great_circle_m(data.lat[photo], data.lon[photo], lat, lon)
        close = np.flatnonzero(away < 1.49 * made._edge_m)
        assert set(close) <= set(near[near >= 0])
    for stencil, near in zip(found["rows"].numpy(), found["near"].numpy(), strict=True):
        assert set(stencil[stencil >= 0]) <= set(near)
    again = [list(made.batches(1, start)) for start in (0, 1)]
    assert [one["photo_id"] for one in again[0][1:]] == [one["photo_id"] for one in again[1]]


def test_every_pair_moves_what_it_compares(continent: Path, tmp_path: Path) -> None:
    pairs = {
        "ground_prototype": ("ground_head", "prototypes"),
        "aerial_prototype": ("aerial_head", "prototypes"),
        "ground_aerial": ("ground_head", "aerial_head"),
    }
    made = recipe(continent, tmp_path / "run")
    for least in (-1.0, 0.0):
        made.settings.step.least = least
        made.model.prototypes.sparse = least >= 0
        for name, parts in pairs.items():
            batch = next(iter(made.batches(0, 0)))
            made.model.zero_grad()
            losses(made.model, batch, made.settings.step)[name].backward()
            reached = {
                part
                for part, module in made.model.named_children()
                for p in module.parameters()
                if p.grad is not None and float(p.grad.to_dense().abs().max()) > 0
            }
            assert reached == set(parts)


@pytest.mark.parametrize("loss", ["multi_similarity", "info_nce", "haversine", "hierarchy"])
def test_a_few_steps_lower_every_loss(loss: str, continent: Path, tmp_path: Path) -> None:
    made = recipe(continent, tmp_path / "run", **{"step.loss": loss, "step.dropout": 0.0})
    numbers = []
    for epoch in range(12):
        if epoch:
            made.epoch_begins(epoch)
        for batch in made.batches(epoch, 0):
            numbers.append(made.gradients(batch, step=0, epoch=epoch)["loss"])
            made.optimiser.step()
    assert np.mean(numbers[-3:]) < 0.9 * np.mean(numbers[:3])
    if loss == "multi_similarity":
        found = made.evaluate(0)
        assert 0 <= found.numbers["hybrid"] <= 1
        assert made.model.config.kappa == pytest.approx(found.numbers["kappa"])
        state = made.state()
        other = recipe(continent, tmp_path / "run")
        other.restore(state)
        torch.testing.assert_close(other.state()["similar"], state["similar"])


def test_what_cannot_be_trained_on_is_refused(continent: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(continent)
    config = CellsConfig(**MODEL)
    empty = manifest.photos.slice(0, 0)
    with pytest.raises(ValueError, match="expected photos with positions, got none"):
        CellData(manifest.replace(photos=empty), config)
    with pytest.raises(ValueError, match="expected cells of level 16, got levels \\[17\\]"):
        CellData(manifest, CellsConfig(**{**MODEL, "cell_level": 16}))
    named = manifest.places.set_column(0, "id", [[f"place {n}" for n in range(len(manifest.places))]])
    with pytest.raises(ValueError, match="expected places that are S2 cells"):
        CellData(manifest.replace(places=named, photos=manifest.photos), config)
    with pytest.raises(ValueError, match="expected cells with aerial tiles, got none of 0 places"):
        CellData(manifest.replace(places=manifest.places.slice(0, 0)), config)
    for change, words in (
        ({"step.loss": "best"}, r"step\.loss: expected multi_similarity"),
        ({"train.batch": 10}, r"train\.batch: expected a multiple of 4"),
        ({"step.dropout": 1.0}, r"step\.dropout"),
        ({"data.least_photos": 999}, r"data\.least_photos"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(continent, tmp_path / "run", **change)


def without(table: pa.Table, *columns: str) -> pa.Table:
    for name in columns:
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(at), pa.nulls(len(table), table.schema.field(at).type))
    return table


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no positions", r"data\.manifest: expected photos with positions, got none of \d+"),
        ("no tiles", r"data\.manifest: expected cells with aerial tiles, got none of \d+ places"),
        ("mixed levels", r"data\.manifest: expected cells of level 17, got levels \[12, 17\]"),
    ],
)
def test_a_manifest_that_cannot_be_trained_on_leaves_nothing(
    what: str,
    words: str,
    continent: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = Manifest.load(continent)
    places, photos = manifest.places, manifest.photos
    if what == "no positions":
        photos = without(photos, "lat", "lon")
    elif what == "no tiles":
        street = places.column_names.index("street")  # panoramas alone
        places = without(places.set_column(street, places.schema.field(street), places["satellite"]), "satellite")
    else:
        ids = [s2.token(s2.parent(s2.from_token(places["id"][0].as_py()), 12)), *places["id"].to_pylist()[1:]]
        places = places.set_column(0, "id", [ids])
    Manifest(tmp_path / "given", places, photos).save()
    (tmp_path / "model.yaml").write_text(json.dumps({"model": MODEL, "pretrained": "", "train": {"device": "cpu"}}))
    before = sorted(path.name for path in tmp_path.iterdir())
    given = [str(tmp_path / "model.yaml"), f"data.manifest={tmp_path / 'given'}", f"out={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["cells.py", *given])
    assert main("-", make_recipe, evaluate_model) == 1
    assert re.search(words, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- evaluation ---


def test_the_database_holds_tiles_and_what_lies_below_prototypes(continent: Path, tmp_path: Path) -> None:
    made = recipe(continent, tmp_path / "run")
    database = made.database()
    below = s2.children(made.model.prototypes.ids).reshape(-1)
    np.testing.assert_array_equal(database.ids, np.union1d(made.data.tiles, below))
    has_tile = np.isin(database.ids, made.data.tiles)
    missing = ~torch.from_numpy(has_tile), ~torch.from_numpy(np.isin(database.ids, below))
    assert missing[0].any()
    assert missing[1].any()
    for codes, none, mean in zip((database.aerial, database.prototype), missing, database.stand_in, strict=True):
        torch.testing.assert_close(codes[none], mean.expand(int(none.sum()), -1))
        assert float((codes[~none].norm(dim=1) - 1).abs().max()) < 1e-4
    torch.testing.assert_close(database.stand_in[0], database.aerial[~missing[0]].mean(0))
    empty = made.database(zeros=True)
    assert float(empty.aerial[missing[0]].norm() + empty.prototype[missing[1]].norm()) == 0
    assert isinstance(database, CellDatabase)
    assert database.rows(np.array([database.ids[5], s2.from_lat_lon(0, 0, 17)])).tolist() == [5, -1]


def test_a_run_that_stopped_goes_on_to_the_same_model(continent: Path, tmp_path: Path) -> None:
    how = {"train.log_every": 1, "train.evaluate_every": 0, "train.save_every": 1}
    whole = recipe(continent, tmp_path / "whole", **{"train.steps": 6, **how})
    assert whole.batcher.groups < 4  # a new epoch, with new similar cells, lies between
    Trainer(whole).run()
    begun = recipe(continent, tmp_path / "parts", **{"train.steps": 6, **how})
    made, done = begun.gradients, []

    def stopping(batch: dict[str, Any], *, step: int, epoch: int) -> dict[str, float]:
        done.append(step)
        if len(done) == 5:
            raise KeyboardInterrupt
        return made(batch, step=step, epoch=epoch)

    begun.gradients = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Trainer(begun).run()
    Trainer(recipe(continent, tmp_path / "parts", **{"train.steps": 6, **how}), resume=True).run()
    one, two = (CellGeolocalizer.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.fingerprint == two.fingerprint


def test_a_model_of_other_cells_is_not_measured(continent: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    CellGeolocalizer(CellsConfig(**MODEL), s2.from_lat_lon([50.0, 51.0], [8.0, 8.0], 16)).save(path)
    sources: list[str | dict[str, Any]] = [{"out": ".", "pretrained": "", "model": MODEL}]
    sources += [{"data": {"manifest": str(continent)}, "train": {"device": "cpu"}}]
    with pytest.raises(ValueError, match="expected a model of these photos' cells, got 2 other prototypes"):
        evaluate_model(sources, path)
    made = recipe(continent, tmp_path / "run")
    made.model.save(path)
    found = evaluate_model([*sources, "data.evaluate={split: test}"], path)
    assert set(found.numbers) >= {"prototypes", "aerial", "hybrid", "kappa", "temperature"}
