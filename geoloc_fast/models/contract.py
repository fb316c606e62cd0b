"""The contract of models: index, locator, evaluation and command line use a model only through this interface.

A model names its layers, describes the images that it expects, and encodes places to rows and queries to strips, by
layer. A new kind of model is a class with these attributes and methods and a line in `KINDS`: docs/design/rooms.md.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.errors import BundleError
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.models.bundle import fingerprint_of, kind_of

__all__ = [
    "KINDS",
    "SHIPPED",
    "AzimuthColumns",
    "Model",
    "Photo",
    "PlaceBatch",
    "PlaceInput",
    "Query",
    "QueryInput",
    "Text",
    "check_layers",
    "load_model",
    "model_path",
    "shipped_model",
]  # fmt: skip


# --- queries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """A perspective photo.

    A `Locator` takes any of these images and decodes them; `Model.encode_queries` is given arrays, upright. Their field
    of view is None where neither a person nor the file says it: the model then takes what `query_input` says.
    """

    image: str | os.PathLike[str] | bytes | np.ndarray
    """A path, the contents of a file, or uint8 [h, w, 3] RGB."""
    fov_deg: float | None = None
    """Horizontal field of view; None: what the file says, else what the model assumes or tries."""


class AzimuthColumns(NamedTuple):
    """A panorama or a crop of one: its columns are already azimuth, at the scale of the model's panoramas."""

    columns: np.ndarray
    """uint8 [H, w, 3] of a model whose whole turn is (H, W): it sees w / W of the horizon."""


class Text(NamedTuple):
    """A description of a place, in words."""

    text: str


Query = Photo | AzimuthColumns | Text


@dataclass(frozen=True)
class QueryInput:
    """What queries must be shown as."""

    takes: tuple[str, ...] = ("photo", "columns")
    """Of "photo", "columns" and "text"."""
    size: tuple[int, int] = (128, 512)
    """Rows and columns of a whole turn; a photo has these rows, and columns by its field of view."""
    assumed_fov_deg: float = 90.0
    """Of photos that do not say theirs."""
    tried_fov_deg: tuple[float, ...] = ()
    """What else such a photo may have been taken with: the model reads it with each, after the assumed one."""

    @property
    def readings_deg(self) -> tuple[float, ...]:
        """The fields of view that a photo which does not say its own is read with."""
        return (self.assumed_fov_deg, *self.tried_fov_deg)


# --- places ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlaceInput:
    """The images of places that a model expects: those that it was trained on."""

    takes: tuple[str, ...] = ("satellite", "street")
    """Of "satellite" and "street": which images of a place the model looks at. Both are decoded all the same."""
    satellite_px: int = 256
    """Side of the satellite square."""
    range_m: tuple[float, float] | None = None
    """Sides of the square, in metres on the ground, that it was trained on; None: any. An image of known resolution
    that shows more is cut to the larger, one that shows less is taken as it is: both with a warning."""
    border: str = "replicate"
    """Beyond the satellite image: "replicate" or "zeros". The model passes it to `polar_resample`."""
    panorama_size: tuple[int, int] = (128, 512)
    """Rows and columns of street views."""
    column0_deg: float = 180.0
    """Heading of column 0 of street views as they are given to `encode_places`."""
    standpoints_m: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    """Metres east and north of the place from which a satellite image is seen, a row each. The model makes the rows."""


class PlaceBatch(NamedTuple):
    """Decoded images of B places, as `PlaceInput` describes them, on the CPU or the model's device."""

    satellite: Tensor
    """uint8 [B, 3, S, S], north up; black where a place has none."""
    has_satellite: Tensor
    """bool [B]"""
    metres_per_pixel: Tensor
    """float64 [B] of `satellite`; NaN where unknown."""
    panorama: Tensor
    """uint8 [B, 3, H, W], in the frame of `column0_deg` where its heading is known."""
    has_panorama: Tensor
    """bool [B], of street views of known heading."""
    lat: Tensor
    """float64 [B]; NaN where unknown."""
    lon: Tensor


# --- models ----------------------------------------------------------------------------------------------


