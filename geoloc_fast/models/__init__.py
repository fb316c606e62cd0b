"""Models: the contract that all of them fulfil, their files, and one folder for each kind of model.

This room may use images, layers and the operators, but no index and no manifest. It imports timm, which
`import geoloc_fast` alone does not. Begin with `contract`, then read the folder of one kind of model.
"""

from geoloc_fast.models.backbones.circular import circular_twin
from geoloc_fast.models.contract import load_model
from geoloc_fast.models.geolocalizer.encoder import IMAGE_MEAN, IMAGE_STD, Encoder
from geoloc_fast.models.geolocalizer.fusion import AFF, AWA, FCL, FUSIONS, IAFF, MSCAM, Concat
from geoloc_fast.models.geolocalizer.model import (
    Geolocalizer,
    GeolocalizerConfig,
    PhotoStrips,
)
from geoloc_fast.models.panogan.model import PanoGAN, PanoGANConfig

__all__ = [
    "AFF",
    "AWA",
    "FCL",
    "FUSIONS",
    "IAFF",
    "IMAGE_MEAN",
    "IMAGE_STD",
    "MSCAM",
    "Concat",
    "Encoder",
    "Geolocalizer",
    "GeolocalizerConfig",
    "PanoGAN",
    "PanoGANConfig",
    "PhotoStrips",
    "circular_twin",
    "load_model",
]
