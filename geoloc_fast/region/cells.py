"""An index of cells: one for each that has an aerial tile or lies below a prototype."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.geo import s2
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Rows
from geoloc_fast.models.cells import CellGeolocalizer
from geoloc_fast.progress import Progress
from geoloc_fast.region.encode import EncodedPlaces, encode_places

__all__ = ["build_cell_index", "cell_arguments", "refold_cells", "refresh_cells"]

_AT_ONCE = 8192  # cells without an image to encode, in one commit


def build_cell_index(
    path: str | os.PathLike[str],
    model: CellGeolocalizer,
    manifest: Manifest,
    *,
    dtype: str = "bf16",
    progress: Progress | None = None,
) -> int:
    """Makes an index of cells, or goes on with one that was begun; returns how many it has.

    Keys are S2 tokens, attributes `level`, `area_m2`, `photos` (in the prototype's cell, of those of the manifest
    whose split is "train"), `prototype` (the token of its cell) and `tile_date`. What is not known is not there.
    ValueError, and nothing is made, if the manifest's places are not cells of the model's level.
    """
    tiles = cells_of(manifest, model)
    if not PlaceIndex.exists(path):
        PlaceIndex.create(path, model=str(model.fingerprint), layers=model.layers, dtype=dtype).close()
    with PlaceIndex.open(path, "write", model=model.fingerprint) as index:
        known = index.keys()
        counts = _photos_of(manifest, model)
        todo = [row for row, cell in enumerate(tiles) if s2.token(cell) not in known]
        done = len(known)
        for part in encode_places(model, manifest, todo):
            if part.problems:
                raise ValueError(part.problems[0])
            rows = part.layers["cell"]
            _add(index, model, tiles[part.rows], rows, counts, _dates(manifest, part.rows))
            done += len(part.rows)
            if progress is not None:
                progress(done, None)
        below = model.prototypes.ids
        for _ in range(model.config.prototype_level, model.config.cell_level):
            below = s2.children(below).reshape(-1)
        alone = np.setdiff1d(below, tiles)
        alone = np.array([cell for cell in alone if s2.token(cell) not in known], np.uint64)
        for start in range(0, len(alone), _AT_ONCE):
            ids = alone[start : start + _AT_ONCE]
            nothing = torch.zeros(len(ids), model.config.dim, device=model.prototypes.weight.device)
            codes = model.codes(ids, nothing, torch.zeros(len(ids), dtype=torch.bool, device=nothing.device))
            _add(index, model, ids, Rows(codes.detach().cpu()[:, :, None, None]), counts, None)
        return len(index)


def refresh_cells(index: PlaceIndex, model: CellGeolocalizer, manifest: Manifest, tokens: Iterable[str]) -> int:
    """Encodes these cells anew, whose tiles in the manifest have changed, and leaves all others; returns how many.

    A cell keeps its key and gets another id. The new one is there before the old one goes.
    """
    index.check_model(model.fingerprint)
    wanted, tiles = set(tokens), cells_of(manifest, model)
    before = index.keys()
    missing = wanted - set(before)
    if missing:
        raise KeyError(f"tokens: {index.path} has no cell {sorted(missing)[0]}")
    rows = [row for row, cell in enumerate(tiles) if s2.token(cell) in wanted]
    counts, changed = _photos_of(manifest, model), 0
    for part in encode_places(model, manifest, rows):
        if part.problems:
            raise ValueError(part.problems[0])
        ids = tiles[part.rows]
        _add(index, model, ids, part.layers["cell"], counts, _dates(manifest, part.rows))
        changed += index.remove([before[s2.token(cell)] for cell in ids])
    return changed


def refold_cells(
    index: PlaceIndex,
    out: str | os.PathLike[str],
    before: CellGeolocalizer,
    after: CellGeolocalizer,
    progress: Progress | None = None,
) -> int:
    """The cells of an index with another kappa, as a new index or one that was begun; returns how many it has.

    No image is looked at: what `before` folded in of the prototypes goes, what `after` folds in comes. A value is
    rounded once more than in an index built anew. ValueError, and nothing is made, unless the models differ in kappa
    and temperature alone.
    """
    index.check_model(before.fingerprint)
    if not before.same_codes(after):
        raise ValueError("after: expected the model of this index with another kappa or temperature, got another one")
    if not PlaceIndex.exists(out):
        PlaceIndex.create(out, model=str(after.fingerprint), layers=after.layers, dtype=index.dtype).close()
    with PlaceIndex.open(out, "write", model=after.fingerprint) as new:
        known, old = new.keys(), index.keys()
        todo = np.array([number for key, number in old.items() if key not in known], np.int64)
        for start in range(0, len(todo), _AT_ONCE):
            places = index.places(todo[start : start + _AT_ONCE])
            strips, owner, *_ = index.strips("cell", todo[start : start + _AT_ONCE])
            cells = np.array([s2.from_token(place.key) for place in places], np.uint64)[owner]
            nothing = torch.zeros(len(cells), after.config.dim, device=after.stand_in.device)
            there = torch.ones(len(cells), dtype=torch.bool, device=nothing.device)
            change = (after.codes(cells, nothing, there) - before.codes(cells, nothing, there)).detach().cpu()
            names = {name for place in places for name in place.attributes}
            new.add(
                {"cell": Rows(strips + change[:, :, None, None], owner)},
                model=after.fingerprint,
                lat=[place.lat for place in places],
                lon=[place.lon for place in places],
                key=[place.key for place in places],
                attributes={name: [place.attributes.get(name) for place in places] for name in sorted(names)},
            )
            if progress is not None:
                progress(len(known) + start + len(places), len(old))
        return len(new)


def cells_of(manifest: Manifest, model: CellGeolocalizer) -> np.ndarray:
    """Ids of the manifest's places, uint64; ValueError if they are not cells of the model's level."""
    tokens = manifest.places["id"].to_pylist()
    try:
        ids = np.array([s2.from_token(token) for token in tokens], np.uint64)
    except ValueError as error:
        raise ValueError(f"manifest: expected places that are S2 cells: {error}") from None
    levels = np.unique(s2.level(ids)).tolist()
    if levels and levels != [model.config.cell_level]:
        raise ValueError(f"manifest: expected cells of level {model.config.cell_level}, got levels {levels}")
    return ids


def _photos_of(manifest: Manifest, model: CellGeolocalizer) -> dict[int, int]:
    """Photos of training by prototype's cell."""
    photos = manifest.photos
    split, lat, lon = (photos[name].to_pylist() for name in ("split", "lat", "lon"))
    at = [(a, b) for name, a, b in zip(split, lat, lon, strict=True) if name == "train" and a is not None]
    if not at:
        return {}
    cells = s2.from_lat_lon([a for a, _ in at], [b for _, b in at], model.config.prototype_level)
    ids, counts = np.unique(cells, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _dates(manifest: Manifest, rows: list[int]) -> list[Any]:
    return [manifest.places["satellite_date"][row].as_py() for row in rows]


def cell_arguments(model: CellGeolocalizer, manifest: Manifest, part: EncodedPlaces) -> dict[str, Any]:
    """What `PlaceIndex.add` is given of some encoded cells, beside the model."""
    ids = cells_of(manifest, model)[part.rows]
    return _arguments(model, ids, part.layers["cell"], _photos_of(manifest, model), _dates(manifest, part.rows))


def _add(
    index: PlaceIndex,
    model: CellGeolocalizer,
    ids: np.ndarray,
    rows: Rows,
    counts: dict[int, int],
    dates: list[Any] | None,
) -> None:
    index.add(**_arguments(model, ids, rows, counts, dates), model=model.fingerprint)


def _arguments(
    model: CellGeolocalizer, ids: np.ndarray, rows: Rows, counts: dict[int, int], dates: list[Any] | None
) -> dict[str, Any]:
    lat, lon = s2.center(ids)
    parents = s2.parent(ids, model.config.prototype_level)
    known = model.prototypes.rows(parents) >= 0
    return {
        "rows": {"cell": rows},
        "lat": lat,
        "lon": lon,
        "key": [s2.token(cell) for cell in ids],
        "attributes": {
            "level": [model.config.cell_level] * len(ids),
            "area_m2": s2.area_m2(ids).tolist(),
            "photos": [counts.get(int(cell), 0) for cell in parents],
            "prototype": [s2.token(cell) if there else None for cell, there in zip(parents, known, strict=True)],
            "tile_date": dates or [None] * len(ids),
        },
    }
