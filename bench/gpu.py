"""What a machine with a GPU is asked to do, without a network, the most telling first:

    python bench/gpu.py test       the operators' answers, on every backend          -> gpu_test.json
    python bench/gpu.py bench      their times, against peers and the card's limits  -> gpu_bench.json and .md
    python bench/gpu.py sanitize   compute-sanitizer over small CUDA calls           -> gpu_sanitize.json
    python bench/gpu.py all        the three, one after the other, in 12 minutes

in bench/results (`make gpu-test` and so on). One of the three takes five minutes at most; `--seconds` says otherwise.
First the package is built into build/gpu-site with what Python has: pip, scikit-build-core, pybind11, cmake, ninja, and
nvcc for the CUDA module, which is built for this GPU alone. What happens goes into the JSON as it happens, and whatever
overruns its share is ended, with all its children, so a run that is cut short leaves what it found. Without a GPU a
command says what is there of what it needs, and ends with 3. `--device cpu` goes through the same motions on tiny CPU
tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "gpu-site"
SECONDS = {"test": 285.0, "bench": 285.0, "sanitize": 285.0, "all": 700.0}
NO_DEVICE = 3  # exit code
# Of gpu_bench.py, which needs the package and so processes of its own: what each may have of the time, in parts.
GROUPS = {"limits": 1, "profile": 3, "search": 7, "match": 3, "polar": 2}

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

    def __init__(self, path: Path, command: str, seconds: float) -> None:
        self.path, self.begun, self.seconds = path, time.monotonic(), seconds
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
        return self.seconds - (time.monotonic() - self.begun)

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


def watched(command: list[str], limit_s: float, on_line: Callable[[str], None], **options: Any) -> int:
    """Runs a command, line by line of what it prints; its exit code, or 124 if it was ended for the time it took.

    It is ended with its children: workers of a test run would keep the GPU.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, **options,
    ) as process:  # fmt: skip
        lines = process.stdout
        assert lines is not None
        reader = threading.Thread(target=deque, args=(map(on_line, lines), 0), daemon=True)
        reader.start()
        try:
            code = process.wait(max(limit_s, 1))
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
        reader.join(10)
    return code


def run(report: Report, name: str, command: list[str], limit_s: float, **options: Any) -> dict[str, Any]:
    """Runs a command as a row: its outcome, time, and the end of what it printed."""
    begun = time.monotonic()
    printed: list[str] = []
    try:
        code = watched(command, limit_s, printed.append, **options)
    except OSError as error:
        code, printed = 127, [str(error)]
    outcome = "passed" if code == 0 else "out of time" if code == 124 else "failed"
    seconds = round(time.monotonic() - begun, 1)
    return report.row(name=name, outcome=outcome, code=code, seconds=seconds, printed="".join(printed)[-3000:])


def device_problem() -> str:
    """Empty if torch sees a GPU, else what it says."""
    ask = "import torch; torch.cuda.init(); print(torch.cuda.get_device_name())"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return "" if asked.returncode == 0 else (asked.stderr.strip().splitlines() or ["torch does not say why"])[-1]


def needs() -> dict[str, str]:
    """What there is of what the commands use: a version or place, or "missing"."""
    found = {name: shutil.which(name) or "missing" for name in ("nvcc", "compute-sanitizer", "cc", "cmake", "ninja")}
    for name in ("torch", "triton", "pytest", "pytest_benchmark", "xdist", "scikit_build_core", "pybind11"):
        found[name] = "there" if importlib.util.find_spec(name) else "missing"
    return found


