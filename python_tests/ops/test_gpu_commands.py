"""The commands for a GPU machine, gone through on tiny CPU tensors: each runs to its end and says what it did."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("test", "bench", "sanitize")

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not (ROOT / "bench" / "gpu.py").exists(), reason="not in a checkout: there are no commands"),
]


def command(what: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "bench" / "gpu.py"), what, *options]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `all` leaves: its three reports, and the page."""
    out = tmp_path_factory.mktemp("results")
    done = command("all", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found: dict[str, Any] = {what: json.loads((out / f"gpu_{what}.json").read_text()) for what in PARTS}
    return {**found, "page": (out / "gpu_bench.md").read_text()}


@pytest.mark.slow
def test_every_part_ends_and_says_where_it_ran(reports: dict[str, Any]) -> None:
    for what in PARTS:
        assert reports[what]["finished"] and reports[what]["machine"]["torch"]
        assert reports[what]["command"].startswith("bench/gpu.py all")


@pytest.mark.slow
def test_the_test_part(reports: dict[str, Any]) -> None:
    rows = reports["test"]["rows"]
    assert [row["outcome"] for row in rows] == ["passed"] * 3
    assert "largest difference from the CPU 0.0" in rows[0]["printed"]
    assert [row["name"] for row in rows[1:]] == ["operators, cuda", "operators, triton"]
    for row in rows[1:]:
        assert row["counts"]["failed"] == 0 and sum(row["counts"].values()) > 20


@pytest.mark.slow
def test_the_bench_part(reports: dict[str, Any]) -> None:
    rows, page = reports["bench"]["rows"], reports["page"]
    assert {row["outcome"] for row in rows} == {"passed"}, [row for row in rows if row["outcome"] != "passed"]
    assert list(dict.fromkeys(row["group"] for row in rows)) == ["limits", "profile", "search", "match", "polar"]
    for row in rows:
        if row["group"] != "limits":
            assert f"## {row['case']}" in page
            assert row["entry"] in page
    profiled = [row for row in rows if row["group"] == "profile"]
    assert len(profiled) == 4
    for row in profiled:
        assert row["plan"].startswith("avx") or row["plan"]
        assert all(kernel["us"] > 0 and kernel["launches"] > 0 for kernel in row["kernels"])


@pytest.mark.slow
def test_the_sanitize_part(reports: dict[str, Any]) -> None:
    rows = reports["sanitize"]["rows"]
    assert rows[0]["outcome"] == "passed"
    assert [row["name"] for row in rows[1:]] == ["memcheck", "racecheck", "initcheck"]
    assert all(row["outcome"] in ("passed", "not run", "refused") for row in rows[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    done = command("all", "--out", str(tmp_path))
    assert done.returncode == 3
    assert "There is no GPU that torch can use" in done.stderr
    assert "test, bench, sanitize, in 700 s at most" in done.stdout and "nvcc: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_overruns_its_share_is_ended_with_its_children(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from gpu import Report, run
    finally:
        sys.path.pop(0)
    report = Report(tmp_path / "report.json", "a test", 100.0)
    # A child that would write half a second later, and a parent that waits for it.
    child = f"import time; time.sleep(3); open({str(tmp_path / 'lived')!r}, 'w')"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    row = run(report, "too long", [sys.executable, "-c", parent], 1.0)
    assert time.monotonic() - begun < 3
    assert (row["outcome"], row["code"], row["printed"]) == ("out of time", 124, "begun\n")
    time.sleep(3)
    assert not (tmp_path / "lived").exists()
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == [row]
