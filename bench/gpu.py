"""What a machine with a GPU is asked to do, in three commands of at most five minutes each, without a network:

    python bench/gpu.py test       the operators' answers, on every backend          -> gpu_test.json
    python bench/gpu.py bench      their times, against peers and the card's limits  -> gpu_bench.json and .md
    python bench/gpu.py sanitize   compute-sanitizer over small calls                -> gpu_sanitize.json

in bench/results (`make gpu-test` and so on). Each first builds the package into build/gpu-site with what Python has:
pip, scikit-build-core, pybind11, cmake, ninja, and nvcc for the CUDA module, which is built for this GPU alone. What
happens goes into the JSON as it happens, so a run that is cut short leaves what it found. `--device cpu` goes through
the same motions on tiny CPU tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu-site"
BUDGET_S = 285
GROUPS = ("limits", "polar", "match", "search")  # of gpu_bench.py, which needs the package and so its own process

PROOF = """
import torch, geoloc_fast
from geoloc_fast.testing import observe_calls
device = torch.device({device!r})
info = geoloc_fast.build_info()
print({{name: state["available"] or state["reason"] for name, state in info["backends"].items()}})
images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
expected = geoloc_fast.polar_resample(images, (16, 64), dtype=torch.float32)
if device.type == "cuda":
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), observe_calls() as calls:
        found = geoloc_fast.polar_resample(images.to(device), (16, 64), dtype=torch.float32)
    stream.synchronize()
else:
    with observe_calls() as calls:
        found = geoloc_fast.polar_resample(images, (16, 64), dtype=torch.float32)
error = float((found.cpu() - expected).abs().max())
print(calls, "largest difference from the CPU", error)
assert error < 0.5
"""


class Report:
    """Rows in a JSON file that is complete after each."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.begun = path, time.monotonic()
        self.content: dict[str, Any] = {"command": command, "machine": machine(), "finished": False, "rows": []}
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1))
        part.replace(self.path)

    def row(self, **row: Any) -> dict[str, Any]:
        self.content["rows"].append(row)
        self.write()
        print(json.dumps(row), flush=True)
        return row

    def left(self) -> float:
        return BUDGET_S - (time.monotonic() - self.begun)

    def finish(self) -> int:
        """0 if no row failed."""
        self.content["finished"] = True
        self.content["seconds"] = round(time.monotonic() - self.begun, 1)
        self.write()
        return int(any(row.get("outcome") == "failed" for row in self.content["rows"]))


def machine() -> dict[str, Any]:
    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
    versions = "import torch, json; print(json.dumps([torch.__version__, torch.version.cuda]))"
    return {
        "gpu": said("nvidia-smi", query, "--format=csv,noheader"),
        "nvcc": (said("nvcc", "--version").splitlines() or [""])[-1],
        "torch": said(sys.executable, "-c", versions),
        "triton": said(sys.executable, "-c", "import triton; print(triton.__version__)"),
        "python": platform.python_version(),
        "commit": said("git", "describe", "--always", "--dirty") or "not a checkout",
    }


def run(report: Report, name: str, command: list[str], limit_s: float, **options: Any) -> dict[str, Any]:
    """Runs a command as a row: its outcome, time, and the end of what it printed."""
    begun = time.monotonic()
    try:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
        done = subprocess.run(command, timeout=max(limit_s, 1), **options)
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, printed = 124, error.stdout or ""
        printed = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    except OSError as error:
        code, printed = 127, str(error)
    outcome = "passed" if code == 0 else "out of time" if code == 124 else "failed"
    seconds = round(time.monotonic() - begun, 1)
    return report.row(name=name, outcome=outcome, code=code, seconds=seconds, printed=printed[-3000:])


def environment(device: str) -> dict[str, str]:
    """The package as built here in front of every other; on a CPU, the one that is installed."""
    path = [str(ROOT / "bench")] if device == "cpu" else [str(SITE), str(ROOT / "bench")]
    if os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])
    # The sources of the checkout have no native module: importing them by mistake is an error.
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "GEOLOC_FAST_REQUIRE": "cpu"
    }  # fmt: skip


