"""The choice of a backend, and what it says when it cannot choose as it was told."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import geoloc_fast
from geoloc_fast import _native
from geoloc_fast.ops import choose
from geoloc_fast.testing import available_isas, force_backend, force_isa, observe_calls

IMAGES = torch.zeros(1, 3, 8, 8)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_cpu_tensors_run_on_the_cpu_kernels() -> None:
    with observe_calls() as calls:
        geoloc_fast.polar_resample(IMAGES, (4, 8))
    assert [call[:2] for call in calls] == [("polar_resample", "cpu")]
    assert calls[0][2].split("/")[0] == available_isas()[-1]


def test_forced_reference_runs_the_reference() -> None:
    with force_backend("reference"), observe_calls() as calls:
        geoloc_fast.polar_resample(IMAGES, (4, 8))
    assert calls == [("polar_resample", "reference", "")]


@pytest.mark.parametrize("isa", available_isas())
def test_forced_instruction_set_runs(isa: str) -> None:
    with force_isa(isa), observe_calls() as calls:
        geoloc_fast.polar_resample(IMAGES, (4, 8))
    assert calls[0][2].split("/")[0] == isa


def test_forcing_what_the_machine_lacks_says_why() -> None:
    if not _native.cuda_problem:
        pytest.skip("this machine can run the CUDA kernels")
    with force_backend("cuda"), pytest.raises(RuntimeError, match=r"'cuda' is forced .* cannot run: .*CUDA"):
        geoloc_fast.polar_resample(IMAGES, (4, 8))
    done = run_python(
        "import torch, geoloc_fast; geoloc_fast.polar_resample(torch.zeros(1, 3, 8, 8))", GEOLOC_FAST_BACKEND="cuda"
    )
    assert done.returncode != 0
    assert "cannot run" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GEOLOC_FAST_BACKEND", "gpu", "expected one of cpu, cuda, triton, reference, got 'gpu'"),
        ("GEOLOC_FAST_REQUIRE", "cpu,gpu", "expected cpu, cuda or both with a comma, got 'gpu'"),
        ("GEOLOC_FAST_CPU_ISA", "mmx", "expected one of baseline, avx2, avx512, avx512bf16, got 'mmx'"),
    ],
)
def test_misspelt_settings_are_import_errors(variable: str, value: str, message: str) -> None:
    done = run_python("import geoloc_fast", **{variable: value})
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert variable in last
    assert message in last


def test_requiring_what_is_there_is_quiet() -> None:
    assert run_python("import geoloc_fast", GEOLOC_FAST_REQUIRE="cpu").returncode == 0


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"), force_isa("sse9"):
        pass


def test_falls_back_with_one_log_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "native_cpu", None)
    monkeypatch.setattr(_native, "cpu_problem", "left out for this test")
    monkeypatch.setattr(choose, "_logged", set())
    with caplog.at_level("INFO", logger="geoloc_fast"), observe_calls() as calls:
        geoloc_fast.polar_resample(IMAGES, (4, 8))
        geoloc_fast.polar_resample(IMAGES, (4, 8))
    assert [call[1] for call in calls] == ["reference", "reference"]
    assert [record.getMessage() for record in caplog.records] == [
        "polar_resample: not on backend cpu: left out for this test"
    ]


def test_build_info_is_plain_and_complete() -> None:
    import json

    info = json.loads(json.dumps(geoloc_fast.build_info()))
    assert set(info["backends"]) == {"cpu", "cuda", "triton", "reference"}
    for backend in info["backends"].values():
        assert backend["available"] or backend["reason"]


def test_source_tree_in_front_says_so(tmp_path: Path) -> None:
    """A copy of the package without its native modules: it works, says why it is slow, and can be refused."""
    package = Path(geoloc_fast.__file__).parent
    shutil.copytree(package, tmp_path / "geoloc_fast", ignore=shutil.ignore_patterns("_native_*", "__pycache__"))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        # The finder of an editable install would find the native modules beside the copy's back.
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'Redirecting' not in type(finder).__name__]; "
        "import geoloc_fast; print(geoloc_fast.build_info()['backends']['cpu'])"
    )
    done = run_python(code, GEOLOC_FAST_REQUIRE="")
    assert "is not in" in done.stdout, done.stderr
    done = run_python(code, GEOLOC_FAST_REQUIRE="cpu")
    assert done.returncode != 0
    assert "GEOLOC_FAST_REQUIRE asks for cpu, but _native_cpu is not in" in done.stderr


def test_what_one_thread_forces_another_does_not_see() -> None:
    with force_backend("reference"), observe_calls() as calls, ThreadPoolExecutor(1) as pool:
        geoloc_fast.polar_resample(IMAGES, (4, 8))
        pool.submit(geoloc_fast.polar_resample, IMAGES, (4, 8)).result()
    assert [backend for _, backend, _ in calls] == ["reference", "cpu"]
