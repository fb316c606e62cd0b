"""Recall within a distance, and heading errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoloc_fast.geo import move_m
from geoloc_fast.metrics import heading_error_deg, one_percent, recall_at_k


def line(metres: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions on a line going east."""
    east = torch.tensor(metres, dtype=torch.float64)
    return move_m(torch.full_like(east, 22.3), torch.full_like(east, 114.17), east, 0.0 * east)


def test_recall_counts_any_answer_within_the_threshold() -> None:
    lat, lon = line([0, 20, 100, 200, 300])
    query_lat, query_lon = line([0, 0, 0, 500])
    index = torch.tensor([[0, 1, 2], [2, 1, 0], [2, 3, 4], [4, 3, 2]])
    recall = recall_at_k(index, query_lat=query_lat, query_lon=query_lon, lat=lat, lon=lon, k=(1, 2, 3))
    assert recall.at == {1: 0.25, 2: 0.5, 3: 0.5}
    assert recall.queries == 4
    assert recall.out_of_range == 1  # the query at 500 m, still in the denominator


def test_threshold_and_missing_answers() -> None:
    lat, lon = line([24.9, 25.1])
    query_lat, query_lon = line([0, 0, 0])
    index = torch.tensor([[0, -1], [1, -1], [-1, -1]])
    recall = recall_at_k(index, query_lat=query_lat, query_lon=query_lon, lat=lat, lon=lon, k=(1, 10))
    assert recall.at == {1: pytest.approx(1 / 3), 10: pytest.approx(1 / 3)}


def test_empty_sets() -> None:
    none = torch.zeros(0, dtype=torch.float64)
    one = torch.zeros(1, dtype=torch.float64)
    no_index = torch.zeros(0, 3, dtype=torch.long)
    recall = recall_at_k(no_index, query_lat=none, query_lon=none, lat=one, lon=one, k=(1,))
    assert recall == ({1: 0.0}, 0, 0)
    missing = torch.full((1, 3), -1)
    recall = recall_at_k(missing, query_lat=one, query_lon=one, lat=none, lon=none, k=(1,))
    assert recall == ({1: 0.0}, 1, 1)


def test_one_percent() -> None:
    assert [one_percent(r) for r in (0, 99, 100, 199, 8884)] == [1, 1, 2, 2, 89]


def test_recall_arguments_are_named() -> None:
    lat, lon = line([0, 1, 2])
    good = {"query_lat": lat[:1], "query_lon": lon[:1], "lat": lat, "lon": lon}
    index = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="k: expected"):
        recall_at_k(index, **good, k=(3,))
    with pytest.raises(ValueError, match="index: expected integers"):
        recall_at_k(index.float(), **good, k=(1,))
    with pytest.raises(ValueError, match="index: expected below 3"):
        recall_at_k(index + 3, **good, k=(1,))
    with pytest.raises(ValueError, match="query_lon: expected"):
        recall_at_k(index, **{**good, "query_lon": lon}, k=(1,))


def test_heading_error_is_signed_and_wraps() -> None:
    assert heading_error_deg(10.0, 350.0) == 20.0
    assert heading_error_deg(350.0, 10.0) == -20.0
    assert heading_error_deg(180.0, 0.0) == -180.0
    np.testing.assert_array_equal(heading_error_deg(np.array([0.0, 725.0]), np.array([359.0, 0.0])), [1.0, 5.0])
    assert heading_error_deg(torch.tensor([1.0]), torch.tensor([359.0])).tolist() == [2.0]
