"""Small calls of every operator on the native kernels, for compute-sanitizer to watch: python gpu_small.py cuda|cpu

Few, and not by Triton: under a tool every call takes ten to fifty times as long, and Triton would compile there.
"""

from __future__ import annotations

import sys

import torch

from geoloc_fast import StripBank, azimuth_crop, azimuth_match, polar_resample, strip_score, strip_topk
from geoloc_fast.testing import force_backend, random_strips


def calls(device: torch.device) -> None:
    images = torch.randint(0, 256, (2, 3, 33, 35), dtype=torch.uint8).to(device)
    polar_resample(images, (9, 40), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), dtype=torch.bfloat16)
    leaf = images.float().requires_grad_()
    polar_resample(leaf, (9, 40)).sum().backward()
    for columns, query_columns, select in ((16, 5, "gumbel"), (64, 13, "cosine"), (1, 1, "correlation")):
        query = random_strips(5, 3, 2, query_columns).to(device).requires_grad_()
        strips = random_strips(37, 3, 2, columns, seed=1).to(device).requires_grad_()
        width = torch.arange(5, device=device) % query_columns + 1
        azimuth_match(query, strips, select=select, query_width=width).score.sum().backward()
        crop, score, _ = azimuth_crop(query, strips[:5], select=select, query_width=width)
        (crop.sum() + score.sum()).backward()
        search = "correlation" if select == "gumbel" else select
        alive = torch.arange(37, device=device) % 2 == 0
        for dtype in ("fp32", "bf16"):
            bank = StripBank.pack(strips.detach(), dtype=dtype)
            found = strip_topk(query, bank, 3, query_width=width, select=search, alive=alive)
            strip_score(query, bank, found.index, query_width=width, select=search)
            bank.unpack()


def main() -> int:
    device = torch.device(sys.argv[1])
    with force_backend(device.type):
        calls(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("every call ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
