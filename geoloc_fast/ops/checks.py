"""Argument checks of the public operators: every message names the argument, what was expected, and what was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PIXELS = (torch.uint8, *FLOATS)
SELECTIONS = ("correlation", "cosine", "gumbel")
SCORES = ("cosine", "dot")


def describe(value: Any) -> str:
    """A value in a message: a tensor by type, shape and device, anything else as it prints."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


def tensor(name: str, value: Any, dims: str, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """`dims` is the documented shape, such as "[B, C, H, W]"."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {dims}, got {describe(value)}")
    if value.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {names}, got {describe(value)}")
    if value.dim() != dims.count(",") + 1:
        raise ValueError(f"{name}: expected shape {dims}, got {describe(value)}")


def exactly(
    name: str,
    value: Tensor | None,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int],
    other_name: str,
    other: Tensor,
    *,
    contiguous: bool = False,
) -> None:
    """What a kernel is handed as it lies: dtype, shape, device, perhaps strides; None passes."""
    if value is None:
        return
    if contiguous and not value.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got stride {value.stride()}")
    if value.dtype not in dtypes or value.shape != tuple(shape):
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected {names} of shape {tuple(shape)}, got {describe(value)}")
    same_device(name, value, other_name, other)


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both lie on one device."""
    if not (value.is_cpu and other.is_cpu) and value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name} ({other.device}), got {value.device}")


def choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """TypeError or ValueError unless the value is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an integer, got {describe(value)}")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected an integer {limit}, got {value}")


def finite(name: str, value: Any) -> float:
    """The value as a float; an error unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """The value as a float; an error unless it is a finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")
    return number


def values_known(value: Tensor) -> bool:
    """Whether looking at the values costs nothing: on a GPU it would wait for the device, and under
    torch.compile there are none yet. The kernels are defined for any value either way."""
    return value.is_cpu and not torch.compiler.is_compiling()


def per_item(name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """A float64 tensor of `shape` (of one or two dimensions) from a number, a sequence or a tensor; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name}: has no gradient here, got a tensor that requires one; detach it")
        dtype = value.dtype
        if dtype is not torch.float64 and (dtype.is_complex or dtype == torch.bool):
            raise TypeError(f"{name}: expected real numbers, got {describe(value)}")
        if value.device != device:
            raise ValueError(f"{name}: expected the device of images ({device}), got {value.device}")
        result = value if dtype is torch.float64 else value.to(torch.float64)
    else:
        try:
            result = torch.as_tensor(value, dtype=torch.float64, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected numbers, got {describe(value)}") from error
    if result.shape != shape or not result.is_contiguous():
        try:
            result = result.expand(shape).contiguous()
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected shape {shape}, or one that broadcasts to it, got {tuple(result.shape)}"
            ) from error
    if result.is_cpu and not torch.compiler.is_compiling() and not _all_finite(result):
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    return result


def _all_finite(value: Tensor) -> bool:
    """For one or two dimensions. Python looks at a few numbers faster than torch does."""
    if value.numel() > 64:
        return bool(torch.isfinite(value).all())
    items = value.tolist()
    for numbers in [items] if value.dim() == 1 else items:
        for number in numbers:
            if number - number != 0.0:  # infinite or NaN
                return False
    return True


def strips_and_query(
    query: Any, strips: Any, query_name: str, query_dims: str, strips_name: str, strips_dims: str
) -> None:
    """Checks that queries and strips are tensors that can be compared: shapes, types, device."""
    tensor(query_name, query, query_dims)
    tensor(strips_name, strips, strips_dims)
    same_device(query_name, query, strips_name, strips)
    fits(query_name, query, strips_name, strips.shape)


def fits(name: str, query: Tensor, strips_name: str, strips_shape: Sequence[int]) -> None:
    """Whether a query [B, C, H, Wq] can slide round strips [R, C, H, W]."""
    _, channels, height, columns = strips_shape
    _, query_channels, query_height, width = query.shape
    if query_channels != channels or query_height != height:
        raise ValueError(
            f"{name}: expected C={channels}, H={height} as in {strips_name}, got C={query_channels}, H={query_height}"
        )
    if not 1 <= width <= columns:
        raise ValueError(f"{name}: expected 1 to {columns} columns (W of {strips_name}), got {width}")


def query_width(value: Any, query: Tensor) -> Tensor | None:
    """int64 [B], each from 1 to the padded width."""
    if value is None:
        return None
    tensor("query_width", value, "[B]", (torch.int64, torch.int32, torch.int16, torch.uint8))
    same_device("query_width", value, "query", query)
    batch, _, _, padded = query.shape
    (widths,) = value.shape
    if widths != batch:
        raise ValueError(f"query_width: expected {batch} widths (B of query), got {widths}")
    if values_known(value) and batch:
        low, high = extremes(value)
        if not 1 <= low <= high <= padded:
            raise ValueError(
                f"query_width: expected widths from 1 to {padded} (the padded width of query), got {low} to {high}"
            )
    return value if value.dtype is torch.int64 else value.to(torch.int64)


def ascending(name: str, value: Tensor) -> None:
    """For one dimension; equal neighbours may stand."""
    falls = value[1:] < value[:-1]
    if bool(falls.any()):
        at = int(falls.nonzero()[0])
        raise ValueError(
            f"{name}: expected ascending values (rows of one place lie together), "
            f"got {int(value[at + 1])} after {int(value[at])} at row {at + 1}"
        )


def extremes(value: Tensor) -> tuple[int, int]:
    """The smallest and the largest of one or more integers."""
    if value.numel() > 64:
        return int(value.min()), int(value.max())
    # Python looks at a few numbers faster than torch does.
    numbers = value.tolist()
    if isinstance(numbers[0], list):
        numbers = [number for row in numbers for number in row]
    return min(numbers), max(numbers)
