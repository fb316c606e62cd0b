"""A pytest plugin: one line of JSON for each test as it ends, in the file that GPU_ROWS names."""

from __future__ import annotations

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    row = {"test": report.nodeid.split("::", 1)[-1], "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.outcome != "passed":
        row["why"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)[-600:]
    with open(os.environ["GPU_ROWS"], "a") as file:
        file.write(json.dumps(row) + "\n")
