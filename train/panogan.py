"""Trains PanoGAN, which makes street views from satellite images.

    python train/panogan.py train/configs/panogan_small.yaml data.manifest=cities/ out=runs/panogan

In `geoloc_fast.training`: `command` says the options, `trainer` what `out` is given, `recipes/panogan` the settings and
their defaults.
"""

import sys

from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.panogan import evaluate_model, make_recipe

if __name__ == "__main__":
    sys.exit(main(__doc__, make_recipe, evaluate_model))
