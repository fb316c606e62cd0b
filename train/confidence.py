"""Fits the confidence of the model that ships: python train/confidence.py cities/ [--model MODEL]

On five synthetic cities that no model was trained on; MODEL.confidence.json is written beside the model.
"""

import argparse
from pathlib import Path

from geoloc_fast.city.views import TIDY, Sizes
from geoloc_fast.city.write import CityRecipe, write_recipes
from geoloc_fast.evaluation.elsewhere import Trials, blanks, fit, located, trials
from geoloc_fast.evaluation.evaluate import contents, truth_of
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.models.contract import Photo, load_model, shipped_model
from geoloc_fast.region.encode import build_index

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=shipped_model())
    given = parser.parse_args()
    model = load_model(given.model)
    sizes = Sizes.around(model.place_input.panorama_size)
    cities = {}
    for seed in range(31_000, 31_005):
        recipe = CityRecipe("city", seed, None, 200, sizes, (70.0, 110.0), TIDY)
        city = write_recipes(given.folder / str(seed), [recipe], jobs=2)
        build_index(given.folder / f"{seed}.index", model, city)
        rows = city.photos.to_pylist()
        cities[seed] = rows, [Photo(decode_image(content, "photo")) for content in contents(city, rows)]
    strangers = {kind: [Photo(image) for image in images] for kind, images in blanks(15).items()}
    tried = []
    for seed, (rows, photos) in cities.items():
        index = PlaceIndex.open(given.folder / f"{seed}.index")
        foreign = [photo for other, (_, theirs) in cities.items() if other != seed for photo in theirs[:12]]
        tried.append(
            trials(index, model, photos, truth_of(rows, index.keys()), {"foreign": foreign, **strangers}, seed=seed)
        )
    confidence = fit(model, Trials.joined(tried), layers=[layer.name for layer in model.layers])
    confidence.save(Confidence.path_for(given.model))
    print(f"threshold {confidence.threshold:.3f}, from {confidence.least_places} places on; located elsewhere:")
    print(located(confidence, Trials.joined(tried)))
