"""Which backend runs a call: the first in order of preference that can.

CUDA tensors: cuda, triton, reference. CPU tensors: cpu, reference. GEOLOC_FAST_BACKEND forces one, and a
forced backend that cannot run is an error, never a silent fallback. With TRITON_INTERPRET=1 set from the start,
GEOLOC_FAST_BACKEND=triton runs the Triton kernels on CPU tensors too, slowly.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from geoloc_fast import _native
from geoloc_fast.triton_kernels import INTERPRETED

_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

log = logging.getLogger("geoloc_fast")
_logged: set[tuple[str, str, str]] = set()
_observers: list[Callable[[str, str, str], None]] = []


_FROM_START = _native.checked_backend(os.environ.get("GEOLOC_FAST_BACKEND"), "GEOLOC_FAST_BACKEND")
# Of this thread or task: what one forces, another that shares the process does not see.
_forced: ContextVar[str | None] = ContextVar("forced", default=_FROM_START)


@contextmanager
def force_backend(name: str | None) -> Iterator[None]:
    """Inside the `with`, in this thread, every operator runs on backend `name` or fails (None: free choice again)."""
    token = _forced.set(_native.checked_backend(name, "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Inside the `with`, the CPU kernels run with instruction set `name`; an error says why one cannot."""
    native = _native.native_cpu
    if native is None:
        raise RuntimeError(f"instruction set {name!r} cannot be forced: {_native.cpu_problem}")
    before = native.isa()
    native.set_isa(name)
    try:
        yield
    finally:
        native.set_isa(before)


@contextmanager
def observe_calls() -> Iterator[list[tuple[str, str, str]]]:
    """Collects (operator, backend, plan) of every call made inside the `with`: proof of which path ran."""
    calls: list[tuple[str, str, str]] = []

    def note(op: str, backend: str, plan: str) -> None:
        calls.append((op, backend, plan))

    _observers.append(note)
    try:
        yield calls
    finally:
        _observers.remove(note)


def ran(op: str, backend: str, plan: str = "") -> None:
    """Called by an operator after a backend ran; `plan` names the path inside the backend."""
    for observer in _observers:
        observer(op, backend, plan)


def cpu_is_free(tensor: Tensor) -> bool:
    """True where the CPU kernels come first for this tensor: spares small calls the collection of reasons."""
    return _forced.get() is None and tensor.is_cpu and _native.native_cpu is not None


def can_run_cpu(tensor: Tensor) -> str:
    """Empty if the CPU module can take this tensor, else the reason."""
    if _native.native_cpu is None:
        return _native.cpu_problem
    return "" if tensor.device.type == "cpu" else f"the tensors are on {tensor.device}"


def can_run_cuda(tensor: Tensor) -> str:
    """Why no CUDA kernel can run on this tensor; empty if one can."""
    if _native.native_cuda is None or _native.cuda_problem:
        return _native.cuda_problem
    return "" if tensor.device.type == "cuda" else f"the tensors are on {tensor.device}"


def cuda_place(tensor: Tensor) -> dict[str, int]:
    """The device and the stream that a CUDA kernel is launched on: the tensor's device, its current stream."""
    device = tensor.device.index
    return {"device": device, "stream": torch.cuda.current_stream(device).cuda_stream}


def can_run_triton(tensor: Tensor) -> str:
    """Why no Triton kernel can run on this tensor; empty if one can."""
    if tensor.is_cpu and not INTERPRETED:
        return "the tensors are on cpu, and TRITON_INTERPRET=1 was not set when Python started"
    return _native.triton_problem or _triton_problem(tensor.device)


@cache
def _triton_problem(device: torch.device) -> str:
    try:
        import triton  # noqa: F401
    except Exception as error:
        return f"triton is installed but does not load: {error}"
    if INTERPRETED:
        return ""
    # Triton builds its launcher on the machine it runs on.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler at run time, and there is no CC, gcc or clang"
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"triton needs compute capability 8.0, this GPU has {major}.{minor}"
    return ""


def choose_backend(op: str, device_type: str, can_run: dict[str, Callable[[], str]]) -> str:
    """`can_run[backend]()` is empty if that backend can take the call, else the reason why not."""
    forced = _forced.get()
    if forced is not None:
        reason = "" if forced == "reference" else can_run[forced]()
        if reason:
            raise RuntimeError(f"{op}: backend {forced!r} is forced (GEOLOC_FAST_BACKEND) but cannot run: {reason}")
        return forced
    for backend in _PREFERENCE.get(device_type, ("reference",)):
        if backend == "reference":
            return backend
        reason = can_run[backend]()
        if not reason:
            return backend
        if (op, backend, reason) not in _logged:
            _logged.add((op, backend, reason))
            log.info("%s: not on backend %s: %s", op, backend, reason)
    return "reference"
