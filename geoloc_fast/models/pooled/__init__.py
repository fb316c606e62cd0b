"""Published place-recognition networks with global pooling: one code per image. Begin with `model`."""

from geoloc_fast.models.pooled.checkpoint import load_checkpoint
from geoloc_fast.models.pooled.model import Pooled, PooledConfig

__all__ = ["Pooled", "PooledConfig", "load_checkpoint"]
