"""Prints what is being tested, the backends, so that nobody tests the slow path unaware; and what modules share."""

import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import geoloc_fast

_OFFLINE = Path(__file__).parent / "offline"


def pytest_configure(config: pytest.Config) -> None:
    """Sockets to anything but this machine are errors, here and in every Python that a test starts. Ctrl-C is one too,
    even where whoever started the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_OFFLINE), os.environ.get("PYTHONPATH")]))
    runpy.run_path(str(_OFFLINE / "sitecustomize.py"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    info = geoloc_fast.build_info()
    lines = [f"geoloc_fast {info['version']} from {geoloc_fast.__file__}, torch {info['torch']}"]
    for name, backend in info["backends"].items():
        state = backend.get("isa") or "available" if backend["available"] else f"not here: {backend['reason']}"
        lines.append(f"  {name}: {state}")
    return lines


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For a module of tiny convolutions: their threads would spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights that encodes a place in no time, where a test is not about what a model finds."""
    from geoloc_fast.models import Geolocalizer, GeolocalizerConfig

    torch.manual_seed(0)
    config = GeolocalizerConfig(
        backbone="convnext_atto",
        backbone_kwargs={"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 32], "ls_init_value": None},
        image_size=(64, 256),
        strip=(8, 2, 16),
        satellite_px=128,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    Geolocalizer(config).save(path)
    return path
