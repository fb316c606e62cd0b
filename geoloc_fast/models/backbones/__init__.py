"""Backbones with published weights, read from files on this machine; nothing is downloaded.

Begin with `weights`, which reads and checks the files. `backbone` computes features with them.
"""

from geoloc_fast.models.backbones.backbone import Backbone
from geoloc_fast.models.backbones.circular import CircularConv2d, circular_twin
from geoloc_fast.models.backbones.weights import PACKAGES, Weights, read_weights

__all__ = ["PACKAGES", "Backbone", "CircularConv2d", "Weights", "circular_twin", "read_weights"]
