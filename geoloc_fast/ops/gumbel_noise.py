"""`gumbel_noise` as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.library import register
from geoloc_fast.reference import gumbel_noise as reference


def _no_kernel(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else f"no kernel for {dtype}"


def _run(seed: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    backend = choose.choose_backend(
        "gumbel_noise",
        seed.device.type,
        {
            "cpu": lambda: choose.can_run_cpu(seed) or _no_kernel(dtype),
            "cuda": lambda: choose.can_run_cuda(seed) or _no_kernel(dtype),
            "triton": lambda: choose.can_run_triton(seed) or _no_kernel(dtype),
        },
    )
    if backend == "cpu":
        native: Any = _native.native_cpu
        out = torch.empty(shape, dtype=dtype)
        native.gumbel_noise(seed=seed, count=out.numel(), out=out, threads=torch.get_num_threads())
    elif backend == "cuda":
        cuda: Any = _native.native_cuda
        out = torch.empty(shape, dtype=dtype, device=seed.device)
        cuda.gumbel_noise(seed=seed, count=out.numel(), out=out, **choose.cuda_place(seed))
    elif backend == "triton":
        from geoloc_fast.triton_kernels import gumbel_noise as kernels

        out = kernels.draw(seed, shape)
    else:
        out = reference.gumbel_noise(seed, torch.Size(shape).numel(), dtype).reshape(shape)
    choose.ran("gumbel_noise", backend)
    return out


def _fake(seed: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return seed.new_empty(shape, dtype=dtype)


def _check(seed: Tensor, shape: list[int], dtype: torch.dtype) -> None:
    checks.exactly("seed", seed, (torch.int64,), (), "seed", seed)
    checks.choice("dtype", dtype, checks.FLOATS)


draw = register("gumbel_noise(Tensor seed, SymInt[] shape, ScalarType dtype) -> Tensor", _run, _fake, check=_check)
