"""Checkpoints of published models of place recognition, in the layouts that they are handed out in.

| layout | names |
|---|---|
| timm, torchvision | those of the network; a classifier is left |
| of street level (CosPlace, EigenPlaces) | `backbone.N.*` of a ResNet, `aggregation.1.p`, `aggregation.3.*` |
| of cross view (Sample4Geo) | `model.*` of a timm network, `logit_scale` |

Each also with `module.` before every name. Nothing is fetched, and no accuracy is claimed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor

from geoloc_fast.errors import WeightsError
from geoloc_fast.models.backbones import read_weights
from geoloc_fast.models.pooled.model import Pooled, PooledConfig

__all__ = ["load_checkpoint"]

_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def load_checkpoint(source: str | os.PathLike[str], config: PooledConfig) -> Pooled:
    """The model of a checkpoint.

    Args:
        source: path of a .safetensors or .pth file (`read_weights`).
        config: `network` must be the timm name of the checkpoint's network; `gem` and `dimensions` are set by what is
            in the file.

    Raises:
        WeightsError: the file holds more than tensors, or not those of this network.
        OSError: it cannot be read.
    """
    weights = read_weights(source)
    tensors = {name.removeprefix("module."): value for name, value in weights.tensors.items()}
    if any(name.startswith("aggregation.") for name in tensors):
        found, layout = _street_level(tensors), "of street level"
        projection = found.get("projection.weight")
        config = dataclasses.replace(config, gem=True, dimensions=0 if projection is None else len(projection))
    elif all(name.startswith("model.") or name == "logit_scale" for name in tensors):
        found = {"network." + n.removeprefix("model."): v for n, v in tensors.items() if n != "logit_scale"}
        layout = "of cross view"
        config = dataclasses.replace(config, gem=False, dimensions=0)
    else:
        found, layout = {f"network.{name}": value for name, value in tensors.items()}, "of timm or torchvision"
        config = dataclasses.replace(config, gem=False, dimensions=0)
    provenance = {"weights": f"{weights.source}, layout {layout}, sha256 {weights.sha256}, licence {weights.licence}"}
    model = Pooled(dataclasses.replace(config, provenance={**config.provenance, **provenance}))
    own = model.state_dict()
    classifier = _classifier(config.network)
    extra = sorted(name for name in found if name not in own and not name.startswith(classifier))
    another = f"{source}: expected the weights of {config.network}, got those of another network"
    if extra:
        raise WeightsError(f"{another}: it has no {extra[0].removeprefix('network.')}")
    for name, value in own.items():
        given = found.get(name)
        if given is None and name.endswith("num_batches_tracked"):
            continue
        if given is None or given.shape != value.shape:
            got = "missing" if given is None else f"of shape {list(given.shape)}"
            raise WeightsError(f"{another}: {name.removeprefix('network.')} of shape {list(value.shape)} is {got}")
        if not bool(given.isfinite().all()):
            raise WeightsError(f"{source}: expected finite weights, got NaN or infinity in {name}")
    model.load_state_dict({name: value for name, value in found.items() if name in own}, strict=False)
    return model


def _street_level(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {"aggregation.1.p": "power", "aggregation.3.weight": "projection.weight"}
    named["aggregation.3.bias"] = "projection.bias"
    found = {}
    for name, value in tensors.items():
        if name in named:
            found[named[name]] = value
            continue
        part, _, rest = name.partition(".")
        child, _, leaf = rest.partition(".")
        if part != "backbone" or child not in _CHILDREN:
            raise WeightsError(f"source: expected the children of a ResNet and aggregation, got {name!r}")
        found[f"network.{_CHILDREN[child]}.{leaf}"] = value
    return found


def _classifier(network: str) -> tuple[str, ...]:
    """How the names begin of what a network classifies with."""
    whole: Any = timm.create_model(network, pretrained=False)
    configured = whole.pretrained_cfg["classifier"]
    names = (configured,) if isinstance(configured, str) else tuple(configured)
    return tuple(f"network.{name}." for name in names)
