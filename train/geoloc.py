"""Trains the geolocalizer: python train/geoloc.py train/configs/small.yaml data.manifest=cities/ out=runs/small

The settings, what the folder `out` is given and how to go on are said in `geoloc_fast.training.trainer`.
"""

import sys

from geoloc_fast.training.trainer import main

if __name__ == "__main__":
    sys.exit(main())
