"""`azimuth_crop` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast.ops import choose
from geoloc_fast.ops.azimuth_match import fake_gradients
from geoloc_fast.ops.library import register
from geoloc_fast.reference import azimuth_crop as reference
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
) -> tuple[Tensor, Tensor, Tensor]:
    choose.choose_backend("azimuth_crop", query.device.type, _NOT_WRITTEN)
    crop, score, shift = reference.azimuth_crop(query, strips, query_width, select, scale, tau, noise)
    choose.ran("azimuth_crop", "reference")
    return crop.to(query.dtype), score, shift


def _fake(query: Tensor, strips: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch = query.shape[0]
    score = query.new_empty((batch,), dtype=wide_dtype(query, strips))
    return query.new_empty(query.shape), score, query.new_empty((batch,), dtype=torch.int64)


def _run_backward(
    grad_crop: Tensor,
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
    choose.choose_backend("azimuth_crop_backward", query.device.type, _NOT_WRITTEN)
    with torch.enable_grad():
        q, s = query.detach().requires_grad_(), strips.detach().requires_grad_()
        a = None if scale is None else scale.detach().requires_grad_()
        crop, score, _ = reference.azimuth_crop(q, s, query_width, select, a, tau, noise)
        grads = torch.autograd.grad(
            (crop, score),
            [q, s] if a is None else [q, s, a],
            (grad_crop.to(crop.dtype), grad_score.to(score.dtype)),
        )
    choose.ran("azimuth_crop_backward", "reference")
    grad_scale = query.new_zeros((), dtype=wide_dtype(query, strips)) if a is None else grads[2]
    return grads[0], grads[1], grad_scale if scale is None else grad_scale.to(scale.dtype)


def _fake_backward(grad_crop: Tensor, grad_score: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return fake_gradients(args[0], args[1], args[4])


_ARGUMENTS = "Tensor query, Tensor strips, Tensor? query_width, str select, Tensor? scale, float tau, Tensor? noise"
forward = register(f"azimuth_crop({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _run, _fake)
backward = register(
    f"azimuth_crop_backward(Tensor grad_crop, Tensor grad_score, {_ARGUMENTS}, Tensor shift)"
    " -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
