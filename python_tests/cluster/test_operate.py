"""Starting, showing and stopping a Ray cluster, and what is said where there is none."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray_heads import WITH_RAY, free_port
from typer.testing import CliRunner

from geoloc_fast.cli.run import app
from geoloc_fast.cluster import connect, operate
from geoloc_fast.errors import ClusterError, WorkerLostError


def test_without_ray_one_line_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for asked in (lambda: connect("ray://127.0.0.1:6379"), lambda: operate.start()):
        with pytest.raises(ClusterError, match="Ray is not installed") as raised:
            asked()
        assert "pip install 'geoloc_fast[cluster]' brings it" in str(raised.value)
        assert "\n" not in str(raised.value)


@WITH_RAY
def test_a_head_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    code = f"from geoloc_fast.cluster import connect; connect('ray://{operate.LOOPBACK}:{free_port()}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert "ClusterError" in done.stderr and "nothing answers there" in done.stderr.splitlines()[-1]
    with pytest.raises(ClusterError, match="no head or node of a cluster runs here"):
        operate.status(folder=tmp_path)
    with pytest.raises(ClusterError, match="nothing answers there"):
        operate.start(join=f"{operate.LOOPBACK}:{free_port()}", folder=tmp_path)
    assert operate.stop(folder=tmp_path) == []
    with pytest.raises(ValueError, match="label: expected letters"):
        operate.start(label="a b", folder=tmp_path)
    with pytest.raises(ValueError, match="join: expected HOST:PORT, got 'head'"):
        operate.start(join="head", folder=tmp_path)
    wrong = CliRunner().invoke(app, ["cluster", "status", "head"])
    assert wrong.exit_code == 2 and "address: expected HOST:PORT, got 'head'" in wrong.output
    assert not any(tmp_path.iterdir())


@WITH_RAY
def test_a_call_after_the_end_starts_nothing(head: str) -> None:
    """Ray by itself would start a cluster of its own for it, on this machine, and leave it there."""
    executor = connect(head)
    worker = executor.start("late", "builtins:dict")
    executor.close()
    with pytest.raises(WorkerLostError, match="has left the cluster"):
        worker.call("keys").result(60)


@WITH_RAY
def test_the_cluster_that_runs_is_shown(head: str, home: Path) -> None:
    address = head.removeprefix("ray://")
    said = json.loads(CliRunner().invoke(app, ["cluster", "status", address, "--json"]).stdout)
    assert said["address"] == address and len(said["here"]) == 1
    (node,) = said["nodes"]
    assert (node["address"], node["alive"], node["cpus"]) == (operate.LOOPBACK, True, 2.0)
    shown = CliRunner().invoke(app, ["cluster", "status", address]).stdout
    assert f"{operate.LOOPBACK}" in shown and "alive" in shown
    token = operate.token_file()
    assert token.is_relative_to(home) and stat.S_IMODE(token.stat().st_mode) == 0o600
    with pytest.raises(ClusterError, match="a head runs there already"):
        operate.start(port=int(address.rpartition(":")[2]))


@pytest.mark.slow
@WITH_RAY
def test_a_program_without_the_token_does_not_come_in(head: str, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    env = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(wrong), "HOME": str(tmp_path)}
    code = f"from geoloc_fast.cluster import connect; connect({head!r}); print('came in')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode != 0 and "came in" not in done.stdout
