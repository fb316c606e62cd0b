"""The branches of the build: without CUDA, with a CUDA compiler and no GPU, and CUDA asked for where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import geoloc_fast
from geoloc_fast import _native

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="not in a checkout: there is no build to try"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the PATH"),
]


def configure(folder: Path, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("CUDACXX", "CUDA_PATH", "CUDAARCHS")}
    if path is not None:
        environment["PATH"] = path
    command = [str(shutil.which("cmake")), "-S", str(ROOT), "-B", str(folder), "-DGEOLOC_FAST_PYTHON=OFF", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def path_without_nvcc(tmp_path: Path) -> str:
    """A PATH with a compiler and build tools, and no nvcc."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for tool in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if tool.name != "nvcc" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    return str(tools)


def test_auto_goes_on_without_a_cuda_compiler(tmp_path: Path, path_without_nvcc: str) -> None:
    done = configure(tmp_path / "build", path=path_without_nvcc)
    assert done.returncode == 0, done.stderr
    assert "CUDA module off: no CUDA compiler found" in done.stdout


def test_on_without_a_cuda_compiler_says_why(tmp_path: Path, path_without_nvcc: str) -> None:
    done = configure(tmp_path / "build", "-DGEOLOC_FAST_CUDA=ON", path=path_without_nvcc)
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "GEOLOC_FAST_CUDA=ON, but no working CUDA compiler was found" in message
    assert "build with GEOLOC_FAST_CUDA=AUTO or OFF" in message


def test_off_does_not_look(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DGEOLOC_FAST_CUDA=OFF")
    assert done.returncode == 0, done.stderr
    assert "CUDA module off: GEOLOC_FAST_CUDA=OFF" in done.stdout


def test_a_misspelt_option_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DGEOLOC_FAST_CUDA=YES")
    assert done.returncode != 0
    assert "expected AUTO, ON or OFF, got 'YES'" in done.stderr


def test_cuda_module_without_a_gpu_loads_and_says_so() -> None:
    if _native.native_cuda is None:
        pytest.skip(f"the CUDA module is not there: {_native.cuda_problem}")
    info = geoloc_fast.build_info()["backends"]["cuda"]
    assert info["built"]
    assert info["available"] or info["reason"]


def test_a_driver_older_than_the_toolkit_is_found_out_at_import(tmp_path: Path) -> None:
    if _native.native_cuda is None:
        pytest.skip(f"the CUDA module is not there: {_native.cuda_problem}")
    library = tmp_path / "libcuda.so.1"
    source = Path(__file__).with_name("old_driver.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", library, source], check=True)
    code = (
        "import geoloc_fast, torch; print(geoloc_fast.build_info()['backends']['cuda']['reason']); "
        "print(geoloc_fast.polar_resample(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (4, 8)).shape)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    reason, shape = done.stdout.splitlines()
    toolkit = _native.native_cuda.nvcc.split(".")[0]
    assert f"the CUDA driver supports version 11, this module was built with {toolkit}: update the driver" in reason
    assert shape == "torch.Size([1, 3, 4, 8])"


def test_building_needs_no_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text().split("[project]")[0]
    assert "torch" not in text
    for path in [ROOT / "CMakeLists.txt", ROOT / "csrc" / "CMakeLists.txt"]:
        assert "find_package(Torch" not in path.read_text()
