"""`azimuth_crop` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.azimuth_match import (
    KERNEL_DTYPES,
    SELECTION_CODES,
    can_run_cpu,
    can_run_cuda,
    can_run_triton,
    check_chosen,
    check_pairs,
    fake_gradients,
    native_scale,
    shared_problem,
)
from geoloc_fast.ops.library import register, without_autocast
from geoloc_fast.ops.workspace import workspace
from geoloc_fast.reference import azimuth_crop as reference
from geoloc_fast.reference.windows import wide_dtype

_reference = without_autocast(reference.azimuth_crop)


def _backend(op: str, query: Tensor, strips: Tensor) -> str:
    if choose.cpu_is_free(query) and query.dtype in KERNEL_DTYPES and strips.dtype in KERNEL_DTYPES:
        return "cpu"
    return choose.choose_backend(
        op,
        query.device.type,
        {
            "cpu": lambda: can_run_cpu(query, strips),
            "cuda": lambda: can_run_cuda(query, strips) or shared_problem("azimuth_crop", query, strips),
            "triton": lambda: can_run_triton(query, strips),
        },
    )


def _arguments(
    backend: str,
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The native module, and the first and the last arguments of its calls."""
    first = {
        "query": query,
        "strips": strips,
        "query_width": None if query_width is None else query_width.contiguous(),
        "select": SELECTION_CODES[select],
        "scale": native_scale(scale),
        "tau": tau,
        "noise": None if noise is None else noise.to(torch.float32),
    }
    native: Any
    if backend == "cpu":
        native, threads = _native.native_cpu, torch.get_num_threads()
        space = native.azimuth_crop_workspace(
            query.shape[1] * query.shape[2], query.shape[3], strips.shape[3], threads
        )  # fmt: skip
        return native, first, {"workspace": workspace(space), "threads": threads}
    native = _native.native_cuda
    space = native.azimuth_crop_workspace(query.shape[0], strips.shape[3])
    memory = torch.empty(space, dtype=torch.uint8, device=query.device)
    return native, first, {"workspace": memory, **choose.cuda_place(query)}


def _plan(backend: str) -> str:
    return f"{_native.native_cpu.isa()}/direct" if backend == "cpu" else ""  # type: ignore[union-attr]


def _run(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _backend("azimuth_crop", query, strips)
    if backend in ("cpu", "cuda"):
        size = query.shape
        # (torch takes sizes one by one in half the time of a shape)
        crop = query.new_empty(*size, dtype=torch.float32)
        score, shift = crop.new_empty(size[0]), crop.new_empty(size[0], dtype=torch.int64)
        native, first, last = _arguments(backend, query, strips, query_width, select, scale, tau, noise)
        native.azimuth_crop(**first, crop=crop, score=score, shift=shift, **last)
        choose.ran("azimuth_crop", backend, _plan(backend))
    elif backend == "triton":
        from geoloc_fast.triton_kernels import azimuth_crop as kernels

        crop, score, shift = kernels.forward(query, strips, query_width, select, scale, tau, noise)
        choose.ran("azimuth_crop", "triton")
    else:
        crop, score, shift = _reference(query, strips, query_width, select, scale, tau, noise)
        choose.ran("azimuth_crop", "reference")
    return crop if crop.dtype is query.dtype else crop.to(query.dtype), score, shift


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
    score: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _backend("azimuth_crop_backward", query, strips)
    if backend == "triton":
        from geoloc_fast.triton_kernels import azimuth_crop as kernels

        found = kernels.backward(
            grad_crop, grad_score, query, strips, query_width, select, scale, tau, noise, score, shift
        )  # fmt: skip
        choose.ran("azimuth_crop_backward", "triton")
        return found
    if backend in ("cpu", "cuda"):
        device = query.device
        grad_query = torch.empty(query.shape, dtype=torch.float32, device=device)
        grad_strips = torch.empty(strips.shape, dtype=torch.float32, device=device)
        grad_scales = None if scale is None else torch.empty(query.shape[:1], dtype=torch.float64, device=device)
        grad_crop = grad_crop.to(torch.float32).contiguous()
        grad_score = grad_score.to(torch.float32).contiguous()
        native, first, last = _arguments(backend, query, strips, query_width, select, scale, tau, noise)
        native.azimuth_crop_backward(
            **first, grad_crop=grad_crop, grad_score=grad_score, score=score, shift=shift, grad_query=grad_query,
            grad_strips=grad_strips, grad_scale=grad_scales, **last,
        )  # fmt: skip
        choose.ran("azimuth_crop_backward", backend, _plan(backend))
        if scale is None or grad_scales is None:
            grad_scale = torch.zeros((), dtype=torch.float32, device=device)
        else:
            grad_scale = grad_scales.sum().to(scale.dtype)
        return grad_query.to(query.dtype), grad_strips.to(strips.dtype), grad_scale
    gradients = reference.azimuth_crop_backward(
        grad_crop, grad_score, query, strips, query_width, select, scale, tau, noise
    )
    choose.ran("azimuth_crop_backward", "reference")
    return gradients


def _fake_backward(grad_crop: Tensor, grad_score: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return fake_gradients(args[0], args[1], args[4])


def _check(query: Tensor, strips: Tensor, *rest: Any) -> None:
    check_pairs(query.shape[:1], query, strips, *rest)
    if query.shape[0] != strips.shape[0]:
        raise ValueError(f"strips: expected {query.shape[0]} strips, one per query, got {strips.shape[0]}")


def _check_backward(grad_crop: Tensor, grad_score: Tensor, query: Tensor, strips: Tensor, *rest: Any) -> None:
    *others, score, shift = rest
    _check(query, strips, *others)
    checks.exactly("grad_crop", grad_crop, checks.FLOATS, query.shape, "query", query)
    checks.exactly("grad_score", grad_score, checks.FLOATS, query.shape[:1], "query", query)
    check_chosen(score, shift, query.shape[:1], query, strips)


_ARGUMENTS = "Tensor query, Tensor strips, Tensor? query_width, str select, Tensor? scale, float tau, Tensor? noise"
forward = register(f"azimuth_crop({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _run, _fake, check=_check, guard=False)
backward = register(
    f"azimuth_crop_backward(Tensor grad_crop, Tensor grad_score, {_ARGUMENTS}, Tensor score, Tensor shift)"
    " -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    check=_check_backward,
)
