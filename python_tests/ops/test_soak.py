"""Ten thousand calls of every operator leave memory where it was."""

from pathlib import Path

import pytest
import torch

import geoloc_fast
from geoloc_fast.testing import random_strips

PAGE = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to read the resident size")
def test_memory_stays_where_it_was() -> None:
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    query = random_strips(3, 4, 2, 5).requires_grad_()
    strips = random_strips(8, 4, 2, 16, seed=1).requires_grad_()
    bank = geoloc_fast.StripBank.pack(strips)

    def once() -> None:
        geoloc_fast.polar_resample(images, (8, 16), mean=(1, 2, 3))
        leaf = images.float().requires_grad_()
        geoloc_fast.polar_resample(leaf, (8, 16)).sum().backward()
        geoloc_fast.azimuth_match(query, strips, select="gumbel", scale=14.0).score.sum().backward()
        geoloc_fast.azimuth_crop(query, strips[:3]).score.sum().backward()
        found = geoloc_fast.strip_topk(query, bank, 4)
        geoloc_fast.strip_score(query, bank, found.index)
        bank.unpack(found.index[0])

    for _ in range(500):
        once()
    before = resident_bytes()
    for _ in range(10_000):
        once()
    assert resident_bytes() - before < 0.01 * before + (1 << 20)
