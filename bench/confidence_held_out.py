"""How a model's confidence holds in cities that neither it nor the confidence has seen, in regions of every size.

python bench/confidence_held_out.py cities/ [--model MODEL] [--real FOLDER_OF_PHOTOS]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import CityRecipe, write_recipes
from geoloc_fast.evaluation.elsewhere import Trials, blanks, located, trials
from geoloc_fast.evaluation.evaluate import contents, truth_of
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.confidence import RIGHT_M, Confidence
from geoloc_fast.models.contract import Photo, load_model, shipped_model
from geoloc_fast.region.encode import build_index

CITIES = {42_000: 100, 42_001: 100, 42_002: 100, 42_003: 200}  # seed to places


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--real", type=Path, help="photos of the real world: strangers to every synthetic city")
    given = parser.parse_args()
    model = load_model(given.model)
    confidence = Confidence.load(Confidence.path_for(given.model), model=model.fingerprint)
    sizes = Sizes.around(model.place_input.panorama_size)
    cities = {}
    for seed, places in CITIES.items():
        city = write_recipes(
            given.folder / str(seed), [CityRecipe("city", seed, None, places, sizes, (70.0, 110.0), TIDY)], jobs=2
        )
        build_index(given.folder / f"{seed}.index", model, city)
        rows = city.photos.to_pylist()
        cities[seed] = rows, [Photo(decode_image(content, "photo")) for content in contents(city, rows)]
    strangers = {kind: [Photo(image) for image in images] for kind, images in blanks(15, seed=9).items()}
    if given.real is not None:
        files = sorted(given.real.glob("*.jpg"))
        strangers["real"] = [Photo(decode_image(f.read_bytes(), f.name, at_least=(1, 512))) for f in files]
    parts = []
    for seed, (rows, photos) in cities.items():
        index = PlaceIndex.open(given.folder / f"{seed}.index")
        foreign = [photo for other, (_, theirs) in cities.items() if other != seed for photo in theirs[:20]]
        truth = truth_of(rows, index.keys())
        parts.append(trials(index, model, photos, truth, {"foreign": foreign, **strangers}, seed=seed))
    tried = Trials.joined(parts)
    given_answer = confidence.probability(tried.features) >= confidence.threshold
    rates = located(confidence, tried)
    kinds = sorted({kind for of_size in rates.values() for kind in of_size})
    print("| places | home located | of these right | " + " | ".join(kinds) + " |")
    for size, of_size in rates.items():
        here = (tried.size == size) & tried.here
        yes = here & given_answer
        right = f"{100 * (tried.away_m[yes] <= RIGHT_M).mean():.1f}" if yes.any() else "-"
        strange = " | ".join(f"{100 * of_size[kind]:.1f}" if kind in of_size else "-" for kind in kinds)
        print(f"| {size} | {100 * yes.sum() / max(1, here.sum()):.1f} of {here.sum()} | {right} | {strange} |")
    yes = tried.here & given_answer
    print(f"all: {yes.sum()} answers, {100 * np.mean(tried.away_m[yes] <= RIGHT_M):.1f} % right")


if __name__ == "__main__":
    main()
