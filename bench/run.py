"""Runs every benchmark several times, each time in a fresh process, and writes one JSON.

    python bench/run.py [--runs 5] [--out bench/results/cpu.json] [pytest arguments, such as -k polar]

What takes long (marked "once") and the cases with AVX2 alone are measured in the first run only.

Inside a run the cases of a group stand next to one another, so that ours and its peers meet the same machine; over the
runs the median of medians and the worst are kept. The limits of the machine are measured at both ends of every run, and
the higher of the two counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limits import measure
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]


# What makes us and every peer keep to AVX2.
AVX2 = {
    "GEOLOC_FAST_CPU_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "FAISS_OPT_LEVEL": "avx2",
    "OPENCV_CPU_DISABLE": "AVX512_SKX,AVX512_ICL",
}


def one_run(arguments: list[str], first: bool) -> dict[str, Any]:
    import torch

    limits = [measure(torch.get_num_threads())]
    benchmarks = session(arguments if first else [*arguments, "-m", "not once"], {})
    for bench in session([*arguments, "-m", "avx2"], AVX2) if first else []:
        bench["group"] += " (AVX2 only)"
        bench["extra_info"].pop("flops_dtype", None)
        bench["extra_info"].pop("flops", None)  # the machine's rate was measured with all it has
        benchmarks.append(bench)
    limits.append(measure(torch.get_num_threads()))
    return {"limits": {key: max(each[key] for each in limits) for key in limits[0]}, "benchmarks": benchmarks}


def session(arguments: list[str], environment: dict[str, str]) -> list[dict[str, Any]]:
    """The benchmarks of one process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--benchmark-enable",
            "--benchmark-only",
            f"--benchmark-json={out}",
        ]
        command += [*arguments, str(ROOT / "bench")]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **environment}
        )
        if done.returncode == 5:  # nothing chosen
            return []
        if done.returncode != 0:
            sys.exit(f"bench: a benchmark failed its own check\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
        return list(json.loads(out.read_text())["benchmarks"])


def machine() -> dict[str, Any]:
    import numpy
    import torch

    import geoloc_fast

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    for name in ("cv2", "faiss"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "not installed"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": geoloc_fast.build_info()["backends"]["cpu"]["isa"],
        "compiler": geoloc_fast.build_info()["backends"]["cpu"]["compiler"],
        "versions": versions,
        "commit": commit.stdout.strip() or "not a checkout",
    }


def _last(values: list[Any]) -> Any:
    return values[-1]


# What is kept of what the runs say beside the time.
_KEPT: dict[str, Callable[[list[Any]], Any]] = {"max_error": max, "peak_mb": max, "share_of_read": statistics.median}


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for bench in run["benchmarks"]:
            name = bench["extra_info"].pop("entry", bench["name"])
            row = rows.setdefault((bench["group"] or "", name), {"medians_s": [], "extra": {}})
            row["medians_s"].append(bench["stats"]["median"])
            for key, value in bench["extra_info"].items():
                row["extra"].setdefault(key, []).append(value)
    return {
        "limits": {key: statistics.median(run["limits"][key] for run in runs) for key in runs[0]["limits"]},
        "rows": [
            {
                "case": group,
                "entry": name,
                "median_s": statistics.median(row["medians_s"]),
                "worst_s": max(row["medians_s"]),
                "runs": len(row["medians_s"]),
                **{key: _KEPT.get(key, _last)(values) for key, values in row["extra"].items()},
            }
            for (group, name), row in rows.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cpu.json")
    arguments, rest = parser.parse_known_args()
    runs = [one_run(rest, first=number == 0) for number in tqdm(range(arguments.runs), desc="benchmark runs")]
    command = " ".join(["python bench/run.py", f"--runs {arguments.runs}", *rest])
    result = {"command": command, "machine": machine(), **merged(runs)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.out}; python bench/report.py renders it")


if __name__ == "__main__":
    main()
