"""A static Ray cluster from the command line: a head, machines that join it, what is there, and the end of it.

Loopback unless another address is said, a token always, no usage statistics. What is started here is noted in a folder
of the user, and only that is stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from geoloc_fast.cluster.executor import checked_label, host_and_port
from geoloc_fast.cluster.on_ray import LABEL, imported, joined, knock
from geoloc_fast.errors import ClusterError
from geoloc_fast.files import write_atomically

__all__ = ["LOOPBACK", "start", "status", "stop"]

LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for a slip, and listens on the machine's own address instead
_START_S = 90.0
_STOP_S = 20.0
# A lost machine is noticed after about five seconds; Ray waits for half a minute by itself. Not sooner: a machine that
# is only busy would be given up.
_DETECTION = {"period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 4, "initial_delay_ms": 5000}
_SETTINGS = {
    **{f"RAY_health_check_{key}": str(value) for key, value in _DETECTION.items()},
    "RAY_worker_niceness": "0",  # Ray's own is 15: searches would stand behind everything else
}


def state_folder() -> Path:
    return Path.home() / ".geoloc_fast" / "cluster"


def token_file() -> Path:
    """Of Ray itself: whoever has it can run anything on the cluster."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def start(
    *, host: str = LOOPBACK, port: int = 6379, join: str | None = None, label: str | None = None,
    cpus: int | None = None, gpus: int | None = None, object_store_mb: int = 200, folder: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Starts the head of a cluster on this machine, or with `join` ("HOST:PORT" of a head) makes it a part of one.

    Args:
        host, port: where it listens. With another address than the loopback, other machines can join.
        label: shards with this label are searched here, and work without a label too.
        cpus, gpus: what encoding may use; default all.
        object_store_mb: of Ray. Strips never go through it.
        folder: where it is noted; default `~/.geoloc_fast/cluster`.
    """
    imported()
    if label is not None:
        checked_label(label)
    if join is not None:
        knock(*_address("join", join))
    folder = folder or state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Ray names a node's sockets by what is free: two at once take the same
        return _started(folder, host, port, join, label, cpus, gpus, object_store_mb)


def _started(
    folder: Path, host: str, port: int, join: str | None, label: str | None, cpus: int | None, gpus: int | None,
    object_store_mb: int,
) -> dict[str, Any]:  # fmt: skip
    address = join or f"{host}:{port}"
    if join is None and any(node["address"] == address and node["head"] for node in _nodes(folder)):
        raise ClusterError(f"{address}: a head runs there already; `geoloc-fast cluster stop` ends it")
    _token(make=join is None)
    name = f"{'node' if join else 'head'}-{secrets.token_hex(4)}"
    # Paths of its sockets must be short. A machine that joins has the head's.
    temporary = None if join else tempfile.mkdtemp(prefix="geoloc-")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", host, "--object-store-memory", str(object_store_mb << 20)]
    command += ["--address", join] if join else ["--head", "--port", str(port), "--include-dashboard", "false"]
    # Neither what makes a cluster grow nor what sends the logs of its workers around: two processes fewer a machine.
    command += ["--no-monitor", "--include-log-monitor", "false"]
    command += ["--temp-dir", temporary] if temporary else []
    command += ["--num-cpus", str(cpus)] if cpus is not None else []
    command += ["--num-gpus", str(gpus)] if gpus is not None else []
    command += ["--labels", f"{LABEL}={label}"] if label else []
    if host == LOOPBACK:  # several nodes of one machine must not choose the same ports
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    env = {**_SETTINGS, **os.environ}
    env |= {"RAY_AUTH_MODE": env.get("RAY_AUTH_MODE", "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    output = folder / f"{name}.log"
    with open(output, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True, cwd=folder
        )
    node = {
        "name": name, "head": join is None, "address": address, "label": label, "pid": process.pid,
        "began": _began(process.pid), "temporary": temporary,
    }  # fmt: skip
    write_atomically(folder / f"{name}.json", json.dumps(node))
    until = time.monotonic() + _START_S
    try:
        while b"Ray runtime started" not in output.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                text = output.read_text(errors="replace").strip().splitlines()
                kept = output.replace(folder / "failed.log")
                said = text[-1] if text else "it said nothing"
                raise ClusterError(f"{address}: Ray did not start ({said:.200}); see {kept}")
            time.sleep(0.1)
    except BaseException:  # Ctrl-C too leaves nothing that runs
        _end(folder, node)
        raise
    return node


def status(address: str | None = None, folder: Path | None = None) -> dict[str, Any]:
    """What was started here, and of the cluster of `address` ("HOST:PORT"; default the head that runs here) its
    machines. ClusterError if no head answers."""
    here = _nodes(folder or state_folder())
    if address is None:
        if not here:
            raise ClusterError("no head or node of a cluster runs here; `geoloc-fast cluster start` starts one")
        address = str(here[0]["address"])
    ray = joined(*_address("address", address))
    nodes = [
        {
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "label": node.get("Labels", {}).get(LABEL),
            "cpus": node["Resources"].get("CPU", 0.0),
            "gpus": node["Resources"].get("GPU", 0.0),
        }
        for node in ray.nodes()
    ]
    return {"address": address, "here": [node["name"] for node in here], "nodes": nodes}


def stop(folder: Path | None = None) -> list[str]:
    """Ends what was started here, nodes before the head; their names."""
    folder = folder or state_folder()
    nodes = sorted(_nodes(folder), key=lambda node: node["head"])
    for node in nodes:
        _end(folder, node)
    return [node["name"] for node in nodes]


def _nodes(folder: Path) -> list[dict[str, Any]]:
    """Those that run, the head first; the notes of others go."""
    found = []
    for note in sorted(folder.glob("*.json")):
        try:
            node = dict(json.loads(note.read_text()))
            runs = _began(int(node["pid"])) == node["began"]
        except (ValueError, TypeError, KeyError):
            continue
        if runs:
            found.append(node)
        else:
            _forget(folder, node)
    return sorted(found, key=lambda node: not node["head"])


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: with its number this is no other's."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _end(folder: Path, node: dict[str, Any]) -> None:
    pid = int(node["pid"])
    if _began(pid) == node["began"]:
        with suppress(OSError):
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_S
        while _lives(pid) and time.monotonic() < until:
            time.sleep(0.05)
        with suppress(OSError):  # what of its session is left
            os.killpg(pid, signal.SIGKILL)
    _forget(folder, node)


def _lives(pid: int) -> bool:
    with suppress(OSError):
        os.waitpid(pid, os.WNOHANG)  # if it is a child of this process
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _forget(folder: Path, node: dict[str, Any]) -> None:
    if node.get("temporary"):
        shutil.rmtree(node["temporary"], ignore_errors=True)
    for suffix in ("log", "json"):
        (folder / f"{Path(str(node['name'])).name}.{suffix}").unlink(missing_ok=True)


def _address(name: str, text: str) -> tuple[str, int]:
    found = host_and_port(text)
    if found is None:
        raise ValueError(f"{name}: expected HOST:PORT, got {text!r}")
    return found


def _token(make: bool) -> None:
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_file()
    if path.exists():
        return
    if not make:
        raise ClusterError(f"{path}: there is no token; copy this file from the head's machine")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
