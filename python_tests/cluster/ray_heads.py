"""What tests of the cluster share: whether Ray is here, and where a head of their own can listen."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from geoloc_fast.cluster import operate

WITH_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'geoloc_fast[cluster]'"
)


def free_port() -> int:
    """Of the loopback."""
    with socket.socket() as found:
        found.bind((operate.LOOPBACK, 0))
        return int(found.getsockname()[1])
