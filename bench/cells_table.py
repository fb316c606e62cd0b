"""The table of the cell model on the synthetic continent: every way to make a cell's code, on every slice of the test.

    python bench/cells_table.py make --out continent/                 # 8 cities, 32,000 images
    python bench/cells_table.py run --continent continent/ --runs runs/ --out bench/results/cells.jsonl
    python bench/cells_table.py show bench/results/cells.jsonl
    python bench/cells_table.py pictures --continent continent/ --runs runs/ --out docs/pictures

`run` trains each loss with each seed, unless its line is there, and adds a line: recalls by slice, row, k and metres.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from geoloc_fast.city.continent import write_continent
from geoloc_fast.evaluation.cells import (
    FIRST,
    METRES,
    CellDatabase,
    fitted,
    hit_ranks,
    nearby_cells,
    oracle_recall,
    random_recall,
    recall_of,
    unit,
)
from geoloc_fast.training.recipes.cells import CellsRecipe, read_settings
from geoloc_fast.training.trainer import Trainer

CONFIG = str(Path(__file__).parents[1] / "train/configs/cells_small.yaml")
LOSSES = ("multi_similarity", "info_nce", "haversine", "hierarchy")
BUCKETS = ((0, 0), (1, 2), (3, 5), (6, 11), (12, 10**9))  # photos of training in a prototype's cell
DAYS = ((0, 0), (1, 1), (2, 2), (3, 10**9))


def slices(made: CellsRecipe) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows of photos."""
    data = made.data
    holdout = np.array([value or "" for value in data.photos["holdout"].to_pylist()])
    test = data.split == "test"
    same = test & (holdout == "")
    yield "same area", np.flatnonzero(same)
    for name in ("day", "block", "city"):
        yield f"unseen {name}", np.flatnonzero(test & (holdout == name))
    train = data.split == "train"
    cells, photos = np.unique(data.parent[train], return_counts=True)
    dates = np.array(data.photos["date"].to_pylist())
    days = np.array([len(set(dates[train & (data.parent == cell)])) for cell in cells])
    at = np.minimum(np.searchsorted(cells, data.parent), len(cells) - 1)
    there = cells[at] == data.parent
    for what, counts, ranges in (("photos", photos, BUCKETS), ("days", days, DAYS)):
        of = np.where(there, counts[at], 0)
        for low, high in ranges:
            label = f"{low}" if low == high else f"{low} and more" if high == 10**9 else f"{low} to {high}"
            yield f"{label} {what}", np.flatnonzero(same & (of >= low) & (of <= high))


def measured(made: CellsRecipe, loss: str) -> dict[str, Any]:
    data = made.data
    database = made.database()
    ground = made.codes(made.photos, aerial=False)
    val = np.flatnonzero(data.split == "val")
    calibration = fitted(database, ground[torch.from_numpy(val)], data.lat[val], data.lon[val])
    hybrid = database.codes(calibration.kappa)
    codes = {"prototypes": database.prototype}
    if loss != "haversine":
        codes |= {"hybrid": hybrid, "aerial": database.aerial}
    if loss == "multi_similarity":
        codes["kappa 1"] = database.codes(1.0)
        codes["cosine of the sum"] = unit(hybrid)
        zeros = made.database(zeros=True)
        own = fitted(zeros, ground[torch.from_numpy(val)], data.lat[val], data.lon[val])
        codes["hybrid, zeros for what is missing"] = zeros.codes(own.kappa)
    centres = (database.lat, database.lon)
    train = np.flatnonzero(data.split == "train")
    city = city_of(made, database)
    found: dict[str, Any] = {}
    for name, rows in slices(made):
        query, at = ground[torch.from_numpy(rows)], (data.lat[rows], data.lon[rows])
        near = nearby_cells(centres, at)
        part: dict[str, Any] = {"photos": len(rows)}
        if len(rows) and loss == "multi_similarity":
            part["oracle"] = as_list(oracle_recall(near))
            part["random"] = as_list(random_recall(near, len(database)))
            part["photo retrieval"] = as_list(
                recall_of(hit_ranks(query, ground[torch.from_numpy(train)], (data.lat[train], data.lon[train]), at))
            )
            own_city = np.array(data.photos["city"].to_pylist())[rows]
            sizes = np.array([(city == one).sum() for one in own_city])
            part["chance in the right city, R@1"] = [float((near[:, n] / sizes).mean()) for n in range(len(METRES))]
            inside = np.stack([city == one for one in own_city])
            for row in ("aerial", "hybrid"):
                part[f"{row} within the right city"] = as_list(within(query, codes[row], centres, at, inside))
        hits = {}
        for row, code in codes.items():
            if len(rows):
                ranks = hit_ranks(query, code, centres, at)
                part[row] = as_list(recall_of(ranks))
                hits[row] = ranks[:, METRES.index(200.0)]
        for row in ("prototypes", "aerial"):
            if row in hits and "hybrid" in hits:
                part[f"hybrid above {row}"] = {k: gain(hits["hybrid"] < k, hits[row] < k) for k in FIRST}
        found[name] = part
    width = made.model.config.dim
    return {
        "kappa": calibration.kappa,
        "temperature": calibration.temperature,
        "cells": len(database),
        "prototypes": len(made.model.prototypes),
        "photos of training": len(train),
        "bytes of cells, bf16": 2 * width * len(database),
        "bytes of photos, bf16": 2 * width * len(train),
        "slices": found,
    }


