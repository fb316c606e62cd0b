"""A photo and a description together against the better one of them: synthetic cities that neither model saw.

    python bench/text_beside_photo.py cities/ --photo-model city --text-model runs/text/best.safetensors --folder out/

Each city's places are the gallery of its photos (field of view known) and of one description of each photo's place, as
long as `--length` says. The weight of the text is fitted on the cities of `--validation` (`fit_scales`) and counts on
the others, by the way of the command: two indexes, `Locator.locate(photo, text=...)`. What is found is kept in
`--folder`, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoloc_fast.city.captions import LENGTHS, scenes_of
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.described import paired_interval
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.locate.together import DEPTH, add_up, fit_scales
from geoloc_fast.models.contract import Model, Photo, Query, Text, load_model, shipped_model
from geoloc_fast.region.encode import build_index
from geoloc_fast.training.region import places_where


def scores(model: Model, manifest: Manifest, queries: Sequence[Query], path: Path) -> np.ndarray:
    """Of queries for all places, [Q, R] in the manifest's order: what an index names of them, the last of it for the
    others. From a file if there is one."""
    kept = path.with_suffix(".npy")
    if kept.exists():
        return np.load(kept)
    if not path.exists():
        build_index(path, model, manifest)
    order = {key: row for row, key in enumerate(manifest.places["id"].to_pylist())}
    with PlaceIndex.open(path) as index:
        row_of = np.zeros(1 + max(index.keys().values()), np.int64)
        for key, number in index.keys().items():
            row_of[number] = order[key]
        score = np.empty((len(queries), len(order)))
        for at, query in enumerate(queries):
            found = index.search(model.encode_queries([query]), min(DEPTH, len(index)), layers=model.layers).photo(0)
            named = found.id >= 0
            score[at] = found.score[named][-1]
            score[at, row_of[found.id[named]]] = found.score[named]
    np.save(kept, score)
    return score


def ranks(score: np.ndarray, truth: np.ndarray) -> np.ndarray:
    own = score[np.arange(len(truth)), truth][:, None]
    first = (score == own) & (np.arange(score.shape[1]) < truth[:, None])
    return ((score > own) | first).sum(1)


def together(photo: np.ndarray, text: np.ndarray, ratio: float) -> np.ndarray:
    """As `add_up` does it for whole galleries."""
    rows = np.arange(photo.shape[1])
    total = np.empty_like(photo)
    for at, (one, other) in enumerate(zip(photo, text, strict=True)):
        both = add_up(neighbours(rows, one), neighbours(rows, other), ratio, len(rows))
        total[at, both.id] = both.score
    return total


def neighbours(rows: np.ndarray, score: np.ndarray) -> Neighbours:
    order = np.lexsort((rows, -score))
    empty = {name: np.zeros(len(rows)) for name in Neighbours._fields}
    return Neighbours._make({**empty, "id": rows[order], "score": score[order], "exact": np.bool_(True)}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cities", type=Path)
    parser.add_argument("--photo-model", required=True)
    parser.add_argument("--text-model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--validation", nargs="+", required=True, help="cities on which the weight is fitted")
    parser.add_argument("--length", choices=LENGTHS, default="long")
    given = parser.parse_args()
    whole = Manifest.load(given.cities)
    path = Path(given.photo_model)
    photos = load_model(path if path.exists() else shipped_model(given.photo_model))
    words = load_model(given.text_model)
    given.folder.mkdir(parents=True, exist_ok=True)
    parts: dict[bool, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {True: [], False: []}
    for city in dict.fromkeys(whole.places["city"].to_pylist()):
        places = places_where(whole, whole.places, {"city": city})
        order = {key: row for row, key in enumerate(places["id"].to_pylist())}
        rows = [row for row in whole.photos.to_pylist() if row["place"] in order]
        manifest = whole.replace(places=places, photos=whole.photos.slice(0, 0))
        told = {
            scene.place: scene.descriptions[LENGTHS.index(given.length)]
            for scene in scenes_of(given.cities, places=order)
        }
        truth = np.array([order[row["place"]] for row in rows])
        pictures = [Photo(decode_image(whole.open_image(row["image"]), row["image"]), row["fov_deg"]) for row in rows]
        texts = [Text(told[row["place"]].text) for row in rows]
        seen = scores(photos, manifest, pictures, given.folder / f"{city}.photo")
        read = scores(words, manifest, texts, given.folder / f"{city}.{given.length}")
        parts[city in given.validation].append((seen, read, truth))
    fitted = parts[True]
    if len({score.shape[1] for score, _, _ in fitted}) != 1:
        raise ValueError("--validation: expected cities of as many places each")
    ratio = fit_scales(*(np.concatenate(part) for part in zip(*fitted, strict=True))).ratio
    print(json.dumps({"weight": round(ratio, 4)}))
    for name, of in (("validation", fitted), ("unseen", parts[False])):
        rank = {what: np.concatenate([ranks(one, truth) for one, truth in every]) for what, every in {
            "photo": [(photo, truth) for photo, _, truth in of],
            "text": [(text, truth) for _, text, truth in of],
            "together": [(together(photo, text, ratio), truth) for photo, text, truth in of],
        }.items()}  # fmt: skip
        line: dict[str, Any] = {"cities": name, "queries": len(rank["photo"])}
        for what, one in rank.items():
            line[what] = {"R@1": percent((one == 0).mean()), "R@5": percent((one < 5).mean()), "MRR": mrr(one)}
        better = max(("photo", "text"), key=lambda what: mrr(rank[what]))
        first = [(rank[what] == 0).astype(float) for what in ("together", better)]
        line[f"R@1 minus {better}"] = [percent(value) for value in paired_interval(*first)]
        inverse = [1 / (1 + rank[what]) for what in ("together", better)]
        line[f"MRR minus {better}"] = [round(value, 4) for value in paired_interval(*inverse)]
        print(json.dumps(line))


def percent(share: Any) -> float:
    return round(100 * float(share), 2)


def mrr(rank: np.ndarray) -> float:
    return round(float((1 / (1 + rank)).mean()), 4)


if __name__ == "__main__":
    main()
