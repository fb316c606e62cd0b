"""`azimuth_crop` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.azimuth_match import (
    CODES,
    SELECTION_CODES,
    address,
    as_float,
    can_run_cpu,
    can_run_cuda,
    can_run_triton,
    check_chosen,
    check_pairs,
    device_scale,
    fake_gradients,
    native_tensor,
    shared_problem,
)
from geoloc_fast.ops.library import register, without_autocast
from geoloc_fast.ops.workspace import workspace
from geoloc_fast.reference import azimuth_crop as reference
from geoloc_fast.reference.windows import wide_dtype

_reference = without_autocast(reference.azimuth_crop)


def _backend(op: str, query: Tensor, strips: Tensor) -> str:
    if choose.cpu_is_free(query) and query.dtype in CODES and strips.dtype in CODES:
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
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[tuple[Any, ...], Tensor, list[Tensor]]:
    """The leading native arguments, the work space, and what must stay alive during the call."""
    query_width = None if query_width is None else query_width.contiguous()
    noise = None if noise is None else noise.to(torch.float32)
    native: Any = _native.native_cpu
    size = native.azimuth_crop_workspace(
        query.shape[1] * query.shape[2], query.shape[3], strips.shape[3], torch.get_num_threads()
    )
    arguments = (
        *native_tensor(query), *native_tensor(strips), address(query_width), SELECTION_CODES[select], as_float(scale),
        tau, address(noise), (0, 0) if noise is None else noise.stride(),
    )  # fmt: skip
    return arguments, workspace(size), [t for t in (query_width, noise) if t is not None]


def _arguments_cuda(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...], list[Tensor]]:
    """The leading and the last native arguments, and what must stay alive during the call."""
    native: Any = _native.native_cuda
    query_width = None if query_width is None else query_width.contiguous()
    noise = None if noise is None else noise.to(torch.float32)
    scale = device_scale(scale)
    space = native.azimuth_crop_workspace(query.shape[0], strips.shape[3])
    memory = torch.empty(space, dtype=torch.uint8, device=query.device)
    first = (
        *native_tensor(query), *native_tensor(strips), address(query_width), SELECTION_CODES[select], address(scale),
        tau, address(noise), (0, 0) if noise is None else noise.stride(),
    )  # fmt: skip
    last = memory.data_ptr(), query.device.index, torch.cuda.current_stream(query.device).cuda_stream
    return first, last, [t for t in (query_width, noise, scale, memory) if t is not None]


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
    if backend == "cpu":
        native: Any = _native.native_cpu
        batch = query.shape[0]
        crop = torch.empty(*query.shape, dtype=torch.float32)
        score = torch.empty(batch, dtype=torch.float32)
        shift = torch.empty(batch, dtype=torch.int64)
        arguments, memory, _alive = _arguments(query, strips, query_width, select, scale, tau, noise)
        native.azimuth_crop(
            *arguments, crop.data_ptr(), score.data_ptr(), shift.data_ptr(), memory.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        choose.ran("azimuth_crop", "cpu", f"{native.isa()}/direct")
    elif backend == "cuda":
        crop = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        score = torch.empty(query.shape[:1], dtype=torch.float32, device=query.device)
        shift = torch.empty(query.shape[:1], dtype=torch.int64, device=query.device)
        first, last, _alive = _arguments_cuda(query, strips, query_width, select, scale, tau, noise)
        cuda: Any = _native.native_cuda
        cuda.azimuth_crop(*first, crop.data_ptr(), score.data_ptr(), shift.data_ptr(), *last)
        choose.ran("azimuth_crop", "cuda")
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
        own = (
            grad_crop.data_ptr(), grad_score.data_ptr(), score.data_ptr(), shift.data_ptr(), grad_query.data_ptr(),
            grad_strips.data_ptr(), address(grad_scales),
        )  # fmt: skip
        if backend == "cpu":
            native: Any = _native.native_cpu
            arguments, memory, _alive = _arguments(query, strips, query_width, select, scale, tau, noise)
            native.azimuth_crop_backward(*arguments, *own, memory.data_ptr(), torch.get_num_threads())
            choose.ran("azimuth_crop_backward", "cpu", f"{native.isa()}/direct")
        else:
            cuda: Any = _native.native_cuda
            first, last, _alive = _arguments_cuda(query, strips, query_width, select, scale, tau, noise)
            cuda.azimuth_crop_backward(*first, *own, *last)
            choose.ran("azimuth_crop_backward", "cuda")
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
        raise ValueError(f"strips: expected {query.shape[0]} strips, one a query, got {strips.shape[0]}")


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