def gain(one: np.ndarray, other: np.ndarray) -> list[float]:
    """How much more often one hits than the other, on the same photos: points of percent, and their standard error."""
    more = 100 * (one.astype(float) - other)
    return [round(float(more.mean()), 3), round(float(more.std() / np.sqrt(len(more))), 3)]


def city_of(made: CellsRecipe, database: CellDatabase) -> np.ndarray:
    """Of each cell the region it lies in: that of the nearest photo."""
    data = made.data
    names = np.array(data.photos["city"].to_pylist())
    middle = {name: (data.lat[names == name].mean(), data.lon[names == name].mean()) for name in np.unique(names)}
    labels = list(middle)
    away = [
        np.hypot(database.lat - lat, (database.lon - lon) * np.cos(np.radians(lat))) for lat, lon in middle.values()
    ]
    return np.array(labels)[np.argmin(away, axis=0)]


def within(query: torch.Tensor, codes: torch.Tensor, centres: Any, at: Any, inside: np.ndarray) -> Any:
    """Recall when only the cells of the right city are asked."""
    ranks = np.full((len(query), len(METRES)), max(FIRST))
    for allowed in np.unique(inside, axis=0):
        rows = np.flatnonzero((inside == allowed).all(1))
        some = np.flatnonzero(allowed)
        part = hit_ranks(
            query[torch.from_numpy(rows)],
            codes[torch.from_numpy(some)],
            (centres[0][some], centres[1][some]),
            (at[0][rows], at[1][rows]),
        )
        ranks[rows] = part
    return recall_of(ranks)


def as_list(found: Any) -> list[list[float]]:
    """[k][metres]"""
    return [[round(found.at[k, metres], 5) for metres in METRES] for k in FIRST]


def trained(chosen: argparse.Namespace, loss: str, seed: int) -> CellsRecipe:
    out = Path(chosen.runs) / f"{loss}.{seed}"
    sources: list[str | dict[str, Any]] = [CONFIG, {"out": str(out), "data": {"manifest": str(chosen.continent)}}]
    sources += [f"step.loss={loss}", f"step.seed={seed}", *chosen.settings]
    made = CellsRecipe(read_settings(sources))
    Trainer(made, resume=(out / "last.safetensors").exists()).run()
    return made


def run(chosen: argparse.Namespace) -> None:
    out = Path(chosen.out)
    done = {(line["loss"], line["seed"]) for line in lines(out)} if out.exists() else set()
    todo = [
        (loss, seed) for loss in chosen.losses or LOSSES for seed in range(chosen.seeds if loss == LOSSES[0] else 1)
    ]
    for loss, seed in todo:
        if (loss, seed) in done:
            continue
        began = time.perf_counter()
        made = trained(chosen, loss, seed)
        line = {"loss": loss, "seed": seed, "seconds": round(time.perf_counter() - began), **measured(made, loss)}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        same = line["slices"]["same area"]
        print(
            loss,
            seed,
            line["seconds"],
            {row: same[row][0][2] for row in ("prototypes", "aerial", "hybrid") if row in same},
        )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def show(chosen: argparse.Namespace) -> None:
    """R@1 within 50, 100, 200 m and R@10 within 200 m, percent; mean and half range of the seeds."""
    found = lines(Path(chosen.results))
    for name in found[0]["slices"]:
        print(f"\n## {name}: {found[0]['slices'][name]['photos']} photos\n")
        print("| codes | R@1 50 m | R@1 100 m | R@1 200 m | R@10 200 m |\n|---|---|---|---|---|")
        for loss in LOSSES:
            runs = [line["slices"][name] for line in found if line["loss"] == loss]
            if not runs or not runs[0]["photos"]:
                continue
            for row, value in runs[0].items():
                if not isinstance(value, list) or not isinstance(value[0], list):
                    continue
                values = 100 * np.array([one[row] for one in runs])
                cells = [values[:, 0, 0], values[:, 0, 1], values[:, 0, 2], values[:, 2, 2]]
                text = " | ".join(
                    f"{cell.mean():.1f}" + (f" ± {np.ptp(cell) / 2:.1f}" if len(runs) > 1 else "") for cell in cells
                )
                print(f"| {row}{'' if loss == LOSSES[0] else ', ' + loss} | {text} |")
            for row, value in runs[0].items():
                if row.startswith("hybrid above"):
                    text = "; ".join(
                        f"R@{k} " + ", ".join("{:+.1f} ± {:.1f}".format(*one[row][k]) for one in runs) for k in value
                    )
                    print(f"\n{loss}, {row}, points within 200 m, seed by seed with standard errors: {text}")
            if "chance in the right city, R@1" in runs[0]:
                chance = ", ".join(f"{100 * value:.2f}" for value in runs[0]["chance in the right city, R@1"])
                print(f"\nchance within the right city, R@1 at 50, 100, 200 m: {chance} %")


