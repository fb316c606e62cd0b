"""Circular padding along azimuth for a network that was written with zero padding.

A panorama and a polar satellite image close on themselves: their last column is the neighbour of
their first. A photo does not. Both go through the same weights, so one network is needed in two
paddings, and `circular_twin` makes the second out of the first.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["circular_twin"]

M = TypeVar("M", bound=nn.Module)

# Modules that pad by a rule of their own. Passing them through would break the roll property in
# silence, so they are refused when they pad.
_PADDING_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
_PADDING_LAYERS = (
    nn.ZeroPad2d,
    nn.ConstantPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)


class _CircularConv2d(nn.Conv2d):
    """A Conv2d whose padding is circular along width and zero along height."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if max(left, right) > input.shape[-1]:
            raise ValueError(
                f"input: expected at least {max(left, right)} columns to pad circularly, got {input.shape[-1]}"
            )
        x = torch.cat((input[..., input.shape[-1] - left :], input, input[..., :right]), dim=-1)
        if top == bottom:
            height_padding = top
        else:  # padding="same" with an even kernel
            x = F.pad(x, (0, 0, top, bottom))
            height_padding = 0
        return F.conv2d(x, weight, bias, self.stride, (height_padding, 0), self.dilation, self.groups)


def circular_twin(module: M) -> M:
    """A second view of `module` whose every convolution pads circularly along width.

    The twin owns nothing: each of its modules holds the very same parameter and buffer
    dictionaries as the original, so `.to()`, `load_state_dict`, an optimiser step or an assignment
    on one is seen by the other for good. Only the module tree is its own, with padded `Conv2d`
    replaced; along height the padding stays zero. Convolutions without padding pass unchanged.

    The property it exists for: when the input's width is a multiple of the network's total stride,
    rolling the input by one stride rolls the output by one column, exactly (up to the order of
    floating-point sums).

    Keep the twin out of the owner's module tree (in a tuple, say), or its parameters are listed
    twice, and forward `train()` to it: the training flag is per module. `copy.deepcopy` of an
    owner keeps the copy's twin tied to the copy. Modules added to the original later are not seen.

    Raises:
        TypeError: a module pads in a way that has no circular form here (padded pooling or
            transposed convolution, padding layers, a convolution with its own padding code, a
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
    if isinstance(module, nn.Conv2d):
        own = cls.forward is not nn.Conv2d.forward
        own |= cls._conv_forward is not nn.Conv2d._conv_forward
        if own:
            raise refuse("with padding code of its own")
        if module.padding_mode != "zeros":
            raise refuse(f"with padding_mode={module.padding_mode!r}")
        if any(module._reversed_padding_repeated_twice):
            return _CircularConv2d
    elif isinstance(module, nn.modules.conv._ConvNd):
        if any(p != 0 for p in module.padding):
            raise refuse(f"with padding={module.padding}")
    elif isinstance(module, _PADDING_POOLS):
        padding = getattr(module, "padding", 0)
        if padding not in (0, (0, 0)) or module.ceil_mode:
            raise refuse(f"with padding={padding}, ceil_mode={module.ceil_mode}")
    elif isinstance(module, _PADDING_LAYERS):
        raise refuse(f"with padding={module.padding}")
    return cls