def environment(device: str) -> dict[str, str]:
    """The package as built here in front of every other; on a CPU, the one that is installed."""
    path = [str(ROOT / "bench")] if device == "cpu" else [str(SITE), str(ROOT / "bench")]
    if os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])
    # The sources of the checkout have no native module: importing them by mistake is an error.
    # Those of a pytest that runs this are not for the one that this runs.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {
        **own, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "GEOLOC_FAST_REQUIRE": "cpu"
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
    run(report, "import, a launch on a side stream, the right answer", proof, min(90, report.left()), **options)
    # A fault of a kernel ends every later call of its process: each backend has its own.
    for backend in ("cuda", "triton"):
        env = {**options["env"], "GPU_ROWS": str(report.path.with_suffix(f".{backend}.jsonl"))}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_rows", "-p", "no:cacheprovider", "--no-header"]
        command += ["ops/test_gpu_operators.py", "-k", backend if backend == "cuda" else "not cuda"]
        if importlib.util.find_spec("xdist") is not None:  # Triton compiles for most of the time
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        share = report.left() * 0.5 if backend == "cuda" else report.left()
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

    parts = sum(GROUPS.values())
    for group, part in GROUPS.items():
        share, parts = report.left() * part / parts, parts - part
        # The process asks for no more of its time between two entries; an entry that does not end is ended.
        command = [sys.executable, str(ROOT / "bench" / "gpu_bench.py"), group, device, str(0.9 * share)]
        begun = time.monotonic()
        printed: list[str] = []

        def take(line: str, group: str = group, printed: list[str] = printed) -> None:
            try:
                row = json.loads(line) if line.startswith("{") else None
            except ValueError:
                row = None  # something else that begins like a row
            if row is None:
                printed.append(line)
            else:
                report.row(group=group, **row)

        code = watched(command, share, take, env=environment(device), cwd=ROOT / "bench")
        if code != 0:
            outcome = "out of time" if code == 124 else "failed"
            end = {"outcome": outcome, "code": code, "seconds": round(time.monotonic() - begun, 1)}
            report.row(group=group, case=group, entry="the process", **end, printed="".join(printed)[-3000:])
        report.path.with_suffix(".md").write_text(render(report.content))


def sanitize(report: Report, device: str) -> None:
    """A tool that refuses the device, or is not there, is a row and no failure."""
    tool = shutil.which("compute-sanitizer")
    env = {**environment(device), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    small = [sys.executable, str(ROOT / "bench" / "gpu_small.py"), device]
    options: dict[str, Any] = {"env": env, "cwd": ROOT / "bench"}
    run(report, "small calls without a tool", small, min(60, report.left()), **options)
    for n, check in enumerate(("memcheck", "racecheck", "initcheck")):
        if tool is None:
            report.row(name=check, outcome="not run", printed="there is no compute-sanitizer on the PATH")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9", *small]
        done = run(report, check, command, report.left() / (3 - n), **options)
        refusals = (
            "Device not supported",
            "not supported on this",
            "Unable to attach",
            "Target application terminated before",
        )
        if done["outcome"] == "failed" and done["code"] != 9 and any(words in done["printed"] for words in refusals):
            done["outcome"] = "refused"
            report.write()


COMMANDS = {"test": test, "bench": bench, "sanitize": sanitize}
SHARES = {"test": 0.5, "bench": 0.6, "sanitize": 1.0}  # of the time that is left when a part of `all` begins


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(SECONDS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=float, help="what it may take, the build included")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally` that ends children
    seconds = arguments.seconds or SECONDS[arguments.what]
    if arguments.device == "cuda" and (problem := device_problem()):
        parts = tuple(COMMANDS) if arguments.what == "all" else (arguments.what,)
        print(f"{arguments.what}: would build the package, then {', '.join(parts)}, in {seconds:.0f} s at most.")
        print("\n".join(f"  {name}: {state}" for name, state in needs().items()))
        print(f"There is no GPU that torch can use: {problem}", file=sys.stderr)
        return NO_DEVICE
    end, failed, built = time.monotonic() + seconds, 0, arguments.device == "cpu"
    for part, command in COMMANDS.items():
        if arguments.what not in (part, "all"):
            continue
        left = end - time.monotonic()
        share = left * SHARES[part] if arguments.what == "all" else left
        report = Report(arguments.out / f"gpu_{part}.json", " ".join(["bench/gpu.py", *sys.argv[1:]]), share)
        if not built:
            build(report)
            built = True
        command(report, arguments.device)
        failed |= report.finish()
    return failed


if __name__ == "__main__":
    sys.exit(main())