def pictures(chosen: argparse.Namespace) -> None:
    """A map of errors and one of the prototypes' principal components, city by city."""
    made = trained(chosen, LOSSES[0], 0)
    data, database = made.data, made.database()
    val = np.flatnonzero(data.split == "val")
    ground = made.codes(made.photos, aerial=False)
    calibration = fitted(database, ground[torch.from_numpy(val)], data.lat[val], data.lon[val])
    table = made.model.prototypes.weight.detach()
    parts = torch.linalg.svd(table - table.mean(0), full_matrices=False)[2][:3]
    shade = ((table - table.mean(0)) @ parts.T).numpy()
    shade = np.clip(0.5 + shade / (4 * shade.std(0)), 0, 1)
    test = np.flatnonzero(data.split == "test")
    ranks = hit_ranks(
        ground[torch.from_numpy(test)],
        database.codes(calibration.kappa),
        (database.lat, database.lon),
        (data.lat[test], data.lon[test]),
    )
    right = ranks[:, METRES.index(200.0)] == 0
    from geoloc_fast.geo import s2

    names = np.array(data.photos["city"].to_pylist())
    cities = [name for name in dict.fromkeys(names.tolist()) if not name.startswith("road")]
    for kind in ("prototypes", "errors"):
        panels = []
        for name in cities:
            rows = np.flatnonzero(names == name)
            low_lat, high_lat = data.lat[rows].min(), data.lat[rows].max()
            low_lon, high_lon = data.lon[rows].min(), data.lon[rows].max()
            panel = np.full((324, 324, 3), 255, np.uint8)

            def spot(lat: Any, lon: Any) -> np.ndarray:
                x = 12 + 300 * (np.asarray(lon) - low_lon) / (high_lon - low_lon)  # noqa: B023
                y = 12 + 300 * (high_lat - np.asarray(lat)) / (high_lat - low_lat)  # noqa: B023
                return np.stack([x, y], axis=-1).round().astype(np.int32)

            if kind == "prototypes":
                ids = made.model.prototypes.ids
                lat, lon = s2.center(ids)
                inside = (np.abs(lat - (low_lat + high_lat) / 2) < 0.02) & (
                    np.abs(lon - (low_lon + high_lon) / 2) < 0.03
                )
                for cell in np.flatnonzero(inside):
                    cv2.fillConvexPoly(panel, spot(*s2.corners(ids[cell])), tuple(int(255 * v) for v in shade[cell]))
            else:
                for photo, good in zip(test, right, strict=True):
                    if names[photo] == name:
                        colour = (70, 150, 60) if good else (60, 60, 200)
                        cv2.circle(panel, tuple(spot(data.lat[photo], data.lon[photo])), 3, colour, -1, cv2.LINE_AA)
            cv2.putText(panel, name, (12, 322), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
            panels.append(panel)
        across = min(4, len(panels))
        panels += [np.full_like(panels[0], 255)] * (-len(panels) % across)
        sheet = np.concatenate([np.concatenate(panels[n : n + across], 1) for n in range(0, len(panels), across)])
        path = Path(chosen.out) / f"cells_{kind}.png"
        cv2.imwrite(str(path), sheet)
        print(path, f"{100 * right.mean():.1f} % of {len(test)} within 200 m")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("--out", required=True)
    making.add_argument("--cities", type=int, default=8)
    for verb in ("run", "pictures"):
        one = verbs.add_parser(verb)
        one.add_argument("--continent", required=True)
        one.add_argument("--runs", required=True)
        one.add_argument("--out", required=True)
        one.add_argument("--seeds", type=int, default=3)
        one.add_argument("--loss", action="append", dest="losses", choices=LOSSES, help="default all")
        one.add_argument("settings", nargs="*", help="name=value")
    showing = verbs.add_parser("show")
    showing.add_argument("results")
    chosen = parser.parse_args()
    if chosen.verb == "make":
        write_continent(chosen.out, cities=chosen.cities, progress=lambda done, _: print(f"\r{done}", end=""))
    else:
        {"run": run, "show": show, "pictures": pictures}[chosen.verb](chosen)


if __name__ == "__main__":
    main()
