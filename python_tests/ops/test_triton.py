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
from contextlib import contextmanager, suppress
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


_BANKS = "test_bank or banks or beyond"


@pytest.mark.parametrize("which", [_BANKS, f"not ({_BANKS})"])  # two halves, side by side
def test_kernels_in_the_interpreter(which: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-W", "ignore", str(CASES)]
    done = subprocess.run(
        [*command, "-k", which], capture_output=True, text=True, env=environment, check=False, cwd=CASES.parent
    )
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


Launches = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]


@contextmanager
def recorded_launches() -> Iterator[Launches]:
    """What is launched inside the `with`, without running it."""
    from triton.runtime.jit import JITFunction

    recorded: Launches = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append((self, args, kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        yield recorded


def launches() -> Launches:
    """What every operator launches at working sizes."""
    from geoloc_fast.triton_kernels import gumbel_noise, polar_resample

    query, strips, width = torch.zeros(2, 16, 4, 5), torch.zeros(3, 16, 4, 16), torch.tensor([5, 4])
    with recorded_launches() as recorded:
        for form, widths, narrow in (("correlation", None, False), ("cosine", width, True), ("gumbel", width, False)):
            q, s = (query.bfloat16(), strips.bfloat16()) if narrow else (query, strips)
            match_and_crop(q, s, widths, form)
        geometry = (180.0, False, torch.zeros(1, 2).double(), torch.ones(1).double(), torch.ones(1).double())
        for images, dtype in ((torch.uint8, torch.bfloat16), (torch.float16, torch.uint8)):
            polar_resample.forward(torch.zeros(1, 3, 64, 64, dtype=images), 32, 128, *geometry, True, [1.0] * 6, dtype)
        polar_resample.backward(torch.zeros(1, 3, 4, 8), 64, 64, *geometry, False, [1.0] * 3, torch.float32)
        gumbel_noise.draw(torch.tensor(1), [100])
        for bf16 in (True, False):
            search(query.repeat(10, 1, 1, 1), strips, bf16, None, "correlation", None)
        search(query, strips, False, width, "cosine", torch.ones(3).bool())
        search(query, strips, True, width, "cosine", None, "dot")
    return recorded


def launches_of_ones() -> Launches:
    """The same where sizes and strides are 1: Triton makes them constants."""
    from geoloc_fast.triton_kernels import gumbel_noise, polar_resample

    with recorded_launches() as recorded:
        for batch, references, values, columns in ((1, 1, 1, 1), (2, 1, 1, 16), (1, 3, 16, 1)):
            query, strips = torch.zeros(batch, values, 1, columns), torch.zeros(references, values, 1, columns)
            for form in ("correlation", "gumbel"):
                match_and_crop(query, strips, None, form)
            for bf16 in (True, False):
                search(query, strips, bf16, None, "correlation", None)
        geometry = (180.0, False, None, None, None)
        for rows, cols in ((1, 1), (1, 9), (9, 1)):
            polar_resample.forward(torch.zeros(1, 1, rows, cols), 1, 1, *geometry, False, [], torch.float32)
            polar_resample.backward(torch.zeros(1, 1, 1, 1), rows, cols, *geometry, False, [], torch.float32)
        gumbel_noise.draw(torch.tensor(1), [1])
    return recorded


def match_and_crop(query: torch.Tensor, strips: torch.Tensor, width: torch.Tensor | None, form: str) -> None:
    from geoloc_fast.triton_kernels import azimuth_crop, azimuth_match

    batch, pairs = query.shape[0], min(query.shape[0], strips.shape[0])
    given = torch.zeros(batch, strips.shape[0], strips.shape[3])
    scale, noise = (torch.tensor(1.0), given) if form == "gumbel" else (None, None)
    found = azimuth_match.forward(query, strips, width, form, scale, 1.0, noise, with_slope=form == "gumbel")
    slope, scale_slope = found[2:] or (None, None)
    grad = torch.zeros(batch, strips.shape[0])
    azimuth_match.backward(grad, query, strips, width, scale, 1.0, found[0], found[1].zero_(), slope, scale_slope)
    query, strips, width = query[:pairs], strips[:pairs], None if width is None else width[:pairs]
    noise = None if noise is None else noise[:pairs, 0]
    crop, score, shift = azimuth_crop.forward(query, strips, width, form, scale, 1.0, noise)
    azimuth_crop.backward(crop, score, query, strips, width, form, scale, 1.0, noise, score, shift.zero_())


def search(
    query: torch.Tensor,
    strips: torch.Tensor,
    bf16: bool,
    width: torch.Tensor | None,
    form: str,
    alive: torch.Tensor | None,
    kind: str = "cosine",
) -> None:
    """A bank packed, scored and searched."""
    from geoloc_fast.reference.strip_bank import BankLayout
    from geoloc_fast.triton_kernels import strip_bank, strip_score, strip_topk

    shape = list(strips.shape)
    count, channels, height, columns = shape
    layout = BankLayout(count, channels, height, columns, "bf16" if bf16 else "fp32")
    blocks = strip_bank.pack(strips, bf16, layout.block_bytes)
    strip_score.score(query, blocks, shape, bf16, torch.zeros(query.shape[0], 2).long(), width, form, kind)
    strip_score.curve(query, blocks, shape, bf16, torch.zeros(query.shape[0], 2).long(), width)
    strip_topk.topk(query, blocks, shape, bf16, min(2, shape[0]), width, form, alive, kind, None)


class FakeDriver:
    """What Triton asks of a GPU before it compiles a launch. The device's number is its compute capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def compiling_for(capability: int) -> Iterator[None]:
    """Launches with `warmup=True` are compiled as on such a GPU: with every argument that is 1 or a multiple of 16 as
    the constant or the hint that it is there."""
    from triton.runtime import driver

    driver.set_active(FakeDriver(capability))
    try:
        yield
    finally:
        with suppress(RuntimeError):  # without a GPU there is nothing to go back to
            driver.reset_active()


def test_every_kernel_compiles_for_every_target() -> None:
    if choose.INTERPRETED:
        pytest.skip("under TRITON_INTERPRET there is nothing to compile")
    compiled: dict[str, set[int]] = {}
    tensor_cores = set()
    usual = list(launches())
    for target in TARGETS:
        with compiling_for(target):
            for kernel, args, kwargs in usual:
                binary = kernel.run(*args, grid=(1,), warmup=True, **kwargs)
                assert binary.asm["cubin"]
                assert binary.metadata.shared < 100_000, f"{kernel.__name__} for sm_{target}: shared memory"
                compiled.setdefault(kernel.__name__, set()).add(target)
                if any(name in binary.asm["ptx"] for name in ("mma.sync", "wgmma.mma", "tcgen05.mma")):
                    tensor_cores.add((kernel.__name__, target))
    assert all(targets == set(TARGETS) for targets in compiled.values())
    assert set(compiled) == all_kernels()
    assert {("strip_topk_screen_kernel", target) for target in TARGETS} <= tensor_cores


def test_every_kernel_compiles_for_sizes_of_one() -> None:
    if choose.INTERPRETED:
        pytest.skip("under TRITON_INTERPRET there is nothing to compile")
    with compiling_for(90):
        compiled = {
            kernel.__name__
            for kernel, args, kwargs in launches_of_ones()
            if kernel.run(*args, grid=(1,), warmup=True, **kwargs)
        }
    assert compiled == all_kernels()


def all_kernels() -> set[str]:
    folder = Path(geoloc_fast.__file__).parent / "triton_kernels"
    names = (line.split("(")[0][4:] for path in folder.glob("*.py") for line in path.read_text().splitlines())
    return {name for name in names if name.endswith("_kernel")}
