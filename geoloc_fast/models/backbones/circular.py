"""Circular padding along azimuth for a network that was written with zero padding.

A panorama and a polar satellite image close on themselves: their last column is the neighbour of
their first. A photo does not. Both go through the same weights, so one network is needed in two
paddings, and `circular_twin` makes the second out of the first.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

__all__ = ["CircularConv2d", "circular_twin"]

M = TypeVar("M", bound=nn.Module)

# Modules that pad by a rule of their own. Passing them through would break the roll property in
# silence, so they are refused when they pad.
_PADDING_POOLS = (nn.AvgPool2d, nn.LPPool2d)
_PADDING_LAYERS = (
    nn.ZeroPad2d,
    nn.ConstantPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    BlurPool2d,
)


def _wrapped(input: Tensor, left: int, right: int) -> Tensor:
    columns = input.shape[-1]
    if max(left, right) > columns:
        raise ValueError(f"input: expected at least {max(left, right)} columns to pad circularly, got {columns}")
    return torch.cat((input[..., columns - left :], input, input[..., :right]), dim=-1)


class CircularConv2d(nn.Conv2d):
    """A Conv2d whose padding is circular along width and zero along height."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        x = _wrapped(input, left, right)
        if top == bottom:
            height_padding = top
        else:  # padding="same" with an even kernel
            x = F.pad(x, (0, 0, top, bottom))
            height_padding = 0
        return F.conv2d(x, weight, bias, self.stride, (height_padding, 0), self.dilation, self.groups)


class _CircularConv2dSame(nn.Conv2d):
    """timm's Conv2d that pads by the size of its input, circular along width."""

    def forward(self, input: Tensor) -> Tensor:
        high, wide = (
            get_same_padding(size, kernel, stride, dilation)
            for size, kernel, stride, dilation in zip(
                input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        x = F.pad(_wrapped(input, wide // 2, wide - wide // 2), (0, 0, high // 2, high - high // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class _CircularMaxPool2d(nn.MaxPool2d):
    """A MaxPool2d whose window goes round along width."""

    def forward(self, input: Tensor) -> Tensor:
        high, wide = _pair(self.padding)
        x = F.pad(_wrapped(input, wide, wide), (0, 0, high, high), value=float("-inf"))
        return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def circular_twin(module: M) -> M:
    """A second view of `module` whose every convolution pads circularly along width.

    The twin owns nothing: each of its modules holds the very same parameter and buffer
    dictionaries as the original, so `.to()`, `load_state_dict`, an optimiser step or an assignment
    on one is seen by the other for good. Only the module tree is its own, with padded `Conv2d` and
    `MaxPool2d` replaced; along height the padding stays as it was. What does not pad passes unchanged.

    The property it exists for: when the input's width is a multiple of the network's total stride,
    rolling the input by one stride rolls the output by one column, exactly (up to the order of
    floating-point sums).

    Keep the twin out of the owner's module tree (in a tuple, say), or its parameters are listed
    twice, and forward `train()` to it: the training flag is per module. `copy.deepcopy` of an
    owner keeps the copy's twin tied to the copy. Modules added to the original later are not seen.

    Raises:
        TypeError: a module pads in a way that has no circular form here (padded average
            pooling or transposed convolution, padding layers, a convolution with its own padding code, a
            `padding_mode` other than "zeros"). The message names the module.
    """
    return _twin(module, "", {})


def _twin(module: M, name: str, made: dict[int, nn.Module]) -> M:
    if id(module) in made:  # a module used in two places stays one module
        return made[id(module)]  # type: ignore[return-value]
    twin: M = object.__new__(_twin_class(module, name))
    twin.__dict__.update(module.__dict__)
    twin.__dict__.pop("_compiled_call_impl", None)  # bound to the original
    made[id(module)] = twin
    twin.__dict__["_modules"] = {
        key: None if child is None else _twin(child, f"{name}.{key}".lstrip("."), made)
        for key, child in module._modules.items()
    }
    return twin


def _twin_class(module: nn.Module, name: str) -> type[Any]:
    def refuse(what: str) -> TypeError:
        return TypeError(
            f"module: expected only Conv2d layers with zero padding to make circular, got "
            f"{type(module).__name__} at '{name or 'the root'}' {what}"
        )

    cls: type[Any] = type(module)
    if cls is Conv2dSame:
        return _CircularConv2dSame
    if isinstance(module, nn.Conv2d):
        own = cls.forward is not nn.Conv2d.forward
        own |= cls._conv_forward is not nn.Conv2d._conv_forward
        if own:
            raise refuse("with padding code of its own")
        if module.padding_mode != "zeros":
            raise refuse(f"with padding_mode={module.padding_mode!r}")
        if any(module._reversed_padding_repeated_twice):
            return CircularConv2d
    elif isinstance(module, nn.modules.conv._ConvNd):
        if any(p != 0 for p in module.padding):
            raise refuse(f"with padding={module.padding}")
    elif isinstance(module, (nn.MaxPool2d, *_PADDING_POOLS)):
        padding = _pair(getattr(module, "padding", 0))
        # Windows that neither overlap nor leave gaps divide the width, and there is nothing to round up.
        rounds = module.ceil_mode and module.kernel_size != module.stride
        if not any(cls.forward is pool.forward for pool in (nn.MaxPool2d, *_PADDING_POOLS)):
            raise refuse("with padding code of its own")
        if rounds or (padding != (0, 0) and (cls is not nn.MaxPool2d or module.return_indices)):
            raise refuse(f"with padding={padding}, ceil_mode={module.ceil_mode}")
        if padding != (0, 0):
            return _CircularMaxPool2d
    elif isinstance(module, _PADDING_LAYERS):
        raise refuse(f"with padding={module.padding}")
    return cls
