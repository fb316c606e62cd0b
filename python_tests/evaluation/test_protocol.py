"""The streaming protocol against loops over whole matrices."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from geoloc_fast import StripBank, azimuth_match, shift_to_heading
from geoloc_fast.evaluation.protocol import Measured, PhotoBatch, measure, table
from geoloc_fast.geo.sphere import great_circle_m, move_m

PLACES, PHOTOS = 150, 40


class World:
    """Places on a square of 400 m, photos near some of them, strips that are noisy windows of their places'."""

    def __init__(self, noise: float = 0.8) -> None:
        rng = np.random.default_rng(0)
        generator = torch.Generator().manual_seed(0)
        self.lat, self.lon = move_m(48.0, 11.0, rng.uniform(0, 400, PLACES), rng.uniform(0, 400, PLACES))
        self.strips = torch.randn(PLACES, 4, 2, 16, generator=generator)
        self.bank = StripBank.pack(self.strips, dtype="fp32", column0_deg=30.0)
        self.own = rng.integers(0, PLACES, PHOTOS)
        shift = rng.integers(0, 16, PHOTOS)
        self.width = torch.tensor(rng.integers(3, 7, PHOTOS))
        rolled = torch.stack([self.strips[n].roll(-int(s), -1)[..., :6] for n, s in zip(self.own, shift, strict=True)])
        self.query = rolled + noise * torch.randn(rolled.shape, generator=generator)
        self.photo_lat, self.photo_lon = move_m(
            self.lat[self.own], self.lon[self.own], rng.normal(0, 12, PHOTOS), rng.normal(0, 12, PHOTOS)
        )
        self.photo_lat[:3] += 0.1  # ten kilometres from anything
        self.heading_deg = shift_to_heading(torch.tensor(shift), self.width, 16, column0_deg=30.0).numpy()
        self.heading_deg += rng.normal(0, 8, PHOTOS)
        self.heading_deg[5] = np.nan
        self.city = [f"c{n % 3}" for n in range(PHOTOS)]

    def photos(self, size: int = 7) -> Iterator[PhotoBatch]:
        for begin in range(0, PHOTOS, size):
            part = slice(begin, begin + size)
            yield PhotoBatch(
                [(self.query[part], self.width[part])],
                self.photo_lat[part],
                self.photo_lon[part],
                self.heading_deg[part],
                {"city": self.city[part]},
            )


