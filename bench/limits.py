"""The machine's limits, measured by `limits.cpp` built for this machine. For `run.py`, which compares with them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def measure(threads: int) -> dict[str, Any]:
    """Read and copy bandwidth in GB/s, float32 and bfloat16 rates in GFLOP/s, on `threads` threads."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "limits"
        compiler = os.environ.get("CXX", "c++")
        source = Path(__file__).with_name("limits.cpp")
        command = [compiler, "-O3", "-march=native", "-std=gnu++17", "-pthread", "-o", str(program), str(source)]
        subprocess.run(command, check=True)
        done = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
