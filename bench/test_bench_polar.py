"""polar_resample against what a user could write with OpenCV or torch, on the same images with the same threads.

Peers, each with everything that does not depend on the images made beforehand:

- cv2.remap: fixed-point maps (cv2.convertMaps), then normalisation to float CHW in torch; and, the best that was found,
  images shared out over Python threads with OpenCV's own off, normalised by a table (cv2.LUT) a channel;
- cv2.warpPolar: without maps, then transposed, turned and normalised the same way;
- grid_sample: images to float, torch.nn.functional.grid_sample with a ready grid, normalisation.

The error is in grey levels, against float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geoloc_fast import polar_resample
from geoloc_fast.testing import force_backend, observe_calls

BATCH, SIDE, ROWS, COLS = 32, 512, 128, 512
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_MEAN, _STD = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))


@cache
def images() -> Tensor:
    """Batch of RGB photos, channels_last: noise over slow changes, so that neither is all there is."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 3, 16, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear")
    noise = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)
    return (255 * (0.7 * smooth + 0.3 * noise)).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def positions(center: tuple[float, float] = (SIDE / 2, SIDE / 2)) -> tuple[np.ndarray, np.ndarray]:
    """(column, row) of every output pixel, float32: "inner" radii, column 0 at 180 degrees."""
    theta = np.deg2rad(180 + 360 * np.arange(COLS) / COLS)[None]
    radius = (SIDE / 2 * (ROWS - 1 - np.arange(ROWS)) / ROWS)[:, None]
    column, row = center[1] + radius * np.sin(theta), center[0] - radius * np.cos(theta)
    return column.astype(np.float32), row.astype(np.float32)


