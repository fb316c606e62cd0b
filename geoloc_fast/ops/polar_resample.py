"""`polar_resample` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import choose
from geoloc_fast.ops.library import register
from geoloc_fast.reference import polar_resample as reference

# DType in csrc/include/geoloc_fast/types.h
_CODES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
_MAX_CHANNELS = _native.native_cpu.max_channels if _native.native_cpu else 16


def _common(images: Tensor, dtype: torch.dtype, mean: list[float]) -> str:
    if images.dtype not in _CODES or dtype not in _CODES:
        return f"no kernel for {images.dtype} to {dtype}"
    if mean and images.shape[1] > _MAX_CHANNELS:
        return f"normalises at most {_MAX_CHANNELS} channels"
    return ""


def _run(
    images: Tensor,
    rows: int,
    cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
    replicate_border: bool,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    backend = choose.choose_backend(
        "polar_resample",
        images.device.type,
        {
            "cpu": lambda: choose.can_run_cpu(images) or _common(images, dtype, mean),
            "cuda": lambda: choose.can_run_cuda(images) or _common(images, dtype, mean),
            "triton": choose.not_written("triton"),
        },
    )
    if backend == "reference":
        out = reference.polar_resample(
            images, rows, cols, column0_deg, outer_radius, center, max_radius, heading_deg, replicate_border,
            mean, std, dtype,
        )  # fmt: skip
    else:
        out = torch.empty((*images.shape[:2], rows, cols), dtype=dtype, device=images.device)
        arguments = (
            images.data_ptr(), _CODES[images.dtype], images.shape, images.stride(), out.data_ptr(), _CODES[dtype],
            rows, cols, *(0 if item is None else item.data_ptr() for item in (center, max_radius, heading_deg)),
            column0_deg, outer_radius, replicate_border, mean, std,
        )  # fmt: skip
        if backend == "cpu":
            _native.native_cpu.polar_resample(*arguments, torch.get_num_threads())  # type: ignore[union-attr]
        else:
            stream = torch.cuda.current_stream(images.device)
            _native.native_cuda.polar_resample(*arguments, images.device.index, stream.cuda_stream)  # type: ignore[union-attr]
    choose.ran("polar_resample", backend, _native.native_cpu.isa() if backend == "cpu" else "")  # type: ignore[union-attr]
    return out


def _fake(images: Tensor, rows: int, cols: int, *rest: Any) -> Tensor:
    return images.new_empty((images.shape[0], images.shape[1], rows, cols), dtype=rest[-1])


def _run_backward(
    grad: Tensor,
    in_rows: int,
    in_cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
    replicate_border: bool,
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    choose.choose_backend(
        "polar_resample_backward",
        grad.device.type,
        {name: choose.not_written(name) for name in ("cpu", "cuda", "triton")},
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        images = grad.new_zeros((*grad.shape[:2], in_rows, in_cols), dtype=wide).requires_grad_()
        out = reference.polar_resample(
            images, grad.shape[2], grad.shape[3], column0_deg, outer_radius, center, max_radius, heading_deg,
            replicate_border, [0.0] * len(std), std, wide,
        )  # fmt: skip
        (grad_images,) = torch.autograd.grad(out, images, grad.to(wide))
    choose.ran("polar_resample_backward", "reference")
    return grad_images.to(dtype)


def _fake_backward(grad: Tensor, in_rows: int, in_cols: int, *rest: Any) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], in_rows, in_cols), dtype=rest[-1])


forward = register(
    "polar_resample(Tensor images, SymInt rows, SymInt cols, float column0_deg, bool outer_radius, Tensor? center, "
    "Tensor? max_radius, Tensor? heading_deg, bool replicate_border, float[] mean, float[] std, ScalarType dtype)"
    " -> Tensor",
    _run,
    _fake,
)
backward = register(
    "polar_resample_backward(Tensor grad, SymInt in_rows, SymInt in_cols, float column0_deg, bool outer_radius, "
    "Tensor? center, Tensor? max_radius, Tensor? heading_deg, bool replicate_border, float[] std, ScalarType dtype)"
    " -> Tensor",
    _run_backward,
    _fake_backward,
)