@runtime_checkable
class Model(Protocol):
    """The contract. `load_model` gives one of a file; a program may bring its own."""

    @property
    def kind(self) -> str:
        """A key of `KINDS`."""

    @property
    def name(self) -> str:
        """The name that answers give the model."""

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the bundle, by which an index and a confidence name their model. None for a new model."""

    @property
    def trained_on(self) -> str:
        """A word or two that answers repeat: "synthetic cities", "ImageNet features"."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of an index of this model, and how their scores add up."""

    @property
    def place_input(self) -> PlaceInput:
        """The images of places that the model expects."""

    @property
    def query_input(self) -> QueryInput:
        """What queries must be shown as."""

    def encode_places(self, batch: PlaceBatch) -> dict[str, Rows]:
        """Rows by layer, by the names of `layers`. `Rows.place` is the position in the batch, ascending; a place may
        have several rows in a layer, or none."""

    def encode_queries(self, queries: Sequence[Query]) -> dict[str, QueryStrips]:
        """Strips by layer, one per query; width 0 where a query has nothing in a layer. Layers with a heading have
        the same widths. A layer in which no query has anything may be left out. Where the model tries several fields of
        view, a `Photo` without one has a reading for each (`QueryStrips.query`), in the order of `query_input`."""


KINDS: dict[str, str | Callable[..., Model]] = {
    "geolocalizer": "geoloc_fast.models.geolocalizer.model:Geolocalizer.load",
    "cells": "geoloc_fast.models.cells.model:CellGeolocalizer.load",
    "text": "geoloc_fast.models.text.model:TextGeolocalizer.load",
    "layered": "geoloc_fast.models.layered.model:Layered.load",
    "pooled": "geoloc_fast.models.pooled.model:Pooled.load",
}
"""Kind of a bundle to what loads it, called as load(path, device=...): a callable, or "module:name" that is imported
when it is first needed."""


SHIPPED = ("city", "real")
"""Names of the models that ship, and what they are for: "city", the default, finds photos of synthetic cities and says
how sure it is; "real" lists candidates for real photos."""


def shipped_model(name: str = SHIPPED[0]) -> Path:
    """The bundle of a model that ships with the package."""
    if name not in SHIPPED:
        raise ValueError(f"name: expected one of {', '.join(SHIPPED)}, got {name!r}")
    return Path(str(resources.files("geoloc_fast") / "assets" / f"{name}.safetensors"))


def model_path(model: str | os.PathLike[str] | None = None, *, fingerprint: str | None = None) -> Path:
    """The bundle that is meant by the name of a model that ships or by a path. Default: of those that ship that with
    `fingerprint`, which an index knows, else the first."""
    if model is None:
        paths = [shipped_model(name) for name in SHIPPED]
        return next((p for p in paths if fingerprint is not None and fingerprint_of(p) == fingerprint), paths[0])
    text = os.fspath(model)
    return shipped_model(text) if text in SHIPPED else Path(text)


def load_model(path: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> Model:
    """Loads a model of any kind, by the path of its bundle or the name of a model in the package. Default: the first.

    BundleError if this version cannot load it; OSError if it cannot be read."""
    path = model_path(path)
    kind = kind_of(path)
    load = KINDS.get(kind)
    if load is None:
        raise BundleError(
            f"{path}: expected a model of kind {', '.join(sorted(KINDS))}, got {kind!r}; a program with a kind of its "
            "own sets KINDS first, and calls geoloc_fast.cli.main for the commands"
        )
    if isinstance(load, str):
        module, _, name = load.partition(":")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        load = found
    model = load(path, device=torch.device(device))
    try:
        check_layers(model.layers)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    return model


def check_layers(layers: Sequence[Layer]) -> None:
    """ValueError unless an index can hold them: names differ, and those with a heading share W and `column0_deg`."""
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    if len({layer.name for layer in layers}) < len(layers):
        raise ValueError(f"layers: expected different names, got {', '.join(layer.name for layer in layers)}")
    frames = {(layer.strip[2], layer.column0_deg) for layer in layers if layer.column0_deg is not None}
    if len(frames) > 1:
        raise ValueError(f"layers: expected one width and column0_deg where there is a heading, got {sorted(frames)}")
