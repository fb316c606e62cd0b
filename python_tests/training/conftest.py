"""Training needs a checkout and `omegaconf`; its tests share two small cities, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("omegaconf", reason="training needs omegaconf: pip install '.[train]'")
ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
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