def build(report: Report) -> None:
    """With the CUDA module where there is nvcc; if that does not build, a row says so and the rest goes on without."""
    if "geoloc_fast" in {path.name for path in SITE.glob("*")}:
        shutil.rmtree(SITE)
    ask = "import torch; print('%d%d-real' % torch.cuda.get_device_capability())"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--target", str(SITE), f"--config-settings=build-dir={ROOT / 'build' / 'gpu'}", str(ROOT)]
    with_cuda = [*command, "--config-settings=cmake.define.GEOLOC_FAST_CUDA=ON"]
    if asked.returncode == 0:
        with_cuda.append(f"--config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES={asked.stdout.strip()}")
    if shutil.which("nvcc") is None and not os.environ.get("CUDACXX"):
        report.row(name="build with CUDA", outcome="not run", printed="there is no nvcc on the PATH")
    elif run(report, "build with CUDA", with_cuda, report.left())["outcome"] == "passed":
        return
    without = [*command, "--config-settings=cmake.define.GEOLOC_FAST_CUDA=OFF"]
    run(report, "build without CUDA", without, report.left())


def test(report: Report, device: str) -> None:
    # Not from the root of the checkout, whose sources would stand in front of what was built.
    options: dict[str, Any] = {"cwd": ROOT / "python_tests", "env": environment(device)}
    proof = [sys.executable, "-c", PROOF.format(device=device)]
    run(report, "import, a launch on a side stream, the right answer", proof, 90, **options)
    # A fault of a kernel ends every later call of its process: each backend has its own.
    for backend in ("triton", "cuda"):
        env = {**options["env"], "GPU_ROWS": str(report.path.with_suffix(f".{backend}.jsonl"))}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_rows", "-p", "no:cacheprovider", "--no-header"]
        command += ["test_gpu_operators.py", "-k", backend if backend == "cuda" else "not cuda"]
        if importlib.util.find_spec("xdist") is not None:  # Triton compiles for most of the time
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        share = report.left() * 0.55 if backend == "triton" else report.left()
        done = run(report, f"operators, {backend}", command, share, cwd=options["cwd"], env=env)
        if done["code"] == 5:  # nothing collected
            done["outcome"] = "failed"
        rows = Path(env["GPU_ROWS"])
        if rows.exists():
            done["tests"] = [json.loads(line) for line in rows.read_text().splitlines()]
            done["counts"] = {
                outcome: sum(test["outcome"] == outcome for test in done["tests"])
                for outcome in ("passed", "failed", "skipped")
            }
            rows.unlink()
            report.write()


def bench(report: Report, device: str) -> None:
    """Each group of cases in a process of its own, which prints a row of JSON after each case."""
    from gpu_report import render

    for n, group in enumerate(GROUPS):
        share = report.left() / (len(GROUPS) - n)
        command = [sys.executable, str(ROOT / "bench" / "gpu_bench.py"), group, device, str(share)]
        begun = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment(device), cwd=ROOT / "bench"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    report.row(group=group, **json.loads(line))
        if process.returncode != 0:
            seconds = round(time.monotonic() - begun, 1)
            end = {"outcome": "failed", "code": process.returncode, "seconds": seconds}
            report.row(group=group, case=group, entry="the process", **end)
        report.path.with_suffix(".md").write_text(render(report.content))


def sanitize(report: Report, device: str) -> None:
    """A tool that refuses the device, or is not there, is a row and no failure."""
    tool = shutil.which("compute-sanitizer")
    env = {**environment(device), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    small = [sys.executable, str(ROOT / "bench" / "gpu_small.py"), device]
    options: dict[str, Any] = {"env": env, "cwd": ROOT / "bench"}
    run(report, "small calls without a tool", small, 60, **options)
    for check in ("memcheck", "racecheck", "initcheck"):
        if tool is None:
            report.row(name=check, outcome="not run", printed="there is no compute-sanitizer on the PATH")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9", *small]
        done = run(report, check, command, report.left() / 2, **options)
        refusals = (
            "Device not supported",
            "not supported on this",
            "Unable to attach",
            "Target application terminated before",
        )
        if done["outcome"] == "failed" and done["code"] != 9 and any(words in done["printed"] for words in refusals):
            done["outcome"] = "refused"
            report.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("test", "bench", "sanitize"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    report = Report(arguments.out / f"gpu_{arguments.what}.json", " ".join(["bench/gpu.py", *sys.argv[1:]]))
    if arguments.device == "cuda":
        build(report)
    {"test": test, "bench": bench, "sanitize": sanitize}[arguments.what](report, arguments.device)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
