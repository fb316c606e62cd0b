"""The networks: encoder, fusion and the geolocalizer made of them.

Imports timm, which `import geoloc_fast` alone never does.
"""

from geoloc_fast.models.circular import circular_twin
from geoloc_fast.models.encoder import IMAGE_MEAN, IMAGE_STD, Encoder
from geoloc_fast.models.fusion import IAFF, MSCAM
from geoloc_fast.models.geolocalizer import (
    BundleError,
    Geolocalizer,
    GeolocalizerConfig,
    PhotoStrips,
)

__all__ = [
    "IAFF",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "MSCAM",
    "BundleError",
    "Encoder",
    "Geolocalizer",
    "GeolocalizerConfig",
    "PhotoStrips",
    "circular_twin",
]
