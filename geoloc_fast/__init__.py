"""Where was this photo taken, and which way was it looking?

Places and photos are strips: small feature maps with one axis that is azimuth. Three operators carry the
idea (`polar_resample`, `azimuth_match`, `strip_topk`); docs/conventions.md says what every axis means.
"""

from geoloc_fast import _native

_native.check_required()

from geoloc_fast._native import __version__, build_info  # noqa: E402
from geoloc_fast.azimuth import (  # noqa: E402
    AzimuthCrop,
    AzimuthMatch,
    azimuth_crop,
    azimuth_match,
    shift_to_heading,
)
from geoloc_fast.polar import polar_resample  # noqa: E402
from geoloc_fast.retrieval import (  # noqa: E402
    StripBank,
    StripScore,
    StripTopK,
    strip_curve,
    strip_score,
    strip_topk,
)
from geoloc_fast.signature import TileSignature, tile_signature  # noqa: E402

__all__ = [
    "AzimuthCrop",
    "AzimuthMatch",
    "StripBank",
    "StripScore",
    "StripTopK",
    "TileSignature",
    "__version__",
    "azimuth_crop",
    "azimuth_match",
    "build_info",
    "polar_resample",
    "shift_to_heading",
    "strip_curve",
    "strip_score",
    "strip_topk",
    "tile_signature",
]
