"""Loads the native modules once, and records why one is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
BACKENDS = ("cpu", "cuda", "triton", "reference")


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"geoloc_fast.{name}"), ""
    except ModuleNotFoundError as error:
        if error.name != f"geoloc_fast.{name}":
            return None, str(error)
        here = os.path.dirname(__file__)
        return None, (
            f"{name} is not in {here}. Either this is a source tree in front of the installed package "
            "(run `pip install -e .`, or start Python elsewhere), or it was not built"
        )
    except ImportError as error:
        return None, f"{name} is built but does not load: {error}"


native_cpu, cpu_problem = _load("_native_cpu")
native_cuda, cuda_problem = _load("_native_cuda")
if native_cuda is not None:
    cuda_problem = native_cuda.device_problem()
elif native_cpu is not None:
    cuda_problem = f"the CUDA module is not built ({native_cpu.cuda_build})"

if native_cpu is not None and os.environ.get("GEOLOC_FAST_CPU_ISA"):
    try:
        native_cpu.set_isa(os.environ["GEOLOC_FAST_CPU_ISA"])
    except (ValueError, RuntimeError) as error:
        raise ImportError(f"GEOLOC_FAST_CPU_ISA: {error}") from None

triton_problem = "" if importlib.util.find_spec("triton") is not None else "the triton package is not installed"


def _triton_reason() -> str:
    import torch

    if triton_problem or torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return triton_problem
    return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on CPU tensors)"


def checked_backend(name: str | None, source: str) -> str | None:
    if name and name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name or None


def check_environment() -> None:
    """What is misspelt in the environment is an import error, and so is a module that GEOLOC_FAST_REQUIRE=cpu,cuda asks
    for and that is missing."""
    checked_backend(os.environ.get("GEOLOC_FAST_BACKEND"), "GEOLOC_FAST_BACKEND")
    loaded = {"cpu": native_cpu is not None, "cuda": native_cuda is not None}
    problem = {"cpu": cpu_problem, "cuda": cuda_problem}
    for name in filter(None, os.environ.get("GEOLOC_FAST_REQUIRE", "").split(",")):
        if name not in loaded:
            raise ImportError(f"GEOLOC_FAST_REQUIRE: expected cpu, cuda or both with a comma, got {name!r}")
        if not loaded[name]:
            raise ImportError(f"GEOLOC_FAST_REQUIRE asks for {name}, but {problem[name]}")


def build_info() -> dict[str, Any]:
    """What was built, what runs on this machine, and why something does not: plain values, printable as JSON."""
    import torch

    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "backends": {
            "cpu": {
                "available": native_cpu is not None,
                "reason": cpu_problem,
                "compiler": native_cpu.compiler if native_cpu else None,
                "isa": native_cpu.isa() if native_cpu else None,
                "isas": dict(native_cpu.isas()) if native_cpu else None,
            },
            "cuda": {
                "available": native_cuda is not None and not cuda_problem,
                "reason": cuda_problem,
                "built": native_cuda is not None,
                "nvcc": native_cuda.nvcc if native_cuda else None,
                "architectures": native_cuda.architectures if native_cuda else None,
            },
            "triton": {
                "available": not _triton_reason(),
                "reason": _triton_reason(),
                "version": None if triton_problem else importlib.metadata.version("triton"),
                "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
            },
            "reference": {"available": True, "reason": ""},
        },
        "cuda_build": native_cpu.cuda_build if native_cpu else None,
        "environment": {
            name: os.environ[name]
            for name in ("GEOLOC_FAST_BACKEND", "GEOLOC_FAST_CPU_ISA", "GEOLOC_FAST_REQUIRE")
            if name in os.environ
        },
    }
