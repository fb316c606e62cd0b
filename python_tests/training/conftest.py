"""Runs need a checkout and `omegaconf` (pip install '.[train]'); their tests share two small cities, written once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = [
    "test_geolocalizer.py", "test_memory.py", "test_paper_tables.py", "test_settings.py", "test_step.py",
    "test_trainer.py", "test_two_processes.py", "test_views.py",
]  # fmt: skip
if importlib.util.find_spec("omegaconf") is None or not (ROOT / "train").is_dir():
    collect_ignore = RUNS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in RUNS:
            item.add_marker(pytest.mark.checkout)


@pytest.fixture(scope="module", autouse=True)
def tiny_networks(one_thread: None) -> None:
    """All of these networks are."""


@pytest.fixture(scope="session")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities of 20 places."""
    from geoloc_fast.city.views import TIDY, Sizes
    from geoloc_fast.city.write import write_city

    out = tmp_path_factory.mktemp("region")
    sizes = Sizes(satellite_px=64, panorama=(32, 128), photo=(48, 64))
    write_city(out, seed=5, cities=2, places=20, sizes=sizes, fov_range=(80.0, 100.0), capture=TIDY)
    return out


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of the backbone that is the default."""
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.torch.save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    return path
