"""The first stages of a published network: images to feature maps, circular or not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from geoloc_fast.errors import WeightsError
from geoloc_fast.models.backbones.weights import Weights, read_weights

__all__ = ["Backbone", "reduced"]

# torch says it by a private name, which torch 2.4 does not have.
_BF16 = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())
"""Whether this processor multiplies bfloat16: features then take a third of the time and differ by about 1 %."""


class Backbone(nn.Module):
    """Feature maps of a timm EfficientNet at some strides; what lies behind the last of them is cut off.

    The statistics of its batch norms are folded into the convolutions, so a map depends neither on what else is in
    the batch nor on training or evaluation, and half of the layers are gone. Images are `[B, 3, H, W]`, uint8 or
    floating point normalised with `mean` and `std`.
    """

    mean, std = (127.5,) * 3, (127.5,) * 3
    """Per channel, in grey levels: what these weights were trained with."""

    def __init__(self, name: str = "tf_efficientnet_lite0", strides: Sequence[int] = (8,)) -> None:
        """Fresh weights; `load_pretrained` brings real ones.

        Args:
            name: a timm model made of `conv_stem`, `bn1` and `blocks`, without squeeze-and-excitation over the whole
                image: features must be local.
            strides: image pixels per feature, ascending; one map is returned for each.
        """
        super().__init__()
        network, ends = _network(name, strides)
        self.name, self.strides = name, tuple(strides)
        self.channels = tuple(_channels(network, end) for end in ends)
        """Of each map."""
        self.loaded = "fresh weights"
        """One line: which weights these are."""
        self.cut = _Cut(network, ends)
        self._margins = _margins(self.cut, self.strides)

    def load_pretrained(self, source: str | os.PathLike[str]) -> Weights:
        """Weights of a file or package (`read_weights`), which must hold every tensor of this backbone with its shape;
        what else is in it, the stages behind and the classifier, is left. WeightsError otherwise, and nothing is
        changed. Returns what was read, for its provenance."""
        weights = read_weights(source)
        network, ends = _network(self.name, self.strides)
        kept = ("conv_stem.", "bn1.", *(f"blocks.{n}." for n in range(ends[-1])))
        own = {
            name: value
            for name, value in network.state_dict().items()
            if name.startswith(kept) and not name.endswith(".num_batches_tracked")
        }
        another = f"pretrained: expected the weights of {self.name}, got those of another network in {weights.source}"
        deeper = [name for name in weights.tensors if name.startswith(kept) and name not in network.state_dict()]
        if deeper:
            raise WeightsError(f"{another}: it has no {deeper[0]}")
        for name, value in own.items():
            found = weights.tensors.get(name)
            if found is None or found.shape != value.shape:
                got = "missing" if found is None else f"of shape {list(found.shape)}"
                raise WeightsError(f"{another}: {name} of shape {list(value.shape)} is {got}")
            if not bool(found.isfinite().all()):
                raise WeightsError(f"pretrained: expected finite weights, got NaN or infinity in {name}")
        network.load_state_dict({name: weights.tensors[name] for name in own}, strict=False)
        self.cut.load_state_dict(_Cut(network, ends).state_dict())
        self.loaded = (
            f"{self.name} to stride {self.strides[-1]}: {len(own)} of the {len(weights.tensors)} tensors of "
            f"{weights.source} (sha256 {weights.sha256[:12]}, licence {weights.licence})"
        )
        return weights

    def forward(self, images: Tensor, *, circular: bool, strides: Sequence[int] | None = None) -> list[Tensor]:
        """Maps `[B, channels, ceil(H / stride), ceil(W / stride)]`, one for each of `strides`, default all of them;
        what lies behind the last of these is not computed.

        With `circular` the images are a full turn that closes on itself: rolling an image by one stride rolls its map
        by one column, exactly, where W is a multiple of the last stride. The image goes on round the turn by as much
        as a feature sees and the maps are cut again, which takes two thirds of the time of wrapping before every
        convolution.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected [B, 3, H, W], got {list(images.shape)}")
        wanted = self.strides if strides is None else tuple(strides)
        if circular and images.shape[3] % wanted[-1]:
            raise ValueError(
                f"images: expected a full turn of a multiple of {wanted[-1]} columns, got {images.shape[3]}"
            )
        if not images.is_floating_point():
            if images.dtype != torch.uint8:
                raise TypeError(f"images: expected uint8 or normalised floating point, got {images.dtype}")
            images = (images - self.mean[0]) / self.std[0]
        count = self.strides.index(wanted[-1]) + 1
        width, margin = images.shape[3], self._margins[count - 1] if circular else 0
        if circular:
            images = images[..., torch.arange(-margin, width + margin, device=images.device) % width]
        with reduced(images):
            maps: list[Tensor] = self.cut(images, count)
        if circular:
            maps = [x[..., margin // s : (margin + width) // s] for x, s in zip(maps, self.strides, strict=False)]
        return [maps[self.strides.index(stride)].to(images.dtype) for stride in wanted]


def reduced(images: Tensor) -> torch.autocast:
    """A context in which float32 convolutions run in bfloat16 where that is faster."""
    kind = images.device.type
    half = images.dtype == torch.float32 and (kind == "cuda" or (kind == "cpu" and _BF16))
    return torch.autocast(kind, torch.bfloat16, enabled=half)


class _Cut(nn.Module):
    def __init__(self, network: Any, ends: list[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        starts = [0, *ends[:-1]]
        self.parts = nn.ModuleList(nn.Sequential(*network.blocks[a:b]) for a, b in zip(starts, ends, strict=True))
        _fold(self)

    def forward(self, images: Tensor, count: int) -> list[Tensor]:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        maps = []
        for part in self.parts[:count]:
            x = part(x)
            maps.append(x)
        return maps


def _network(name: str, strides: Sequence[int]) -> tuple[Any, list[int]]:
    """The whole timm model, and behind how many of its stages each stride ends."""
    strides = list(strides)
    if ":" in name:
        raise ValueError(f"name: expected the plain name of a timm model, got {name!r}")
    network: Any = timm.create_model(name, pretrained=False).eval()
    if not all(hasattr(network, part) for part in ("conv_stem", "bn1", "blocks")):
        raise ValueError(f"name: expected an EfficientNet of timm, got {name!r}")
    ends = {info["reduction"]: int(info["module"].split(".")[1]) + 1 for info in network.feature_info}
    if not strides or strides != sorted(set(strides)) or not set(strides) <= set(ends):
        raise ValueError(f"strides: expected some of {sorted(ends)}, ascending, got {strides}")
    return network, [ends[stride] for stride in strides]


def _margins(cut: _Cut, strides: Sequence[int]) -> list[int]:
    """How many columns to either side a feature of each stride sees, rounded up to the stride."""
    reach, jump = 0, 1
    margins: list[int] = []
    for part, step in zip(cut.parts, strides, strict=True):
        for module in (*(() if margins else cut.stem.modules()), *part.modules()):  # in the order in which they run
            if isinstance(module, nn.Conv2d):
                reach += module.kernel_size[1] // 2 * jump
                jump *= module.stride[1]
        margins.append(-(-reach // step) * step)
    return margins


def _channels(network: Any, end: int) -> int:
    return next(int(info["num_chs"]) for info in network.feature_info if info["module"] == f"blocks.{end - 1}")


def _fold(module: nn.Module) -> None:
    """Puts each batch norm into the convolution that is listed before it, in place; its activation stays."""
    before: nn.Conv2d | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            before = child
        elif isinstance(child, BatchNormAct2d):
            if before is None or before.out_channels != child.num_features:
                raise ValueError(f"name: expected a convolution before every batch norm, got {name} without one")
            assert child.running_mean is not None
            assert child.running_var is not None
            before.weight, bias = fuse_conv_bn_weights(
                before.weight, before.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias
            )
            before.bias = bias
            setattr(module, name, child.act)
            before = None
        else:
            if not isinstance(child, nn.Identity):
                before = None
            _fold(child)
