"""One code an image, by public weights of networks with global pooling. Begin with `model`."""

from geoloc_fast.models.pooled.checkpoint import load_checkpoint
from geoloc_fast.models.pooled.model import Pooled, PooledConfig

__all__ = ["Pooled", "PooledConfig", "load_checkpoint"]
