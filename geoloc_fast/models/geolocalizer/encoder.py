"""Image to strip: a timm feature backbone and the head that reduces it to `[C, H, W]`.

Images are `[B, 3, H, W]`, either uint8 (normalised here with `IMAGE_MEAN` and `IMAGE_STD`) or
floating point already normalised that way, which is what
`polar_resample(..., mean=IMAGE_MEAN, std=IMAGE_STD)` returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from geoloc_fast.models.backbones.circular import circular_twin

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "Encoder", "normalise_image", "normalise_strip"]

IMAGE_MEAN = (123.675, 116.28, 103.53)
"""ImageNet mean per RGB channel, in grey levels 0..255."""
IMAGE_STD = (58.395, 57.12, 57.375)
"""ImageNet standard deviation per RGB channel, in grey levels 0..255."""


def normalise_image(images: Tensor) -> Tensor:
    """uint8 `[B, 3, H, W]` to normalised float32; floating point passes as it is."""
    if images.is_floating_point():
        return images
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8 or normalised floating point, got {images.dtype}")
    mean = torch.tensor(IMAGE_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def normalise_strip(strips: Tensor) -> Tensor:
    """Strips `[N, C, H, W]` at unit L2 norm over (C, H, W), in float32; zero strips stay zero."""
    return F.normalize(strips.float().flatten(1), dim=1).view_as(strips)


class Encoder(nn.Module):
    """Images to unit-norm strips.

    `backbone` is any timm model with feature maps; the map whose stride is `backbone_stride` is
    taken (16: the first three stages of a ConvNeXt). The head then halves height and width
    together, then height or width alone, until the strip's size is reached, and ends in two 3x1
    convolutions, a norm and a 1x1 convolution to the strip's channels. It mixes rows freely and
    never neighbouring columns, beyond what halving the width takes. ConvNeXt-Base on 128x512 gives
    512x8x32, halved to 1024x4x16, then the paper's 16x4x16.

    `pretrained` downloads the backbone's weights with timm; `load_pretrained` takes weights from a file. Neither
    happens by itself.

    All norms written here work per sample, so batch size 1 trains. A backbone with BatchNorm
    mixes the statistics of photos, panoramas and satellite images; prefer one without.
    """

    def __init__(
        self,
        backbone: str = "convnext_base",
        *,
        image_size: tuple[int, int] = (128, 512),
        strip: tuple[int, int, int] = (16, 4, 16),
        backbone_stride: int = 16,
        backbone_kwargs: Mapping[str, Any] | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size = image_size
        self.strip = strip
        features = _feature_backbone(backbone, backbone_stride, backbone_kwargs or {}, pretrained)
        steps = _reduction_steps(image_size, strip, backbone_stride)
        self.network = _StripNetwork(features, steps, strip[0])
        self.head_pretrained = False
        """Whether `load_pretrained` found weights of the head too."""
        self._hold_twin()

    def load_pretrained(self, path: str | os.PathLike[str], part: str = "encoder") -> None:
        """Weights of the backbone from a safetensors file of the whole timm model, of its feature part, or of a
        `Geolocalizer`, whose encoder `part` is taken, or that of photos where it has none of that name, with its head
        where that is of the same shape.

        Every tensor of this backbone must be in it with its shape; what else is in it (the classifier, later stages)
        is left. ValueError otherwise, and nothing is changed.
        """
        try:
            file = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
        heads: dict[str, Tensor] = {}
        for prefix in (f"{part}.network.", "encoder.network."):
            ours = {name.removeprefix(prefix): value for name, value in file.items() if name.startswith(prefix)}
            if ours:
                file = {k.removeprefix("backbone."): v for k, v in ours.items() if k.startswith("backbone.")}
                heads = {k.removeprefix("head."): v for k, v in ours.items() if k.startswith("head.")}
                break
        found = {_plain(name): value for name, value in file.items()}
        taken = {}
        for name, own in self.network.backbone.state_dict().items():
            value = found.get(_plain(name))
            if value is None or value.shape != own.shape:
                got = "nothing" if value is None else str(list(value.shape))
                raise ValueError(f"{path}: expected {name} {list(own.shape)} of {self.backbone}, got {got}")
            taken[name] = value
        self.network.backbone.load_state_dict(taken)
        own_head = self.network.head.state_dict()
        self.head_pretrained = {k: v.shape for k, v in heads.items()} == {k: v.shape for k, v in own_head.items()}
        if self.head_pretrained:
            self.network.head.load_state_dict(heads)

    def _hold_twin(self) -> None:
        # In a tuple: the twin's parameters are the network's own and must not be listed again.
        self._circular = (circular_twin(self.network),)

    @property
    def columns_per_strip_column(self) -> int:
        """Image columns under one strip column: the encoder's total stride along azimuth."""
        return self.image_size[1] // self.strip[2]

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        self._circular[0].train(mode)
        return self

    def forward(self, images: Tensor, *, circular: bool) -> Tensor:
        """Strips `[B, C, H, W]` of `images`, float32, each at unit norm over (C, H, W).

        With `circular` the image is a full turn of `image_size` columns and every convolution
        wraps along azimuth. Without it the image is a photo, of any width that is a multiple of
        `columns_per_strip_column`, and gives one strip column for each such stretch.
        """
        height, width = self.image_size
        cell = self.columns_per_strip_column
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != height:
            raise ValueError(f"images: expected [B, 3, {height}, W], got {list(images.shape)}")
        if circular and images.shape[3] != width:
            raise ValueError(f"images: expected a full turn of {width} columns, got {images.shape[3]}")
        if images.shape[3] % cell or not cell <= images.shape[3] <= width:
            raise ValueError(
                f"images: expected a width that is a multiple of {cell} from {cell} to {width}, got {images.shape[3]}"
            )
        network = self._circular[0] if circular else self.network
        return normalise_strip(network(normalise_image(images)))


