"""`azimuth_match` as a torch operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.ops import checks, choose
from geoloc_fast.ops.library import register, without_autocast
from geoloc_fast.ops.workspace import workspace
from geoloc_fast.reference import azimuth_match as reference
from geoloc_fast.reference.windows import wide_dtype

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Selection and AzimuthPlan of the native headers
SELECTION_CODES = {name: code for code, name in enumerate(checks.SELECTIONS)}
_PLANS = ("direct", "spectral", "scatter")
_FREE = MappingProxyType({"azimuth_match": -1, "azimuth_match_backward": -1})  # -1: the cost model chooses
_forced: ContextVar[Mapping[str, int]] = ContextVar("forced_plan", default=_FREE)
_reference = without_autocast(reference.azimuth_match)
_reference_with_slope = without_autocast(reference.azimuth_match_with_slope)


@contextmanager
def force_plan(forward: str | None = None, backward: str | None = None) -> Iterator[None]:
    """Inside the `with`, of this thread: kernels compute "direct" or "spectral", backward "spectral" or "scatter"."""
    plans = {"azimuth_match": forward, "azimuth_match_backward": backward}
    given = {name: _PLANS.index(plan) for name, plan in plans.items() if plan is not None}
    token = _forced.set({**_forced.get(), **given})
    try:
        yield
    finally:
        _forced.reset(token)


def can_run_cpu(query: Tensor, strips: Tensor) -> str:
    """Why the CPU kernels cannot run this call; empty if they can."""
    for tensor in (query, strips):
        if tensor.dtype not in KERNEL_DTYPES:
            return f"no kernel for {tensor.dtype}"
    return choose.can_run_cpu(query)


def can_run_cuda(query: Tensor, strips: Tensor) -> str:
    """Why the CUDA kernels cannot run this call; empty if they can."""
    for tensor in (query, strips):
        if tensor.dtype not in KERNEL_DTYPES:
            return f"no kernel for {tensor.dtype}"
    reason = choose.can_run_cuda(query) or choose.can_run_cuda(strips)
    if reason:
        return reason
    if query.device != strips.device:
        return f"query is on {query.device}, strips are on {strips.device}"
    most = _native.native_cuda.max_columns  # type: ignore[union-attr]
    if strips.shape[3] > most or strips.shape[1] * strips.shape[2] * (strips.shape[3] + 1) >= 1 << 25:
        return f"strips of shape {tuple(strips.shape[1:])}: the kernels take {most} columns and 2^25 values"
    return ""


@cache
def _shared_bytes(device: int) -> int:
    """What a block may have on a GPU."""
    return int(_native.native_cuda.device_shared_bytes(device))  # type: ignore[union-attr]


def shared_problem(op: str, query: Tensor, strips: Tensor) -> str:
    """Empty if a block of `op` fits the GPU's shared memory."""
    wanted = getattr(_native.native_cuda, f"{op}_shared_bytes")(query.shape, strips.shape)
    there = _shared_bytes(query.device.index)
    return "" if wanted <= there else f"this shape wants {wanted} bytes of shared memory a block, this GPU has {there}"


def can_run_triton(query: Tensor, strips: Tensor) -> str:
    """Why the Triton kernels cannot run this call; empty if they can."""
    for tensor in (query, strips):
        if tensor.dtype not in KERNEL_DTYPES:
            return f"no kernel for {tensor.dtype}"
    if strips.shape[1] * strips.shape[2] == 0:
        return "the strips have no values"
    return choose.can_run_triton(query)


def _backend(op: str, query: Tensor, strips: Tensor) -> str:
    # The usual case, without collecting reasons.
    if choose.cpu_is_free(query) and query.dtype in KERNEL_DTYPES and strips.dtype in KERNEL_DTYPES:
        return "cpu"
    return choose.choose_backend(
        op,
        query.device.type,
        {
            "cpu": lambda: can_run_cpu(query, strips),
            "cuda": lambda: can_run_cuda(query, strips) or shared_problem("azimuth_match", query, strips),
            "triton": lambda: can_run_triton(query, strips),
        },
    )


