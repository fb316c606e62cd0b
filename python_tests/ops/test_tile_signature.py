"""`tile_signature`: reference against loops, counted form against reference, and what a turn does."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geoloc_fast import TileSignature, azimuth_match, shift_to_heading, tile_signature
from geoloc_fast.ops import tile_signature as op
from geoloc_fast.testing import TOLERANCE, assert_close, force_backend, observe_calls

PARTS = TileSignature._fields


def tiles(count: int, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Smooth noise with edges, uint8: what a photo from above is like."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, rows // 16 + 1, cols // 16 + 1)))
    smooth = torch.nn.functional.interpolate(coarse, (rows, cols), mode="bilinear")
    blocks = torch.nn.functional.interpolate(coarse.flip(1), (rows, cols), mode="nearest")
    return (0.6 * smooth + 0.3 * blocks + torch.from_numpy(rng.uniform(0, 25, smooth.shape))).to(torch.uint8)


def by_loops(image: np.ndarray) -> dict[str, np.ndarray]:
    """The docstring, pixel by pixel, of [3, H, W] uint8."""
    rows, cols = image.shape[1] // 2, image.shape[2] // 2
    x = np.zeros((3, rows, cols))
    for r in range(rows):
        for c in range(cols):
            x[:, r, c] = image[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean(axis=(1, 2)) / 255
    colour = np.zeros((3, 32))
    for channel in range(3):
        for value in x[channel].flat:
            for k in range(32):
                colour[channel, k] += max(0.0, 1 - abs(31 * value - k)) / (rows * cols)
    y = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    structure, total = np.zeros(16), 0.0
    for r in range(1, rows - 1):
        for c in range(1, cols - 1):
            east, north = (y[r, c + 1] - y[r, c - 1]) / 2, (y[r - 1, c] - y[r + 1, c]) / 2
            size, p = math.hypot(east, north), 16 * math.degrees(math.atan2(east, north)) / 360
            total += size
            for j in range(16):
                away = (p - (j + 0.5) + 8) % 16 - 8
                structure[j] += size * max(0.0, 1 - abs(away))
    window = np.outer(np.hanning(rows), np.hanning(cols))
    power = np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2
    sums, weights = np.zeros(32), np.zeros(32)
    for r, fr in enumerate(np.fft.fftfreq(rows)):
        for c, fc in enumerate(np.fft.fftfreq(cols)):
            for k in range(32):
                weight = max(0.0, 1 - abs(64 * math.hypot(fr, fc) - (k + 1)))
                sums[k] += weight * power[r, c]
                weights[k] += weight
    texture = np.log(sums / weights + rows * cols * (1e-3 / 255) ** 2)
    return {"colour": colour.ravel(), "structure": structure / total, "texture": texture - texture.mean()}


def test_reference_is_the_formula() -> None:
    image = tiles(1, 129, 130)
    got = tile_signature(image.double() / 255)
    for name, expected in by_loops(image[0].numpy()).items():
        torch.testing.assert_close(getattr(got, name)[0], torch.from_numpy(expected), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("rows", "cols"), [(128, 128), (131, 200), (224, 129)])
def test_counted_form_is_the_reference(rows: int, cols: int) -> None:
    images = tiles(2, rows, cols)
    with force_backend("reference"):
        exact = tile_signature(images.double() / 255)
    for given in (images, images.contiguous(memory_format=torch.channels_last), images.repeat(1, 1, 1, 2)[..., :cols]):
        with observe_calls() as calls:
            got = tile_signature(given)
        assert calls == [("tile_signature", "cpu", "")]
        for name in PARTS:
            assert_close(getattr(got, name), getattr(exact, name), "gradient" if name == "texture" else "float32")
    with force_backend("reference"), observe_calls() as calls:
        tile_signature(images)
    assert calls == [("tile_signature", "reference", "")]
    for dtype in (torch.float32, torch.bfloat16):
        with observe_calls() as calls:
            tile_signature((images / 255).to(dtype))
        assert calls == [("tile_signature", "reference", "")]


def test_what_a_quarter_turn_does() -> None:
    images = tiles(4, 192, 192)
    before = tile_signature(images)
    for quarters in (1, 2, 3):
        after = tile_signature(torch.rot90(images, -quarters, dims=(2, 3)))  # clockwise
        assert_close(after.colour, before.colour.double(), "float32")
        assert_close(after.texture, before.texture.double(), "gradient")
        assert_close(after.structure, before.structure.roll(4 * quarters, dims=1).double(), "float32")


def test_azimuth_match_finds_the_turn() -> None:
    """The rose of a turned tile, as a strip: the best shift says by how much, also between columns' width."""
    big = tiles(3, 300, 300, seed=3).double()
    side = torch.arange(144, dtype=torch.float64) - 71.5
    strips = []
    for turn_deg in (0.0, 67.5, 135.0, 292.5):
        turn = math.radians(turn_deg)
        # Where a pixel of the turned tile lies in the tile: clockwise on the ground.
        row = math.cos(turn) * side[:, None] - math.sin(turn) * side[None]
        col = math.sin(turn) * side[:, None] + math.cos(turn) * side[None]
        grid = torch.stack([col, row], dim=-1)[None] / 149.5
        turned = torch.nn.functional.grid_sample(big, grid.expand(3, -1, -1, -1), align_corners=True)
        strips.append(tile_signature(turned.round().clamp(0, 255).to(torch.uint8)).strip())
    # The mean is taken away: edges of all directions are in every tile.
    centred = [strip - strip.mean(dim=3, keepdim=True) for strip in strips]
    for strip, turn_deg in zip(centred[1:], (67.5, 135.0, 292.5), strict=True):
        match = azimuth_match(centred[0], strip)
        found = shift_to_heading(match.shift.diagonal(), 16, 16, column0_deg=0.0) - 180.0
        off = (found - turn_deg + 180) % 360 - 180
        assert off.abs().median() < 23 and (match.score.diagonal() > 0.5).all()


