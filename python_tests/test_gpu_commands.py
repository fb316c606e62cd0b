"""The three commands for a GPU machine, gone through on tiny CPU tensors: each runs to its end and says what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not (ROOT / "bench" / "gpu.py").exists(), reason="not in a checkout: there are no commands"),
]


def report_of(what: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), what, "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads((out / f"gpu_{what}.json").read_text())
    assert report["finished"] and report["machine"]["torch"]
    return report


def test_the_test_command(tmp_path: Path) -> None:
    rows = report_of("test", tmp_path)["rows"]
    assert [row["outcome"] for row in rows] == ["passed"] * 3
    assert "largest difference from the CPU 0.0" in rows[0]["printed"]
    for row in rows[1:]:
        assert row["counts"]["failed"] == 0 and sum(row["counts"].values()) > 20


def test_the_bench_command(tmp_path: Path) -> None:
    rows = report_of("bench", tmp_path)["rows"]
    assert {row["outcome"] for row in rows} == {"passed"}, [row for row in rows if row["outcome"] != "passed"]
    assert {row["group"] for row in rows} == {"limits", "polar", "match", "search"}
    page = (tmp_path / "gpu_bench.md").read_text()
    for row in rows:
        if row["group"] != "limits":
            assert f"## {row['case']}" in page
            assert row["entry"] in page


def test_the_sanitize_command(tmp_path: Path) -> None:
    rows = report_of("sanitize", tmp_path)["rows"]
    assert rows[0]["outcome"] == "passed"
    assert [row["name"] for row in rows[1:]] == ["memcheck", "racecheck", "initcheck"]
    assert all(row["outcome"] in ("passed", "not run", "refused") for row in rows[1:])