def native_scale(scale: Tensor | None) -> Tensor | None:
    """As the kernels read it: where it is, so that nobody waits for its value."""
    return None if scale is None else scale.to(torch.float64)


def _match_cpu(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    slope: Tensor | None,
    scale_slope: Tensor | None,
) -> tuple[Tensor, Tensor]:
    native: Any = _native.native_cpu
    code = SELECTION_CODES[select]
    threads = torch.get_num_threads()
    plan, space = native.azimuth_match_plan(
        query.shape, strips.shape, query_width is not None, code, slope is not None, False,
        _forced.get()["azimuth_match"], threads,
    )  # fmt: skip
    memory = workspace(space)
    batch, references = query.shape[0], strips.shape[0]
    score = torch.empty(batch, references, dtype=torch.float32)
    shift = torch.empty(batch, references, dtype=torch.int64)
    query_width = None if query_width is None else query_width.contiguous()
    noise = None if noise is None else noise.to(torch.float32)
    native.azimuth_match(
        query=query, strips=strips, query_width=query_width, select=code, scale=native_scale(scale), tau=tau,
        noise=noise, score=score, shift=shift, slope=slope, scale_slope=scale_slope, plan=plan, workspace=memory,
        threads=threads,
    )  # fmt: skip
    choose.ran("azimuth_match", "cpu", f"{native.isa()}/{_PLANS[plan]}")
    return score, shift


def _match_cuda(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
    with_slope: bool,
) -> tuple[Tensor, ...]:
    native: Any = _native.native_cuda
    code = SELECTION_CODES[select]
    batch, references, columns = query.shape[0], strips.shape[0], strips.shape[3]
    plan, space = native.azimuth_match_plan(
        query.shape, strips.shape, query_width is not None, code, with_slope, False, _forced.get()["azimuth_match"]
    )
    device = query.device
    memory = torch.empty(space, dtype=torch.uint8, device=device)
    score = torch.empty(batch, references, dtype=torch.float32, device=device)
    shift = torch.empty(batch, references, dtype=torch.int64, device=device)
    slope = scale_slope = None
    if with_slope:
        slope = torch.empty(batch, columns, references, dtype=torch.float32, device=device)
        scale_slope = torch.empty_like(score)
    query_width = None if query_width is None else query_width.contiguous()
    noise = None if noise is None else noise.to(torch.float32)
    native.azimuth_match(
        query=query, strips=strips, query_width=query_width, select=code, scale=native_scale(scale), tau=tau,
        noise=noise, score=score, shift=shift, slope=slope, scale_slope=scale_slope, plan=plan, workspace=memory,
        **choose.cuda_place(query),
    )  # fmt: skip
    choose.ran("azimuth_match", "cuda", _PLANS[plan])
    return (score, shift) if slope is None or scale_slope is None else (score, shift, slope, scale_slope)


def _run(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    backend = _backend("azimuth_match", query, strips)
    if backend == "cpu":
        return _match_cpu(query, strips, query_width, select, scale, tau, noise, None, None)
    if backend == "cuda":
        score, shift = _match_cuda(query, strips, query_width, select, scale, tau, noise, False)
        return score, shift
    if backend == "triton":
        from geoloc_fast.triton_kernels import azimuth_match as kernels

        score, shift = kernels.forward(query, strips, query_width, select, scale, tau, noise)
        choose.ran("azimuth_match", "triton")
        return score, shift
    result = _reference(query, strips, query_width, select, scale, tau, noise)
    choose.ran("azimuth_match", "reference")
    return result


def _fake(query: Tensor, strips: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], strips.shape[0])
    score = query.new_empty(shape, dtype=wide_dtype(query, strips))
    return score, query.new_empty(shape, dtype=torch.int64)