def test_tiles_without_content() -> None:
    flat = torch.full((2, 3, 128, 128), 77, dtype=torch.uint8)
    for images in (flat, flat / 255):
        got = tile_signature(images)
        assert (got.structure == 0).all() and torch.isfinite(got.texture).all() and got.texture.abs().max() < 1e-3
        torch.testing.assert_close(got.colour.view(2, 3, 32).sum(2), torch.ones(2, 3))
    for dtype in (torch.uint8, torch.float32):
        empty = tile_signature(torch.empty(0, 3, 128, 128, dtype=dtype))
        assert [part.shape[0] for part in empty] == [0, 0, 0]


def test_nan_stays_in_its_tile() -> None:
    images = tiles(3, 128, 128) / 255
    spoiled = images.clone()
    spoiled[1, 0, 5, 5] = math.nan
    got, clean = tile_signature(spoiled), tile_signature(images)
    for name in PARTS:
        torch.testing.assert_close(getattr(got, name)[[0, 2]], getattr(clean, name)[[0, 2]])


def test_more_tiles_than_a_pass_takes() -> None:
    images = tiles(op._AT_ONCE + 3, 128, 128)
    together = tile_signature(images)
    alone = tile_signature(images[-1:])
    for name in PARTS:
        torch.testing.assert_close(getattr(together, name)[-1:], getattr(alone, name))


def test_as_a_torch_operator() -> None:
    images = tiles(2, 128, 160)
    torch.library.opcheck(op.forward.overload, (images,), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(op.forward.overload, ((images / 255),), test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(lambda x: tile_signature(x).structure * 2, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), tile_signature(images).structure * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tile_signature(images)
    for name in PARTS:
        assert torch.equal(getattr(inside, name), getattr(tile_signature(images), name))
    assert not tile_signature((images / 255).requires_grad_()).colour.requires_grad


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 128, 128)), r"images: expected a tensor \[B, 3, H, W\]"),
        (torch.zeros(3, 128, 128), "expected shape"),
        (torch.zeros(1, 3, 128, 128, dtype=torch.int32), "expected dtype uint8"),
        (torch.zeros(1, 4, 128, 128), "at least 128 x 128, got a torch.float32 tensor of shape"),
        (torch.zeros(1, 3, 128, 127), "at least 128 x 128"),
    ],
)
def test_messages(images: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tile_signature(images)  # type: ignore[arg-type]


def test_the_tolerances_are_the_projects() -> None:
    assert {"float32", "gradient"} <= set(TOLERANCE)
