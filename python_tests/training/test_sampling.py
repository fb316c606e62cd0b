"""Batches with hard negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geoloc_fast import StripBank, azimuth_match
from geoloc_fast.geo.sphere import great_circle_m, move_m
from geoloc_fast.training.sampling import PlaceBatches, most_similar, nearest_on_ground


def spread(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return move_m(48.0, 11.0, rng.uniform(0, 300, count), rng.uniform(0, 300, count))  # type: ignore[return-value]


def test_nearest_on_ground_is_a_sort() -> None:
    lat, lon = spread(60)
    lat[7] = np.nan
    found = nearest_on_ground(lat, lon, 5, beyond_m=25.0)
    for n in range(60):
        away = [(float(great_circle_m(lat[n], lon[n], lat[m], lon[m])), m) for m in range(60)]
        assert found[n].tolist() == ([m for d, m in sorted(away) if d > 25][:5] if n != 7 else [-1] * 5)
    assert (nearest_on_ground(lat[:3], lon[:3], 5, beyond_m=25.0)[:, 2:] == -1).all()


@pytest.mark.parametrize("degrees", [1e-3, 0.05, 20.0])
def test_nearest_on_ground_of_many_towns_is_that_of_comparing_all(degrees: float) -> None:
    """More places than are looked at together, among them such as share a position, and one alone far away."""
    rng = np.random.default_rng(3)
    towns = np.array([(47.0, 8.0), (47.0, 179.99), (-33.0, 18.0)])
    lat, lon = (towns[rng.integers(3, size=900)] + degrees * rng.normal(size=(900, 2))).T
    lat[::9], lon[::9] = np.round(lat[::9], 3), np.round(lon[::9], 3)
    lat[-1], lon[-1] = 88.0, 0.0
    away = great_circle_m(lat[:, None], lon[:, None], lat, lon)
    away = np.where(away > 25, away, np.inf)
    order = np.argsort(away, axis=1, kind="stable")[:, :7]
    expected = np.where(np.isfinite(np.take_along_axis(away, order, 1)), order, -1)
    np.testing.assert_array_equal(nearest_on_ground(lat, lon, 7), expected)


def test_most_similar_passes_over_what_is_near() -> None:
    lat, lon = spread(40)
    generator = torch.Generator().manual_seed(0)
    strips = torch.randn(40, 4, 2, 8, generator=generator)
    place = np.array([3, 9, 21, 30])
    query, width = strips[place][..., :5].contiguous(), torch.tensor([5, 4, 5, 3])
    bank = StripBank.pack(strips, dtype="fp32")
    found = most_similar(query, bank, place, lat, lon, 6, query_width=width, beyond_m=60.0)
    score = azimuth_match(query, strips, query_width=width).score
    for row, own in enumerate(place):
        far = [m for m in range(40) if great_circle_m(lat[own], lon[own], lat[m], lon[m]) > 60]
        expected = sorted(far, key=lambda m: -float(score[row, m]))[:6]
        # What is near uses up some of the answers that are asked for.
        got = [m for m in found[own].tolist() if m >= 0]
        assert got == expected[: len(got)] and len(got) >= 4
    assert (found[0] == -1).all()


def pairs() -> tuple[np.ndarray, np.ndarray]:
    place = np.random.default_rng(1).integers(0, 40, 150)
    lat, lon = spread(40)
    return place, nearest_on_ground(lat, lon, 12)


@pytest.mark.parametrize("hard", [0, 3])
def test_each_place_once_a_batch_each_pair_once_an_epoch(hard: int) -> None:
    place, neighbours = pairs()
    batches = PlaceBatches(place, 16, neighbours=neighbours, hard=hard).batches()
    assert len(batches) >= 7  # of nine that would fit if places did not repeat
    assert all(len(batch) == 16 == len(set(place[batch])) for batch in batches)
    seen = [pair for batch in batches for pair in batch]
    assert len(seen) == len(set(seen))


def test_hard_negatives_are_there() -> None:
    place, neighbours = np.arange(400), None
    rng = np.random.default_rng(0)
    neighbours = np.stack([rng.permutation(np.delete(np.arange(400), n))[:8] for n in range(400)])

    def neighbours_met(sampler: PlaceBatches) -> float:
        met = [len(set(neighbours[n]) & set(batch)) for batch in sampler.batches() for n in batch]
        return float(np.mean(met))

    random = neighbours_met(PlaceBatches(place, 32))
    hard = neighbours_met(PlaceBatches(place, 32, neighbours=neighbours, hard=3))
    assert hard > random + 0.2  # a quarter of the pairs lead three each, while those are unused


def test_order_depends_on_seed_and_epoch_and_can_go_on() -> None:
    place, neighbours = pairs()
    sampler = PlaceBatches(place, 16, neighbours=neighbours, hard=3, seed=4)
    first = sampler.batches()
    assert first == PlaceBatches(place, 16, neighbours=neighbours, hard=3, seed=4).batches()
    assert first != PlaceBatches(place, 16, neighbours=neighbours, hard=3, seed=5).batches()
    sampler.start = 2
    assert list(sampler) == first[2:] and len(sampler) == len(first) - 2
    sampler.epoch = 1
    assert sampler.batches() != first


def test_processes_share_every_batch() -> None:
    place, neighbours = pairs()
    whole = PlaceBatches(place, 16, neighbours=neighbours, hard=3).batches()
    parts = [list(PlaceBatches(place, 16, neighbours=neighbours, hard=3, rank=r, world=2)) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 3 places"):
        PlaceBatches(np.array([0, 0, 1, 2]), 4)
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        PlaceBatches(np.arange(9), 3, world=2)
    with pytest.raises(ValueError, match="at least two places"):
        PlaceBatches(np.zeros(5, int), 1)