def test_figures_are_those_of_the_whole_matrix() -> None:
    world = World()
    metrics = measure(world.photos(), world.bank, world.lat, world.lon).metrics()
    match = azimuth_match(world.query, world.strips, query_width=world.width)
    order = match.score.argsort(dim=1, descending=True, stable=True).numpy()
    away = great_circle_m(world.photo_lat[:, None], world.photo_lon[:, None], world.lat, world.lon)
    ranked = np.take_along_axis(away, order, 1)
    for k, name in ((1, "1"), (5, "5"), (10, "10"), (PLACES // 100 + 1, "1_percent")):
        assert metrics[f"recall_at_{name}"] == pytest.approx((ranked[:, :k] <= 25).any(1).mean())
    for radius in (10, 50, 200):
        assert metrics[f"recall_at_1_within_{radius}_m"] == pytest.approx((ranked[:, 0] <= radius).mean())
    assert metrics["photos_with_no_place_in_range"] == int((away.min(1) > 25).sum()) >= 3
    assert metrics["median_error_m"] == pytest.approx(np.sort(ranked[:, 0])[(PHOTOS - 1) // 2])
    errors = []
    for n in np.flatnonzero(ranked[:, 0] <= 25):
        shift = match.shift[n, order[n, 0]]
        heading = float(shift_to_heading(shift, int(world.width[n]), 16, column0_deg=30.0))
        if np.isfinite(world.heading_deg[n]):
            apart = abs(heading - world.heading_deg[n]) % 360
            errors.append(min(apart, 360 - apart))
    assert metrics["heading_within_11_25_deg"] == pytest.approx(np.mean(np.array(errors) <= 11.25))
    assert 0.2 < metrics["recall_at_1"] < 0.95  # or the comparisons above compare nothing


def test_batches_groups_and_intervals() -> None:
    world = World()
    metrics = measure(world.photos(7), world.bank, world.lat, world.lon).metrics()
    assert metrics == measure(world.photos(40), world.bank, world.lat, world.lon).metrics()
    by_city = metrics["by"]["city"]
    assert sum(part["photos"] for part in by_city.values()) == PHOTOS
    assert sum(part["photos"] * part["recall_at_1"] for part in by_city.values()) == pytest.approx(
        PHOTOS * metrics["recall_at_1"]
    )
    low, high = metrics["interval"]["recall_at_1"]
    share = metrics["recall_at_1"]
    # The bootstrap of a share is binomial.
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / PHOTOS) ** 0.5, rel=0.25)
    json.dumps(metrics, allow_nan=False)
    text = table(metrics)
    assert "city c2" in text and f"{100 * share:.1f} [" in text and "no place within 25 m" in text


def test_several_readings_of_a_photo() -> None:
    """The best reading counts for each place; the heading is that of its own width."""
    world = World(noise=0.0)
    wrong = torch.randn_like(world.query)
    narrow = torch.full_like(world.width, 2)

    def photos(readings: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[PhotoBatch]:
        yield PhotoBatch(readings, world.photo_lat, world.photo_lon, world.heading_deg)

    alone = measure(world.photos(), world.bank, world.lat, world.lon)
    both = measure(photos([(wrong, narrow * 3), (world.query, world.width)]), world.bank, world.lat, world.lon)
    np.testing.assert_array_equal(alone.away_m, both.away_m)
    np.testing.assert_array_equal(alone.heading_error_deg, both.heading_error_deg)
    # Two equal readings are one: no place is counted twice.
    twice = measure(photos([(world.query, world.width)] * 2), world.bank, world.lat, world.lon, k=(1, 3))
    once = measure(photos([(world.query, world.width)]), world.bank, world.lat, world.lon, k=(1, 3))
    np.testing.assert_array_equal(once.rank, twice.rank)


def test_nothing_to_find_and_nobody_asking() -> None:
    world = World()
    empty = StripBank.pack(world.strips[:0], dtype="fp32")
    metrics = measure(world.photos(), empty, np.zeros(0), np.zeros(0)).metrics()
    assert metrics["recall_at_10"] == 0 and metrics["median_error_m"] is None
    assert metrics["photos_with_no_place_in_range"] == PHOTOS
    assert measure([], world.bank, world.lat, world.lon).metrics()["photos"] == 0
    table(metrics)
    with pytest.raises(ValueError, match="lat: expected 150 values"):
        measure([], world.bank, world.lat[:3], world.lon)
    with pytest.raises(ValueError, match="k: expected values from 1"):
        measure([], world.bank, world.lat, world.lon, k=())


MEMORY = """
import resource
import subprocess
import sys

import numpy as np
import torch
from geoloc_fast import StripBank
from geoloc_fast.evaluation.protocol import PhotoBatch, measure

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(places):
    bank = StripBank.pack(torch.randn(places, 4, 2, 8), column0_deg=0.0)
    at = np.linspace(0, 1, places)
    strips = torch.randn(50, 4, 2, 3)
    batch = PhotoBatch([(strips, torch.full((50,), 3))], np.zeros(50), np.zeros(50), np.zeros(50))
    measure((batch for _ in range(80)), bank, at, at)

run(1000)
before = peak()
run(40000)
print(peak() - before)
"""


def test_memory_does_not_grow_with_photos_times_places() -> None:
    """4,000 photos against 40,000 places: their scores alone would be 640 MB; the bank and what it is packed from is
    a twentieth of that."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150


def test_a_photo_without_a_position_is_at_its_own_place() -> None:
    world = World()
    unknown = np.arange(PHOTOS) % 2 == 0
    world.photo_lat[unknown] = world.photo_lon[unknown] = np.nan
    place = np.where(np.arange(PHOTOS) % 4 == 0, world.own, -1)

    def photos() -> Iterator[PhotoBatch]:
        begin = 0
        for batch in world.photos():
            yield batch._replace(place=place[begin : begin + len(batch.lat)])
            begin += len(batch.lat)

    found = measure(photos(), world.bank, world.lat, world.lon)
    plain = measure(world.photos(), world.bank, world.lat, world.lon)
    here = np.arange(PHOTOS) % 4 == 0
    for name in ("rank", "away_m", "reachable"):
        assert np.array_equal(getattr(found, name)[~here], getattr(plain, name)[~here])
    assert found.reachable[here].all() and not plain.reachable[here].any() and np.isinf(plain.rank[here]).all()
    score = azimuth_match(world.query, world.strips, query_width=world.width).score
    order = score.argsort(dim=1, descending=True, stable=True).numpy()
    rank = (order == world.own[:, None]).argmax(1)
    assert np.array_equal(np.where(rank < 10, rank, np.inf)[here], np.where(found.rank < 10, found.rank, np.inf)[here])
    assert np.array_equal(found.away_m[here] == 0, rank[here] == 0) and np.isinf(found.away_m[here & (rank > 0)]).all()


def test_groups_are_listed_by_their_numbers() -> None:
    labels = np.array(["up to 120°", "up to 70°", "up to 90°", "wider", "unknown"])
    nothing = np.zeros(5)
    found = Measured((1,), None, 25.0, 5, nothing, nothing, nothing, np.ones(5, bool), {"field of view": labels})
    by = found.metrics()["by"]["field of view"]
    assert list(by) == ["unknown", "up to 70°", "up to 90°", "up to 120°", "wider"]
    assert all(figures["photos"] == 1 for figures in by.values())
