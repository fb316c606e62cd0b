"""Trains the cell model: codes of S2 cells from prototypes and aerial tiles.

    python train/cells.py train/configs/cells_small.yaml data.manifest=continent/ out=runs/cells

In `geoloc_fast.training`: `command` says the options, `trainer` what `out` is given, `recipes/cells` the settings and
their defaults.
"""

import sys

from geoloc_fast.training.command import main
from geoloc_fast.training.recipes.cells import evaluate_model, make_recipe

if __name__ == "__main__":
    sys.exit(main(__doc__, make_recipe, evaluate_model))
