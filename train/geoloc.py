"""Trains the geolocalizer on the pairs of a manifest.

    python train/geoloc.py train/configs/small.yaml data.manifest=cities/ out=runs/small

In `geoloc_fast.training`: `command` says the options, `trainer` what `out` is given, `recipes/geolocalizer/settings`
the settings and their defaults.
"""

import sys

from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.geolocalizer import evaluate_model, make_recipe

if __name__ == "__main__":
    sys.exit(main(__doc__, make_recipe, evaluate_model))
