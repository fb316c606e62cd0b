"""`azimuth_match` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast.ops import choose
from geoloc_fast.ops.library import register
from geoloc_fast.reference import azimuth_match as reference
from geoloc_fast.reference.windows import wide_dtype

_NOT_WRITTEN = {name: choose.not_written(name) for name in ("cpu", "cuda", "triton")}


def _run(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    choose.choose_backend("azimuth_match", query.device.type, _NOT_WRITTEN)
    result = reference.azimuth_match(query, strips, query_width, select, scale, tau, noise)
    choose.ran("azimuth_match", "reference")
    return result


def _fake(query: Tensor, strips: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], strips.shape[0])
    score = query.new_empty(shape, dtype=wide_dtype(query, strips))
    return score, query.new_empty(shape, dtype=torch.int64)


def _run_backward(
    grad_score: Tensor,
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    choose.choose_backend("azimuth_match_backward", query.device.type, _NOT_WRITTEN)
    wide = wide_dtype(query, strips)
    grad_query = torch.zeros_like(query, dtype=wide)
    grad_strips = torch.empty_like(strips)
    grad_scale = query.new_zeros((), dtype=wide)
    at_once = reference.strips_at_once(query, strips, select)
    # Strips do not see one another, so the graph of one chunk at a time is enough.
    for begin in range(0, strips.shape[0], at_once):
        part = slice(begin, begin + at_once)
        with torch.enable_grad():
            q = query.detach().requires_grad_()
            s = strips[part].detach().requires_grad_()
            a = None if scale is None else scale.detach().requires_grad_()
            n = None if noise is None else noise[:, part]
            score, _ = reference.azimuth_match(q, s, query_width, select, a, tau, n)
            inputs = [q, s] if a is None else [q, s, a]
            grads = torch.autograd.grad(score, inputs, grad_score[:, part].to(score.dtype))
        grad_query += grads[0]
        grad_strips[part] = grads[1]
        if a is not None:
            grad_scale += grads[2]
    choose.ran("azimuth_match_backward", "reference")
    return grad_query.to(query.dtype), grad_strips, as_scale(grad_scale, scale)


def as_scale(grad: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient of `scale` in its own dtype; where there is no scale, a zero nobody reads."""
    return grad if scale is None else grad.to(scale.dtype)


def fake_gradients(query: Tensor, strips: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide_dtype(query, strips) if scale is None else scale.dtype
    return torch.empty_like(query), torch.empty_like(strips), query.new_empty((), dtype=dtype)


def _fake_backward(grad_score: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(args[0], args[1], args[4])


_ARGUMENTS = "Tensor query, Tensor strips, Tensor? query_width, str select, Tensor? scale, float tau, Tensor? noise"
forward = register(f"azimuth_match({_ARGUMENTS}) -> (Tensor, Tensor)", _run, _fake)
backward = register(
    f"azimuth_match_backward(Tensor grad_score, {_ARGUMENTS}, Tensor shift) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
