"""docs/reference/conventions.md, end to end: what is painted at a heading comes out at that heading."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geoloc_fast
from geoloc_fast.testing import arrow_image, random_strips

COLUMNS = 16


def to_strip(images: torch.Tensor, columns: int) -> torch.Tensor:
    """A stand-in for an encoder: means over cells, four rows high."""
    return torch.nn.functional.adaptive_avg_pool2d(images, (4, columns))


def photo_of_the_arrow(width: int, image_columns: int = 512) -> torch.Tensor:
    """What a camera aimed at the arrow sees in `width` strip columns; column j samples the left edge of its bin."""
    columns = image_columns * width // COLUMNS
    away_deg = (torch.arange(columns) - columns / 2) * 360 / image_columns
    light = torch.exp(-0.5 * (away_deg / 20.0) ** 2)
    return to_strip(light.expand(1, 3, 128, columns), width)


@pytest.mark.parametrize("column0_deg", [180.0, 0.0, 315.0, 77.0])
@pytest.mark.parametrize("width", [1, 3, 5, 8, 16])
def test_an_arrow_comes_out_at_its_heading(column0_deg: float, width: int) -> None:
    query = photo_of_the_arrow(width)
    errors = []
    for step in range(64):  # four headings to a bin, even about its middle, none where two shifts tie
        truth = (column0_deg + 360 * (step + 0.5) / 64) % 360
        polar = geoloc_fast.polar_resample(arrow_image(truth, 256), (128, 512), column0_deg=column0_deg)
        match = geoloc_fast.azimuth_match(query, to_strip(polar, COLUMNS))
        heading = geoloc_fast.shift_to_heading(match.shift, width, COLUMNS, column0_deg=column0_deg)
        errors.append((float(heading) - truth + 180) % 360 - 180)
    assert abs(sum(errors) / len(errors)) < 1.0
    assert max(map(abs, errors)) <= 360 / COLUMNS / 2 + 1.0


def test_the_arrow_in_the_bank_says_the_same() -> None:
    truths = torch.arange(0, 360, 22.5)
    images = torch.cat([arrow_image(float(truth) + 11.25, 128) for truth in truths])
    strips = to_strip(geoloc_fast.polar_resample(images, column0_deg=315.0), COLUMNS)
    bank = geoloc_fast.StripBank.pack(strips, column0_deg=315.0)
    found = geoloc_fast.strip_score(photo_of_the_arrow(5), bank, torch.arange(16)[None])
    heading = geoloc_fast.shift_to_heading(found.shift[0], 5, COLUMNS, column0_deg=bank.column0_deg)
    error = (heading - truths - 11.25 + 180) % 360 - 180
    assert abs(float(error.mean())) < 1.0
    assert float(error.abs().max()) <= 12.25


@pytest.mark.parametrize(
    ("column0_deg", "column", "expected"),
    [(180, 0, "S"), (180, 8, "N"), (180, 12, "E"), (0, 0, "N"), (0, 4, "E"), (315, 2, "N")],
)
def test_which_way_a_column_looks(column0_deg: float, column: int, expected: str) -> None:
    images = torch.zeros(1, 1, 64, 64)
    side = {"N": (0, 32), "E": (32, 63), "S": (63, 32), "W": (32, 0)}[expected]
    images[0, 0, max(side[0] - 8, 0) : side[0] + 8, max(side[1] - 8, 0) : side[1] + 8] = 1
    polar = geoloc_fast.polar_resample(images, (32, COLUMNS), column0_deg=column0_deg)
    assert int(polar[0, 0].sum(0).argmax()) == column


def test_what_shift_3_means() -> None:
    strip = random_strips(1, 2, 3, COLUMNS)
    query = strip[..., 3:8]
    match = geoloc_fast.azimuth_match(query, strip)
    assert int(match.shift) == 3
    assert float(match.score) == pytest.approx(1.0, abs=1e-6)
    heading = geoloc_fast.shift_to_heading(match.shift, 5, COLUMNS, column0_deg=180.0)
    assert float(heading) == pytest.approx((180 + 22.5 * 5.5) % 360)


def test_a_window_runs_through_the_seam() -> None:
    strip = random_strips(1, 2, 3, COLUMNS)
    query = torch.cat([strip[..., 14:], strip[..., :3]], 3)
    assert int(geoloc_fast.azimuth_match(query, strip).shift) == 14


@given(
    st.floats(-1e4, 1e4), st.integers(1, 64), st.floats(-720, 720, allow_nan=False), st.integers(1, 64)
)  # fmt: skip
def test_headings_are_in_range(shift: float, width: int, column0_deg: float, columns: int) -> None:
    heading = float(geoloc_fast.shift_to_heading(shift, width, columns, column0_deg=column0_deg))
    assert 0 <= heading < 360
    expected = column0_deg + 360 * (shift + width / 2) / columns
    assert math.cos(math.radians(heading - expected)) == pytest.approx(1, abs=1e-9)


def test_shift_to_heading_takes_batches_and_refuses_nonsense() -> None:
    shift = torch.tensor([[0, 1], [2, 3]])
    width = torch.tensor([[4], [5]])
    heading = geoloc_fast.shift_to_heading(shift, width, 16, column0_deg=0.0)
    assert heading.tolist() == [[45.0, 67.5], [101.25, 123.75]]
    with pytest.raises(ValueError, match="column0_deg: expected a finite number"):
        geoloc_fast.shift_to_heading(shift, 1, 16, column0_deg=math.nan)
    with pytest.raises(ValueError, match="columns: expected an integer at least 1, got 0"):
        geoloc_fast.shift_to_heading(shift, 1, 0, column0_deg=0.0)
