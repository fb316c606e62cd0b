"""The cities that results are reported on, frozen.

    python bench/city_benchmark.py            # scenes, and two places of each city rendered
    python bench/city_benchmark.py --scenes   # scenes alone

The hash of a scene covers everything drawn in metres, rounded to the centimetre: it depends on NumPy's
random streams and on nothing else that may differ between machines. The hash of views covers rendered
bytes, which also depend on the versions of NumPy and OpenCV (and, in the last bit of a sine, on the
instruction set NumPy chose).
"""

from __future__ import annotations

import argparse
import hashlib
import sys

import cv2
import numpy as np

from geoloc_fast.city.scene import City
from geoloc_fast.city.views import missing_street_views, take
from geoloc_fast.city.write import CityRecipe, recipes

SEED, CITIES, PLACES = 2025, 12, 400
SCENES = {
    "00-harbour": "f811247d53dd017aaec4af8c1e4297aa392a76845e441364336dded35d764e70",
    "01-grid": "357c83e9e6b2e36ab9b784a99919d89d344f3c3658ff5335f4decaee1786ceeb",
    "02-medieval": "3b58edc67923b0614b940c0bc337984a80652c1d8e7b77a81eb73e75d5e9a839",
    "03-suburb": "ba6b8c09c97864a839436ce62d8a0283ce926bb6c9006e778c1a8fb9d7d86d62",
    "04-slabs": "4750d5787ce8fe8a055ab79d50fcf88992e884fa2cd5032649952b3d6b0ba15c",
    "05-mediterranean": "b969406f09d700dbf8129c2ec6d5a2cef607d2261fccd9d845623cb74ed872a3",
    "06-boulevards": "0f37d9f9fe7d5abcc1feee3f563a66b52532baec2dc1362f424d311babdbbd52",
    "07-terraces": "870944d99a15c5f9da328202e7c1595bc4bc77e0041586f9f61e332f3b4eec1b",
    "08-desert": "8ba002ec92015fd027303504086465d24c09b5503653ccdc07545ed2ce4cd747",
    "09-tropics": "e5e680dfb412ae8f54347a551ae99a0dc836772578335083f706548c98935824",
    "10-industrial": "0ef7dc1421f4f1bdbb49d5099a1c1118dbaafcfb10950d8da528797c979339e1",
    "11-nordic": "b4d107ac25cbae183f1d856304078ad5773b32ca552705030125c1f0c562b50c",
}
VIEWS = "d7d08bb43273051775412ed902265e10b46fb40a6f4bcbfeb80e12cf650c2ad2"
VIEWS_MADE_WITH = "numpy 2.4.6, opencv 5.0.0"
_VIEWED = (0, PLACES - 1)  # places of each city


def benchmark_recipes() -> list[CityRecipe]:
    """Twelve cities of 400 places at realistic sizes, with the troubles of a crowd."""
    return recipes(seed=SEED, cities=CITIES, places=PLACES)


def build(recipe: CityRecipe) -> City:
    return City.build(recipe.seed, places=recipe.places, style=recipe.style)


def add_views(digest: hashlib._Hash, recipe: CityRecipe, city: City) -> None:
    missing = missing_street_views(city, recipe.capture.missing)
    for n in _VIEWED:
        view = take(
            city, n, sizes=recipe.sizes, fov_range=recipe.fov_range, capture=recipe.capture, missing=bool(missing[n])
        )
        for image in (view.satellite, view.panorama, view.classes, view.photo):
            digest.update(b"none" if image is None else np.ascontiguousarray(image).tobytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--scenes", action="store_true", help="render nothing")
    arguments = parser.parse_args()
    digest, same = hashlib.sha256(), True
    for recipe in benchmark_recipes():
        city = build(recipe)
        frozen = SCENES.get(recipe.name)
        same &= city.fingerprint == frozen
        print(f"{recipe.name:18} {recipe.area:6} {city.fingerprint} {'as frozen' if same else f'FROZEN AS {frozen}'}")
        if not arguments.scenes:
            add_views(digest, recipe, city)
    if not arguments.scenes:
        made_with = f"numpy {np.__version__}, opencv {cv2.__version__}"
        print(f"views              {digest.hexdigest()} with {made_with}")
        if digest.hexdigest() != VIEWS:
            print(f"frozen views       {VIEWS} with {VIEWS_MADE_WITH}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