def _plain(name: str) -> str:
    # timm's feature part calls `stages.0.blocks` `stages_0.blocks`.
    return name.replace(".", "_")


class _StripNetwork(nn.Module):
    def __init__(self, backbone: nn.Module, steps: list[tuple[int, int]], strip_channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        channels: int = backbone.feature_info.channels()[-1]  # type: ignore[union-attr,operator]
        layers: list[nn.Module] = []
        for step in steps:
            layers.append(LayerNorm2d(channels))
            if step == (2, 2):
                layers.append(nn.Conv2d(channels, 2 * channels, 2, stride=2))
                channels *= 2
            elif step == (2, 1):
                layers.append(nn.Conv2d(channels, channels, (3, 1), stride=step, padding=(1, 0)))
            else:
                layers.append(nn.Conv2d(channels, channels, (1, 2), stride=step))
        layers += [
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels // 2, (3, 1), padding=(1, 0)),
            nn.GELU(),
            nn.Conv2d(channels // 2, strip_channels, (3, 1), padding=(1, 0)),
            LayerNorm2d(strip_channels),
            nn.Conv2d(strip_channels, strip_channels, 1),
        ]
        self.head = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)[-1])


def _feature_backbone(name: str, stride: int, kwargs: Mapping[str, Any], pretrained: bool) -> nn.Module:
    def create(*, pretrained: bool = False, **more: Any) -> Any:
        return timm.create_model(name, features_only=True, pretrained=pretrained, **kwargs, **more)

    with torch.device("meta"):  # only to read the strides
        reductions = create().feature_info.reduction()
    if stride not in reductions:
        raise ValueError(f"backbone_stride: expected one of {reductions}, the strides of {name}, got {stride}")
    return create(out_indices=(reductions.index(stride),), pretrained=pretrained)


def _reduction_steps(image_size: tuple[int, int], strip: tuple[int, int, int], stride: int) -> list[tuple[int, int]]:
    """The strides (height, width) of the head, each factor 1 or 2, from backbone map to strip."""
    factors = []
    for axis, image, target in zip(("height", "width"), image_size, strip[1:], strict=True):
        factor, rest = divmod(image, stride * target)
        if rest or factor < 1 or factor & (factor - 1):
            raise ValueError(
                f"strip: expected an image {axis} of {target} x {stride} (the backbone's stride) "
                f"x a power of two, got {image} for a strip {axis} of {target}"
            )
        factors.append(factor)
    high, wide = factors
    steps = []
    while high > 1 or wide > 1:
        step = (min(high, 2), min(wide, 2))
        steps.append(step)
        high, wide = high // step[0], wide // step[1]
    return steps
