"""Small calls of every operator on every backend, for compute-sanitizer to watch: python gpu_small.py cuda|cpu"""

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
    for columns, query_columns in ((16, 5), (64, 13), (7, 7), (1, 1)):
        query = random_strips(5, 3, 2, query_columns).to(device).requires_grad_()
        strips = random_strips(37, 3, 2, columns, seed=1).to(device).requires_grad_()
        width = torch.arange(5, device=device) % query_columns + 1
        for select in ("correlation", "cosine", "gumbel"):
            azimuth_match(query, strips, select=select, query_width=width).score.sum().backward()
            crop, score, _ = azimuth_crop(query, strips[:5], select=select, query_width=width)
            (crop.sum() + score.sum()).backward()
        for dtype in ("fp32", "bf16"):
            bank = StripBank.pack(strips.detach(), dtype=dtype)
            found = strip_topk(query, bank, 3, query_width=width, alive=torch.arange(37, device=device) % 2 == 0)
            strip_score(query, bank, found.index)
            bank.unpack()


def main() -> int:
    device = torch.device(sys.argv[1])
    ran = 0
    for backend in ("cuda", "triton") if device.type == "cuda" else ("cpu",):
        try:
            with force_backend(backend):
                calls(device)
            ran += 1
        except RuntimeError as error:
            if "cannot run" not in str(error):
                raise
            print(f"{backend}: {error}")
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} backends ran")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
