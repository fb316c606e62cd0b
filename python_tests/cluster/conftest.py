"""Every test of the cluster runs on both executors: processes of this machine, and a Ray head that is started here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_heads import WITH_RAY, free_port

from geoloc_fast.cluster import operate


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of its own: token and notes of a cluster lie there."""
    folder = tmp_path_factory.mktemp("home")
    before, os.environ["HOME"] = os.environ.get("HOME"), str(folder)
    yield folder
    if before is not None:
        os.environ["HOME"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def head(home: Path) -> Iterator[str]:
    """ray://HOST:PORT of a cluster of one node."""
    port = free_port()
    operate.start(port=port, cpus=2)
    yield f"ray://{operate.LOOPBACK}:{port}"
    operate.stop()
    assert [path.name for path in operate.state_folder().iterdir()] == ["lock"]


@pytest.fixture(scope="module", params=["local:2", pytest.param("ray", marks=WITH_RAY)])
def where(request: pytest.FixtureRequest) -> str:
    """The name of a cluster."""
    return str(request.getfixturevalue("head")) if request.param == "ray" else str(request.param)
