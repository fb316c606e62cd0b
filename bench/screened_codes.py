"""What codes of few bits beside a bank would save an exact search: the share of strips that they cannot exclude.

    python bench/screened_codes.py [--cities 6] [--places 500] [--crowd 0] [--bits 4 5]

Strips and photos of the model that ships, in synthetic cities. Codes: channels rotated (principal axes, then at
random, so that they are alike), `bits` a value, a factor and a residual norm a column. With x' a decoded strip and e
the column norms of what it lacks, a window scores at most (<q, x'> + |e over the window|) / |window| for a query of
norm 1. A strip survives if that reaches the k-th best score of the 64 best by code. A bank interleaves sixteen strips,
so a survivor costs the reading of its block. `--crowd` adds sums of two real strips turned at random.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from geoloc_fast import polar_resample
from geoloc_fast.city import make_city
from geoloc_fast.models import IMAGE_MEAN, IMAGE_STD, Geolocalizer
from geoloc_fast.models.contract import Photo, shipped_model

K, FIRST, PHOTOS = 10, 64, 60
CACHE = Path(__file__).parent / "results" / "cache"


def city_strips(model: Geolocalizer, seed: int, places: int) -> tuple[Tensor, Tensor, Tensor]:
    """Strips of places [N, C, H, W], of photos [B, C, H, Wq], and their widths [B]; kept on disk, they take minutes."""
    name = hashlib.sha256(f"{model.fingerprint} {seed} {places}".encode()).hexdigest()[:16]
    path = CACHE / f"{name}.pt"
    if path.exists():
        strips, query, width = torch.load(path)
        return strips, query, width
    size = model.config.image_size
    city = make_city(seed, places=places, panorama_size=size)
    strips = []
    for begin in range(0, places, 32):
        satellite, panorama = (
            torch.from_numpy(images[begin : begin + 32]).permute(0, 3, 1, 2)
            for images in (city.satellite, city.panorama)
        )
        column0_deg = model.config.column0_deg
        polar = polar_resample(satellite, size, column0_deg=column0_deg, mean=IMAGE_MEAN, std=IMAGE_STD)
        with torch.inference_mode():
            strips.append(model.encode_place(polar, panorama))
    (query,) = model.encode_queries([Photo(image) for image in city.photo[:PHOTOS]]).values()
    width = torch.full((len(query.strips),), query.strips.shape[3]) if query.width is None else query.width
    found = torch.cat(strips).clone(), query.strips, width
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def turned(strips: Tensor, shift: Tensor) -> Tensor:
    columns = (torch.arange(strips.shape[3]) + shift[:, None]) % strips.shape[3]
    return strips.gather(3, columns[:, None, None].expand_as(strips))


def crowd(strips: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        rows = torch.randint(len(strips), (count,), generator=generator)
        parts.append(turned(strips[rows], torch.randint(strips.shape[3], (count,), generator=generator)))
    share = 0.25 + 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.cat([strips, share * parts[0] + (1 - share) * parts[1]])


def coded(strips: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Decoded strips [N, K, W] and what each column lacks [N, W]; the best of fifteen steps for each column."""
    axes = torch.linalg.eigh(torch.einsum("nkw,njw->kj", strips, strips))[1]
    generator = torch.Generator().manual_seed(1)
    axes = axes @ torch.linalg.qr(torch.randn(axes.shape, generator=generator))[0]
    values, top = torch.einsum("nkw,kj->njw", strips, axes), (2**bits - 1) / 2
    widest = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
    best, lacks = torch.zeros_like(values), values.square().sum(1, keepdim=True)
    for share in torch.linspace(0.3, 1.0, 15):
        level = (values / (share * widest) + top).round().clamp(0, 2 * top) - top
        decoded = level * (level * values).sum(1, keepdim=True) / level.square().sum(1, keepdim=True)
        error = (values - decoded).square().sum(1, keepdim=True)
        best, lacks = torch.where(error < lacks, decoded, best), torch.minimum(error, lacks)
    return torch.einsum("njw,kj->nkw", best, axes), lacks[:, 0].sqrt()


def over_windows(columns: Tensor, width: int) -> Tensor:
    """[N, W] -> [N, W]: sums over the window at each shift."""
    return torch.stack([torch.roll(columns, -x, 1) for x in range(width)]).sum(0)


def correlation(query: Tensor, strips: Tensor) -> Tensor:
    """[K, w], [N, K, W] -> [N, W]"""
    products = torch.einsum("kx,nkw->xnw", query, strips)
    return torch.stack([torch.roll(product, -x, 1) for x, product in enumerate(products)]).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cities", type=int, default=6)
    parser.add_argument("--places", type=int, default=500)
    parser.add_argument("--crowd", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 5])
    arguments = parser.parse_args()
    model = Geolocalizer.load(shipped_model())
    made = [city_strips(model, 31001 + n, arguments.places) for n in range(arguments.cities)]
    stored = crowd(torch.cat([strips for strips, _, _ in made]).float(), arguments.crowd).flatten(1, 2)
    stored = stored / stored.flatten(1).norm(dim=1)[:, None, None]
    photos = [photo[..., :width] for _, strips, widths in made for photo, width in zip(strips, widths, strict=True)]
    values, columns = stored.shape[1:]
    bank_bytes, blocks = 2 * columns * (values + 2), len(stored) // 16
    for bits in arguments.bits:
        decoded, lacks = coded(stored, bits)
        shares, block_shares = [], []
        for photo in photos[:: max(1, len(photos) // PHOTOS)]:
            query = photo.flatten(0, 1).float() / photo.float().norm()
            width = query.shape[1]
            norm = over_windows(stored.square().sum(1), width).sqrt()
            exact = (correlation(query, stored) / norm).amax(1)
            about = correlation(query, decoded)
            first = (about / norm).amax(1).topk(min(FIRST, len(stored))).indices
            least = exact[first].topk(K).values[-1]
            survives = ((about + over_windows(lacks.square(), width).sqrt()) / norm).amax(1) >= least
            assert bool(survives[exact.topk(K).indices].all())
            shares.append(float(survives.float().mean()))
            block_shares.append(float(survives[: 16 * blocks].view(-1, 16).any(1).float().mean()))
        share, block_share = sum(shares) / len(shares), sum(block_shares) / len(block_shares)
        code_bytes = values * columns * bits / 8 + 5 * columns
        code_share = code_bytes / bank_bytes
        print(
            f"{len(stored)} strips, {len(shares)} photos, {bits} bits: {100 * share:.2f} % survive (worst "
            f"{100 * max(shares):.1f}), in {100 * block_share:.1f} % of the blocks; codes {100 * code_share:.0f} % "
            f"of the bank, codes and blocks {100 * (code_share + block_share):.0f} %"
        )


if __name__ == "__main__":
    main()