def normalised(strips: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float CHW."""
    return strips.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).sub_(_MEAN).div_(_STD)


def by_remap() -> Callable[[], Tensor]:
    maps = cv2.convertMaps(*positions(), cv2.CV_16SC2)
    pixels = images().permute(0, 2, 3, 1).numpy()
    out = np.empty((BATCH, ROWS, COLS, 3), np.uint8)

    def run() -> Tensor:
        for image, strip in zip(pixels, out, strict=True):
            cv2.remap(image, *maps, cv2.INTER_LINEAR, dst=strip)
        return normalised(torch.from_numpy(out))

    return run


def by_remap_on_threads() -> Callable[[], Tensor]:
    maps = cv2.convertMaps(*positions(), cv2.CV_16SC2)
    pixels = images().permute(0, 2, 3, 1).numpy()
    tables = [
        ((np.arange(256) - mean) / std).astype(np.float32)[None] for mean, std in zip(MEAN, STD, strict=True)
    ]  # fmt: skip
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    strips = [np.empty((ROWS, COLS, 3), np.uint8) for _ in range(threads)]

    def run() -> Tensor:
        out = np.empty((BATCH, 3, ROWS, COLS), np.float32)

        def share(thread: int) -> None:
            for number in range(thread, BATCH, threads):
                cv2.remap(pixels[number], *maps, cv2.INTER_LINEAR, dst=strips[thread])
                for plane, table, to in zip(cv2.split(strips[thread]), tables, out[number], strict=True):
                    cv2.LUT(plane, table, dst=to)

        list(pool.map(share, range(threads)))
        return torch.from_numpy(out)

    return run


def by_warp_polar() -> Callable[[], Tensor]:
    pixels = images().permute(0, 2, 3, 1).numpy()
    out = np.empty((BATCH, COLS, ROWS, 3), np.uint8)  # rows are angles from east, columns radii from the centre

    def run() -> Tensor:
        for image, strip in zip(pixels, out, strict=True):
            cv2.warpPolar(image, (ROWS, COLS), (SIDE / 2, SIDE / 2), SIDE / 2, cv2.INTER_LINEAR, dst=strip)
        turned = torch.from_numpy(out).roll(-COLS // 4, 1).flip(2).transpose(1, 2)
        return normalised(turned)

    return run


def by_grid_sample() -> Callable[[], Tensor]:
    col, row = (torch.from_numpy(a) for a in positions())
    grid = (2 * torch.stack([col, row], -1) + 1) / SIDE - 1
    grid = grid.expand(BATCH, ROWS, COLS, 2)

    def run() -> Tensor:
        strips = torch.nn.functional.grid_sample(images().float(), grid, align_corners=False)
        return strips.sub_(_MEAN).div_(_STD)

    return run


def ours(dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: polar_resample(images(), (ROWS, COLS), mean=MEAN, std=STD, dtype=dtype)


ENTRIES: dict[str, Callable[[], Callable[[], Tensor]]] = {
    "geoloc_fast": ours,
    "geoloc_fast, bf16 out": lambda: ours(torch.bfloat16),
    "cv2.remap and tables, on threads": by_remap_on_threads,
    "cv2.remap and normalisation": by_remap,
    "cv2.warpPolar and normalisation": by_warp_polar,
    "torch: grid_sample and normalisation": by_grid_sample,
}


@cache
def expected() -> Tensor:
    with force_backend("reference"):
        return polar_resample(images()[:4].double(), (ROWS, COLS))


@pytest.mark.avx2
@pytest.mark.parametrize("entry", ENTRIES)
def test_polar(benchmark: Any, entry: str) -> None:
    cv2.setNumThreads(1 if "threads" in entry else torch.get_num_threads())
    run = ENTRIES[entry]()
    with torch.inference_mode(), observe_calls() as calls:
        error = float((run()[:4].double() * _STD + _MEAN - expected()).abs().max())
        benchmark.group = "polar_resample, uint8 [32, 3, 512, 512] channels_last to normalised float32 128x512"
        benchmark.pedantic(run, rounds=15, warmup_rounds=2)
    benchmark.extra_info.update(entry=entry, max_error=error)
    # Outermost taps of the peers that lie beyond the image, and cv2's tables of 1/32 pixel, cost grey levels.
    assert error < (0.5 if entry == "geoloc_fast" else 1.0 if entry.startswith("geoloc") else 30)
    if entry.startswith("geoloc_fast"):
        assert calls[0][1:] == ("cpu", calls[0][2]) and calls[0][2].endswith("rgb8")
        width = 2 if "bf16" in entry else 4
        read = 3 * math.pi * (SIDE / 2) ** 2  # the disc
        benchmark.extra_info.update(bytes=BATCH * (read + 3 * ROWS * COLS * width), bandwidth="copy")


@pytest.mark.parametrize("entry", ["geoloc_fast", "cv2.remap, maps made on the way"])
def test_polar_centers(benchmark: Any, entry: str) -> None:
    """Every image with a centre of its own, uint8 out: no table serves the whole batch."""
    cv2.setNumThreads(torch.get_num_threads())
    center = SIDE / 2 + 8 * torch.rand(BATCH, 2, generator=torch.Generator().manual_seed(1)).double()
    pixels = images().permute(0, 2, 3, 1).numpy()

    def remap() -> Tensor:
        out = np.empty((BATCH, ROWS, COLS, 3), np.uint8)
        for image, strip, (row, col) in zip(pixels, out, center.tolist(), strict=True):
            cv2.remap(image, *positions((row, col)), cv2.INTER_LINEAR, dst=strip)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    run = remap if entry.startswith("cv2") else lambda: polar_resample(images(), (ROWS, COLS), center=center)
    with force_backend("reference"):
        exact = polar_resample(images()[:4].double(), (ROWS, COLS), center=center[:4])
    error = float((run()[:4].double() - exact).abs().max())
    assert error < (1 if entry == "geoloc_fast" else 30)
    benchmark.group = "polar_resample, uint8 [32, 3, 512, 512] to uint8 128x512, a centre for each image"
    benchmark.extra_info.update(entry=entry, max_error=error)
    benchmark.pedantic(run, rounds=10, warmup_rounds=1)


@pytest.mark.avx2
@pytest.mark.parametrize("entry", ["geoloc_fast", "torch: grid_sample"])
def test_polar_training(benchmark: Any, entry: str) -> None:
    """Forward and backward to float images."""
    some = images()[:8].float().contiguous().requires_grad_()
    weight = torch.rand(8, 3, ROWS, COLS, generator=torch.Generator().manual_seed(1))
    col, row = (torch.from_numpy(a) for a in positions())
    grid = ((2 * torch.stack([col, row], -1) + 1) / SIDE - 1).expand(8, ROWS, COLS, 2)

    def strips(batch: Tensor) -> Tensor:
        if entry == "geoloc_fast":
            return polar_resample(batch, (ROWS, COLS))
        return torch.nn.functional.grid_sample(batch, grid, align_corners=False)

    def run() -> Tensor:
        return torch.autograd.grad((strips(some) * weight).sum(), some)[0]

    with force_backend("reference"):
        wide = some.detach().double().requires_grad_()
        (exact,) = torch.autograd.grad((polar_resample(wide, (ROWS, COLS)) * weight.double()).sum(), wide)
    error = float((run() - exact).abs().max() / exact.abs().max())
    assert error < 1e-2
    benchmark.group = "polar_resample, float32 [8, 3, 512, 512] to 128x512, forward and backward"
    benchmark.extra_info.update(entry=entry, max_error=error)
    benchmark.pedantic(run, rounds=10, warmup_rounds=1)
