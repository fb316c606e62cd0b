"""Layers of strips from frozen features and linear maps, fitted in closed form. Begin with `model`."""

from geoloc_fast.models.layered.columns import column_features
from geoloc_fast.models.layered.model import EYES, LAYERS, Layered, LayeredConfig

__all__ = ["EYES", "LAYERS", "Layered", "LayeredConfig", "column_features"]
