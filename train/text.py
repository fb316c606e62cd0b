"""Trains the text model, which finds the place of a description.

    python train/text.py train/configs/text.yaml data.manifest=cities/ data.captions=captions.csv out=runs/text

In `geoloc_fast.training`: `command` says the options, `trainer` what `out` is given, `recipes/text` the settings and
their defaults.
"""

import sys

from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.text import evaluate_model, make_recipe

if __name__ == "__main__":
    sys.exit(main(__doc__, make_recipe, evaluate_model))
