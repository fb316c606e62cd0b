"""Backbones with real weights, from files that are already on this machine: nothing is fetched.

Begin with `weights`, which reads and checks files; `backbone` makes features of them.
"""

from geoloc_fast.models.backbones.backbone import Backbone
from geoloc_fast.models.backbones.circular import CircularConv2d, circular_twin
from geoloc_fast.models.backbones.weights import PACKAGES, Weights, read_weights

__all__ = ["PACKAGES", "Backbone", "CircularConv2d", "Weights", "circular_twin", "read_weights"]
