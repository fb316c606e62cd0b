"""Where was this photo taken, and which way was it looking?

Places and photos are strips: small feature maps with one axis that is azimuth. Three operators carry the
idea (`polar_resample`, `azimuth_match`, `strip_topk`); docs/conventions.md says what every axis means.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.locator import Answer, Locator
    from geoloc_fast.models.contract import Photo, load_model

# Imported when first asked for: they need the extra [system], the operators need torch alone.
_SYSTEM = {
    "Answer": "geoloc_fast.locate.locator",
    "Locator": "geoloc_fast.locate.locator",
    "Manifest": "geoloc_fast.data.manifest",
    "Photo": "geoloc_fast.models.contract",
    "PlaceIndex": "geoloc_fast.index",
    "load_model": "geoloc_fast.models.contract",
}

__all__ = [
    "Answer",
    "AzimuthCrop",
    "AzimuthMatch",
    "Locator",
    "Manifest",
    "Photo",
    "PlaceIndex",
    "StripBank",
    "StripScore",
    "StripTopK",
    "TileSignature",
    "__version__",
    "azimuth_crop",
    "azimuth_match",
    "build_info",
    "load_model",
    "polar_resample",
    "shift_to_heading",
    "strip_curve",
    "strip_score",
    "strip_topk",
    "tile_signature",
]


def __getattr__(name: str) -> Any:
    if name not in _SYSTEM:
        raise AttributeError(f"module 'geoloc_fast' has no attribute {name!r}")
    try:
        found = getattr(importlib.import_module(_SYSTEM[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("geoloc_fast"):
            raise
        raise ImportError(
            f"geoloc_fast.{name} needs {error.name}, which is not installed: pip install 'geoloc_fast[system]'"
        ) from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
