"""Trains PanoGAN: python train/panogan.py train/configs/panogan_small.yaml data.manifest=cities/ out=runs/panogan

The settings are said in `geoloc_fast.training.recipes.panogan`.
"""

import sys

from geoloc_fast.training.recipes import panogan
from geoloc_fast.training.trainer import main

if __name__ == "__main__":
    sys.exit(main(str(panogan.__doc__), panogan.run))
