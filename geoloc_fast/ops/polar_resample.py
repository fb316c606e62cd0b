"""`polar_resample` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.library import register, without_autocast
from geoloc_fast.reference import polar_resample as reference

_KERNEL_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_reference = without_autocast(reference.polar_resample)
_MAX_CHANNELS = _native.native_cpu.max_channels if _native.native_cpu else 16


def _common(images: Tensor, dtype: torch.dtype, std: list[float]) -> str:
    if images.dtype not in _KERNEL_DTYPES or dtype not in _KERNEL_DTYPES:
        return f"no kernel for {images.dtype} to {dtype}"
    if std and images.shape[1] > _MAX_CHANNELS:
        return f"normalises at most {_MAX_CHANNELS} channels"
    return ""


def _backend(op: str, images: Tensor, dtype: torch.dtype, std: list[float], cuda_problem: str = "") -> str:
    # The usual case, without collecting reasons.
    if choose.cpu_is_free(images) and not _common(images, dtype, std):
        return "cpu"
    return choose.choose_backend(
        op,
        images.device.type,
        {
            "cpu": lambda: choose.can_run_cpu(images) or _common(images, dtype, std),
            "cuda": lambda: choose.can_run_cuda(images) or _common(images, dtype, std) or cuda_problem,
            "triton": lambda: choose.can_run_triton(images) or _common(images, dtype, []),
        },
    )


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
    mean_std: list[float],  # C means, then C standard deviations; or empty: every argument costs a call 0.2 µs
    dtype: torch.dtype,
) -> Tensor:
    channels = len(mean_std) // 2
    mean, std = (mean_std[:channels], mean_std[channels:]) if channels else (mean_std, mean_std)
    backend = _backend("polar_resample", images, dtype, std)
    plan = ""
    if backend == "reference":
        out = _reference(
            images, rows, cols, column0_deg, outer_radius, center, max_radius, heading_deg, replicate_border,
            mean, std, dtype,
        )  # fmt: skip
    elif backend == "triton":
        from geoloc_fast.triton_kernels import polar_resample as kernels

        out = kernels.forward(
            images, rows, cols, column0_deg, outer_radius, center, max_radius, heading_deg, replicate_border,
            mean_std, dtype,
        )  # fmt: skip
    else:
        size = images.shape
        out = images.new_empty((size[0], size[1], rows, cols), dtype=dtype)
        native: Any = _native.native_cpu if backend == "cpu" else _native.native_cuda
        last = {"threads": torch.get_num_threads()} if backend == "cpu" else choose.cuda_place(images)
        plan = native.polar_resample(
            images=images, rows=rows, cols=cols, out=out, center=center, max_radius=max_radius,
            heading_deg=heading_deg, column0_deg=column0_deg, outer_radius=outer_radius,
            replicate_border=replicate_border, mean=mean, std=std, **last,
        )  # fmt: skip
    choose.ran("polar_resample", backend, plan or "")
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
    unordered = "its additions have no fixed order" if torch.are_deterministic_algorithms_enabled() else ""
    backend = _backend("polar_resample_backward", grad, dtype, std, unordered)
    if backend in ("cpu", "cuda"):
        grad = grad.contiguous()
        # The kernel adds in float32 whatever the images are.
        grad_images = grad.new_empty((*grad.shape[:2], in_rows, in_cols), dtype=torch.float32)
        native: Any = _native.native_cpu if backend == "cpu" else _native.native_cuda
        last = {"threads": torch.get_num_threads()} if backend == "cpu" else choose.cuda_place(grad)
        plan = native.polar_resample_backward(
            grad_out=grad, in_rows=in_rows, in_cols=in_cols, grad_images=grad_images, center=center,
            max_radius=max_radius, heading_deg=heading_deg, column0_deg=column0_deg, outer_radius=outer_radius,
            replicate_border=replicate_border, std=std, **last,
        )  # fmt: skip
        choose.ran("polar_resample_backward", backend, plan or "")
        return grad_images.to(dtype)
    if backend == "triton":
        from geoloc_fast.triton_kernels import polar_resample as kernels

        grad_images = kernels.backward(
            grad, in_rows, in_cols, column0_deg, outer_radius, center, max_radius, heading_deg, replicate_border,
            std, dtype,
        )  # fmt: skip
        choose.ran("polar_resample_backward", "triton")
        return grad_images
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        images = grad.new_zeros((*grad.shape[:2], in_rows, in_cols), dtype=wide).requires_grad_()
        out = _reference(
            images, grad.shape[2], grad.shape[3], column0_deg, outer_radius, center, max_radius, heading_deg,
            replicate_border, [0.0] * len(std), std, wide,
        )  # fmt: skip
        (grad_images,) = torch.autograd.grad(out, images, grad.to(wide))
    choose.ran("polar_resample_backward", "reference")
    return grad_images.to(dtype)


def _fake_backward(grad: Tensor, in_rows: int, in_cols: int, *rest: Any) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], in_rows, in_cols), dtype=rest[-1])


def _check_geometry(
    images: Tensor, center: Tensor | None, max_radius: Tensor | None, heading_deg: Tensor | None
) -> None:
    for name, value, shape in (
        ("center", center, (2,)),
        ("max_radius", max_radius, ()),
        ("heading_deg", heading_deg, ()),
    ):
        checks.exactly(name, value, (torch.float64,), (images.shape[0], *shape), "images", images, contiguous=True)


def _check(
    images: Tensor,
    rows: int,
    cols: int,
    column0_deg: float,
    outer_radius: bool,
    center: Tensor | None,
    max_radius: Tensor | None,
    heading_deg: Tensor | None,
    replicate_border: bool,
    mean_std: list[float],
    dtype: torch.dtype,
) -> None:
    checks.tensor("images", images, "[B, C, H, W]", checks.PIXELS)
    checks.whole("rows", rows, 1)
    checks.whole("cols", cols, 1)
    if 0 in images.shape[2:]:
        raise ValueError(f"images: expected at least one pixel, got {checks.describe(images)}")
    if len(mean_std) not in (0, 2 * images.shape[1]):
        raise ValueError(f"mean_std: expected {2 * images.shape[1]} numbers or none, got {len(mean_std)}")
    checks.choice("dtype", dtype, checks.PIXELS)
    _check_geometry(images, center, max_radius, heading_deg)


def _check_backward(
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
) -> None:
    checks.tensor("grad", grad, "[B, C, H, W]")
    checks.whole("in_rows", in_rows, 1)
    checks.whole("in_cols", in_cols, 1)
    if len(std) not in (0, grad.shape[1]):
        raise ValueError(f"std: expected {grad.shape[1]} numbers or none, got {len(std)}")
    checks.choice("dtype", dtype, checks.FLOATS)
    _check_geometry(grad, center, max_radius, heading_deg)


forward = register(
    "polar_resample(Tensor images, SymInt rows, SymInt cols, float column0_deg, bool outer_radius, Tensor? center, "
    "Tensor? max_radius, Tensor? heading_deg, bool replicate_border, float[] mean_std, ScalarType dtype)"
    " -> Tensor",
    _run,
    _fake,
    check=_check,
    guard=False,  # only the reference computes with torch
)
backward = register(
    "polar_resample_backward(Tensor grad, SymInt in_rows, SymInt in_cols, float column0_deg, bool outer_radius, "
    "Tensor? center, Tensor? max_radius, Tensor? heading_deg, bool replicate_border, float[] std, ScalarType dtype)"
    " -> Tensor",
    _run_backward,
    _fake_backward,
    check=_check_backward,
)
