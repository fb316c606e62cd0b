"""Where was this photo taken, and which way was the camera looking?

Places and photos become strips: small feature maps whose last axis is azimuth. The main operators are
`polar_resample`, `azimuth_match` and `strip_topk`; docs/reference/conventions.md defines every axis.
"""

import importlib
from typing import TYPE_CHECKING, Any

from geoloc_fast import _native

_native.check_environment()

from geoloc_fast._native import __version__, build_info  # noqa: E402

if TYPE_CHECKING:
    from geoloc_fast.azimuth import AzimuthCrop, AzimuthMatch, azimuth_crop, azimuth_match, shift_to_heading
    from geoloc_fast.data.manifest import Manifest
    from geoloc_fast.index import PlaceIndex
    from geoloc_fast.locate.locator import Answer, Locator
    from geoloc_fast.models.contract import Photo, load_model
    from geoloc_fast.polar import polar_resample
    from geoloc_fast.retrieval import StripBank, StripScore, StripTopK, strip_curve, strip_score, strip_topk
    from geoloc_fast.signature import TileSignature, tile_signature

# Imported when first asked for: who imports the package may still say how torch's threads shall wait (cli/__init__.py
# does), and the operators need torch alone, the rest the extra [system].
_HOMES = {
    "Answer": "geoloc_fast.locate.locator",
    "AzimuthCrop": "geoloc_fast.azimuth",
    "AzimuthMatch": "geoloc_fast.azimuth",
    "Locator": "geoloc_fast.locate.locator",
    "Manifest": "geoloc_fast.data.manifest",
    "Photo": "geoloc_fast.models.contract",
    "PlaceIndex": "geoloc_fast.index",
    "StripBank": "geoloc_fast.retrieval",
    "StripScore": "geoloc_fast.retrieval",
    "StripTopK": "geoloc_fast.retrieval",
    "TileSignature": "geoloc_fast.signature",
    "azimuth_crop": "geoloc_fast.azimuth",
    "azimuth_match": "geoloc_fast.azimuth",
    "load_model": "geoloc_fast.models.contract",
    "polar_resample": "geoloc_fast.polar",
    "shift_to_heading": "geoloc_fast.azimuth",
    "strip_curve": "geoloc_fast.retrieval",
    "strip_score": "geoloc_fast.retrieval",
    "strip_topk": "geoloc_fast.retrieval",
    "tile_signature": "geoloc_fast.signature",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'geoloc_fast' has no attribute {name!r}")
    try:
        found = getattr(importlib.import_module(_HOMES[name]), name)
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