def _run_with_slope(
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    scale: Tensor,
    tau: float,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = _backend("azimuth_match", query, strips)
    if backend == "cuda":
        score, shift, slope, scale_slope = _match_cuda(query, strips, query_width, "gumbel", scale, tau, noise, True)
        return score, shift, slope, scale_slope
    if backend == "triton":
        from geoloc_fast.triton_kernels import azimuth_match as kernels

        every = kernels.forward(query, strips, query_width, "gumbel", scale, tau, noise, with_slope=True)
        choose.ran("azimuth_match", "triton")
        return every[0], every[1], every[2], every[3]
    if backend == "cpu":
        slope = torch.empty((query.shape[0], strips.shape[3], strips.shape[0]), dtype=torch.float32)
        scale_slope = torch.empty((query.shape[0], strips.shape[0]), dtype=torch.float32)
        score, shift = _match_cpu(query, strips, query_width, "gumbel", scale, tau, noise, slope, scale_slope)
        return score, shift, slope, scale_slope
    result = _reference_with_slope(query, strips, query_width, scale, tau, noise)
    choose.ran("azimuth_match", "reference")
    return result


def _fake_with_slope(query: Tensor, strips: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    score, shift = _fake(query, strips)
    slope = score.new_empty((query.shape[0], strips.shape[3], strips.shape[0]))
    return score, shift, slope, torch.empty_like(score)


def _backward_native(
    backend: str,
    grad_score: Tensor,
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    score: Tensor,
    shift: Tensor,
    slope: Tensor | None,
    scale_slope: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    code, device = SELECTION_CODES[select], query.device
    sizes = (
        query.shape,
        strips.shape,
        query_width is not None,
        code,
        False,
        True,
        _forced.get()["azimuth_match_backward"],
    )
    native: Any
    last: dict[str, int]
    if backend == "cpu":
        native, threads = _native.native_cpu, torch.get_num_threads()
        plan, space = native.azimuth_match_plan(*sizes, threads)
        memory, last, ran = workspace(space), {"threads": threads}, f"{native.isa()}/{_PLANS[plan]}"
    else:
        native = _native.native_cuda
        plan, space = native.azimuth_match_plan(*sizes)
        memory = torch.empty(space, dtype=torch.uint8, device=device)
        last, ran = choose.cuda_place(query), _PLANS[plan]
    grad_query = torch.empty(query.shape, dtype=torch.float32, device=device)
    grad_strips = torch.empty(strips.shape, dtype=torch.float32, device=device)
    # Without a scale: a zero nobody reads.
    of_scale = torch.zeros((), dtype=torch.float64, device=device)
    query_width = None if query_width is None else query_width.contiguous()
    grad_score = grad_score.to(torch.float32).contiguous()
    native.azimuth_match_backward(
        query=query, strips=strips, query_width=query_width, select=code, scale=native_scale(scale), tau=tau,
        grad_score=grad_score, score=score, shift=shift, slope=slope, scale_slope=scale_slope,
        grad_query=grad_query, grad_strips=grad_strips, grad_scale=None if slope is None else of_scale, plan=plan,
        workspace=memory, **last,
    )  # fmt: skip
    choose.ran("azimuth_match_backward", backend, ran)
    return (
        grad_query.to(query.dtype),
        grad_strips.to(strips.dtype),
        of_scale.to(torch.float32 if scale is None else scale.dtype),
    )


def _run_backward(
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
    slope: Tensor | None,
    scale_slope: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _backend("azimuth_match_backward", query, strips)
    if backend in ("cpu", "cuda"):
        return _backward_native(
            backend, grad_score, query, strips, query_width, select, scale, tau, score, shift, slope, scale_slope
        )
    if backend == "triton":
        from geoloc_fast.triton_kernels import azimuth_match as kernels

        found = kernels.backward(
            grad_score, query, strips, query_width, scale, tau, score, shift, slope, scale_slope
        )  # fmt: skip
        choose.ran("azimuth_match_backward", "triton")
        return found
    gradients = reference.azimuth_match_backward(grad_score, query, strips, query_width, select, scale, tau, noise)
    choose.ran("azimuth_match_backward", "reference")
    return gradients


def fake_gradients(query: Tensor, strips: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Empty gradients of query, strips and scale: shapes and types for torch.compile."""
    dtype = wide_dtype(query, strips) if scale is None else scale.dtype
    return (
        query.new_empty(query.shape),
        strips.new_empty(strips.shape),
        query.new_empty((), dtype=dtype),
    )


def _fake_backward(grad_score: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fake_gradients(args[0], args[1], args[4])


def check_pairs(
    pairs: Sequence[int],  # shape of score
    query: Tensor,
    strips: Tensor,
    query_width: Tensor | None,
    select: str,
    scale: Tensor | None,
    tau: float,
    noise: Tensor | None,
) -> None:
    """Checks that an operator called through torch.ops was given what the Python function gives it."""
    checks.strips_and_query(query, strips, "query", "[B, C, H, Wq]", "strips", "[R, C, H, W]")
    checks.exactly("query_width", query_width, (torch.int64,), query.shape[:1], "query", query)
    checks.query_width(query_width, query)
    checks.choice("select", select, checks.SELECTIONS)
    if (select == "gumbel") != (scale is not None) or (noise is not None and select != "gumbel"):
        raise ValueError(f'scale, noise: expected for select="gumbel" and no other, got select={select!r}')
    checks.exactly("scale", scale, checks.FLOATS, (), "query", query)
    checks.exactly("noise", noise, checks.FLOATS, (*pairs, strips.shape[3]), "query", query)


def check_chosen(score: Tensor, shift: Tensor, pairs: Sequence[int], query: Tensor, strips: Tensor) -> None:
    """What a forward answered and its backward reads as it lies."""
    checks.exactly("score", score, (wide_dtype(query, strips),), pairs, "query", query, contiguous=True)
    checks.exactly("shift", shift, (torch.int64,), pairs, "query", query, contiguous=True)
    if checks.values_known(shift) and shift.numel():
        low, high = checks.extremes(shift)
        if not 0 <= low <= high < strips.shape[3]:
            raise ValueError(f"shift: expected shifts from 0 to {strips.shape[3] - 1}, got {low} to {high}")


def _check(query: Tensor, strips: Tensor, *rest: Any) -> None:
    check_pairs((query.shape[0], strips.shape[0]), query, strips, *rest)


def _check_with_slope(
    query: Tensor, strips: Tensor, query_width: Tensor | None, scale: Tensor, tau: float, noise: Tensor
) -> None:
    _check(query, strips, query_width, "gumbel", scale, tau, noise)


def _check_backward(
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
    slope: Tensor | None,
    scale_slope: Tensor | None,
) -> None:
    _check(query, strips, query_width, select, scale, tau, noise)
    pairs = (query.shape[0], strips.shape[0])
    checks.exactly("grad_score", grad_score, checks.FLOATS, pairs, "query", query)
    check_chosen(score, shift, pairs, query, strips)
    if (slope is None or scale_slope is None) == (select == "gumbel"):
        raise ValueError(f'slope, scale_slope: expected for select="gumbel" and no other, got select={select!r}')
    wide = (score.dtype,)
    checks.exactly("slope", slope, wide, (pairs[0], strips.shape[3], pairs[1]), "query", query, contiguous=True)
    checks.exactly("scale_slope", scale_slope, wide, pairs, "query", query, contiguous=True)


_ARGUMENTS = "Tensor query, Tensor strips, Tensor? query_width, str select, Tensor? scale, float tau, Tensor? noise"
# Of the forwards only the reference computes with torch: no guard around the kernels.
forward = register(f"azimuth_match({_ARGUMENTS}) -> (Tensor, Tensor)", _run, _fake, check=_check, guard=False)
# For training with "gumbel": also d score / d logit [B, W, R] and d score / d scale [B, R].
forward_with_slope = register(
    "azimuth_match_with_slope(Tensor query, Tensor strips, Tensor? query_width, Tensor scale, float tau, "
    "Tensor noise) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_with_slope,
    _fake_with_slope,
    check=_check_with_slope,
    guard=False,
)
backward = register(
    f"azimuth_match_backward(Tensor grad_score, {_ARGUMENTS}, Tensor score, Tensor shift, Tensor? slope, "
    "Tensor? scale_slope) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    check=_check_backward,
)
