"""The Triton kernels without a GPU: run in the interpreter, and compiled for three generations of GPUs.

How they are chosen, and what is said when they cannot run, is here too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import geoloc_fast
from geoloc_fast import _native, azimuth_match
from geoloc_fast.ops import choose
from geoloc_fast.testing import force_backend, random_strips

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CASES = Path(__file__).with_name("triton_cases.py")
TARGETS = (80, 90, 100)
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def test_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-W", "ignore", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=CASES.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_program_runs_on_the_kernels_by_two_settings() -> None:
    code = """
import torch, json, geoloc_fast
from geoloc_fast.testing import observe_calls
with observe_calls() as calls:
    strips = torch.rand(3, 2, 1, 4)
    geoloc_fast.polar_resample(torch.zeros(1, 3, 8, 8), (2, 4))
    geoloc_fast.azimuth_match(strips[..., :2], strips, select="gumbel")
    bank = geoloc_fast.StripBank.pack(strips)
    geoloc_fast.strip_topk(strips[..., :2], bank, 1)
print(json.dumps(calls))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GEOLOC_FAST_BACKEND": "triton"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    calls = json.loads(done.stdout)
    assert {call[1] for call in calls} == {"triton"}
    assert {call[0] for call in calls} == {
        "polar_resample",
        "gumbel_noise",
        "azimuth_match",
        "strip_pack",
        "strip_topk",
    }


def test_without_the_interpreter_cpu_tensors_are_refused() -> None:
    with force_backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 was not set"):
        azimuth_match(random_strips(1, 2, 2, 3), random_strips(2, 2, 2, 4))


def test_a_missing_triton_is_a_reason(tmp_path: Path) -> None:
    """A triton that is not there, and one that is damaged."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('a file is missing')")
    code = """
import sys, torch
if sys.argv[1] == "absent":
    sys.modules["triton"] = None
import geoloc_fast
from geoloc_fast.testing import force_backend
strips = torch.rand(2, 2, 1, 4)
geoloc_fast.azimuth_match(strips, strips)
with force_backend("triton"):
    geoloc_fast.azimuth_match(strips, strips)
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for how, message in (("absent", "the triton package is not installed"), ("damaged", "does not load: a file is")):
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path if how == "damaged" else ""}
        command = [sys.executable, "-c", code, how]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert message in done.stderr.splitlines()[-1], done.stderr


def test_cuda_tensors_prefer_cuda_then_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(**problems: str) -> str:
        can_run = {name: lambda name=name: problems.get(name, "") for name in ("cpu", "cuda", "triton")}
        return choose.choose_backend("azimuth_match", "cuda", can_run)

    assert first() == "cuda"
    assert first(cuda="not built") == "triton"
    assert first(cuda="not built", triton="not installed") == "reference"


def test_build_info_says_why_not() -> None:
    info = geoloc_fast.build_info()["backends"]["triton"]
    if not _native.triton_problem and not torch.cuda.is_available():
        assert "torch sees no GPU" in info["reason"] or info["interpreted"]


# --- compiling --------------------------------------------------------------------------------------------------------


def launches() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What every operator launches at working sizes, on CPU tensors, without running it."""
    from triton.runtime.jit import JITFunction

    from geoloc_fast.triton_kernels import (
        azimuth_crop,
        azimuth_match,
        gumbel_noise,
        polar_resample,
        strip_bank,
        strip_score,
        strip_topk,
    )

    recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append((self, args, kwargs))

    query, strips, width = torch.zeros(2, 16, 4, 5), torch.zeros(3, 16, 4, 16), torch.tensor([5, 4])
    noise, scale = torch.zeros(2, 3, 16), torch.tensor(1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        for form, widths, narrow in (("correlation", None, False), ("cosine", width, True), ("gumbel", width, False)):
            gumbel = (scale, 1.0, noise) if form == "gumbel" else (None, 1.0, None)
            q, s = (query.bfloat16(), strips.bfloat16()) if narrow else (query, strips)
            found = azimuth_match.forward(q, s, widths, form, *gumbel, with_slope=form == "gumbel")
            slopes = found[2:] or (None, None)
            azimuth_match.backward(torch.zeros(2, 3), q, s, widths, gumbel[0], 1.0, found[0], found[1].zero_(), *slopes)
            gumbel = (scale, 1.0, noise[:, 0]) if form == "gumbel" else (None, 1.0, None)
            crop, score, shift = azimuth_crop.forward(q, s[:2], widths, form, *gumbel)
            azimuth_crop.backward(crop, score, q, s[:2], widths, form, *gumbel, score, shift.zero_())
        geometry = (180.0, False, torch.zeros(1, 2).double(), torch.ones(1).double(), torch.ones(1).double())
        for images, dtype in ((torch.uint8, torch.bfloat16), (torch.float16, torch.uint8)):
            polar_resample.forward(torch.zeros(1, 3, 64, 64, dtype=images), 32, 128, *geometry, True, [1.0] * 6, dtype)
        polar_resample.backward(torch.zeros(1, 3, 4, 8), 64, 64, *geometry, False, [1.0] * 3, torch.float32)
        gumbel_noise.draw(torch.tensor(1), [100])
        for bf16 in (True, False):
            blocks = strip_bank.pack(strips, bf16, 4 * 16 * 16 * (33 if bf16 else 65))
            shape = [3, 16, 4, 16]
            strip_score.score(query, blocks, shape, bf16, torch.zeros(2, 2).long(), width, "cosine")
            form, widths, alive = ("correlation", None, None) if bf16 else ("cosine", width, torch.ones(3).bool())
            strip_topk.topk(query.repeat(10, 1, 1, 1), blocks, shape, bf16, 2, None, form, alive)
            if not bf16:
                strip_topk.topk(query, blocks, shape, bf16, 2, widths, form, alive)
    yield from recorded


def source_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What triton.compile takes, and the launch options."""
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in kernel.params]
    given = {**dict(zip(names, args, strict=False)), **{name: kwargs[name] for name in kwargs if name in names}}
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    return ASTSource(kernel, signature, constants), {name: kwargs[name] for name in kwargs if name not in names}


def test_every_kernel_compiles_for_every_target() -> None:
    if choose.INTERPRETED:
        pytest.skip("under TRITON_INTERPRET there is nothing to compile")
    import triton
    from triton.backends.compiler import GPUTarget

    compiled: dict[str, set[int]] = {}
    tensor_cores = set()
    done = set()
    for kernel, args, kwargs in launches():
        source, options = source_of(kernel, args, kwargs)
        if source.hash() in done:
            continue
        done.add(source.hash())
        for target in TARGETS:
            binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
            assert binary.asm["cubin"]
            assert binary.metadata.shared < 100_000, f"{kernel.__name__} for sm_{target}: shared memory"
            compiled.setdefault(kernel.__name__, set()).add(target)
            if any(name in binary.asm["ptx"] for name in ("mma.sync", "wgmma.mma", "tcgen05.mma")):
                tensor_cores.add((kernel.__name__, target))
    assert all(targets == set(TARGETS) for targets in compiled.values())
    assert set(compiled) == all_kernels()
    assert {("strip_topk_screen_kernel", target) for target in TARGETS} <= tensor_cores


def all_kernels() -> set[str]:
    folder = Path(geoloc_fast.__file__).parent / "triton_kernels"
    names = (line.split("(")[0][4:] for path in folder.glob("*.py") for line in path.read_text().splitlines())
    return {name for name in names if name.endswith("_kernel")}
