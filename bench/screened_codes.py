"""What codes of few bits beside a bank would save, on the strips of an index and the photos of its region.

    python bench/screened_codes.py INDEX REGION [--model city] [--crowd 0] [--bits 4 5 6] [--project 24,3 32,4]
        [--faiss SQ4 PQ256x8] [--photos 60]

Exact search: the share of strips that codes cannot exclude. Channels are rotated (principal axes, then at random, so
that they are alike); a code has `bits` a value, a factor and a residual norm a column. With x' a decoded strip and e
the column norms of what it lacks, a window scores at most (<q, x'> + |e over the window|) / |window| for a query of
norm 1. A strip survives if that reaches the k-th best score of the 64 best by code. A bank interleaves sixteen strips,
so a survivor costs the reading of its block.

Approximate search (`--project channels,bits`): one linear map of the channels for all columns, chosen by what strips
and photos have in common, and codes of its values. It is learned from the strips and from every other photo; the
other photos say how many of the best by code have to be scored exactly until 99 of 100 of the true ten are among them,
and the recall at that number with the lower end of its interval (Wilson, 95 %).

`--crowd` adds sums of two real strips turned at random: a crowd that is like places in statistics.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.evaluation.evaluate import contents
from geoloc_fast.images.decode import decode_image
from geoloc_fast.index import PlaceIndex
from geoloc_fast.models.contract import Photo, load_model

K, FIRST = 10, 64


def turned(strips: Tensor, shift: Tensor) -> Tensor:
    columns = (torch.arange(strips.shape[2]) + shift[:, None]) % strips.shape[2]
    return strips.gather(2, columns[:, None].expand_as(strips))


def crowd(strips: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        rows = torch.randint(len(strips), (count,), generator=generator)
        parts.append(turned(strips[rows], torch.randint(strips.shape[2], (count,), generator=generator)))
    share = 0.25 + 0.5 * torch.rand(count, 1, 1, generator=generator)
    return torch.cat([strips, share * parts[0] + (1 - share) * parts[1]])


def mixed_axes(axes: Tensor) -> Tensor:
    """The same space, by axes that are alike."""
    generator = torch.Generator().manual_seed(1)
    return axes @ torch.linalg.qr(torch.randn(axes.shape[1], axes.shape[1], generator=generator))[0]


def coded(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Decoded values [N, K, W] and what each column lacks [N, W]; the best of fifteen steps for each column."""
    top = (2**bits - 1) / 2
    widest = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
    best, lacks = torch.zeros_like(values), values.square().sum(1, keepdim=True)
    for share in torch.linspace(0.3, 1.0, 15):
        level = (values / (share * widest) + top).round().clamp(0, 2 * top) - top
        decoded = level * (level * values).sum(1, keepdim=True) / level.square().sum(1, keepdim=True)
        error = (values - decoded).square().sum(1, keepdim=True)
        best, lacks = torch.where(error < lacks, decoded, best), torch.minimum(error, lacks)
    return best, lacks[:, 0].sqrt()


def over_windows(columns: Tensor, width: int) -> Tensor:
    """[N, W] -> [N, W]: sums over the window at each shift."""
    return torch.stack([torch.roll(columns, -x, 1) for x in range(width)]).sum(0)


def correlation(query: Tensor, strips: Tensor) -> Tensor:
    """[K, w], [N, K, W] -> [N, W]"""
    products = torch.einsum("kx,nkw->xnw", query, strips)
    return torch.stack([torch.roll(product, -x, 1) for x, product in enumerate(products)]).sum(0)


class Bank:
    """Strips [N, K, W] of norm 1 and queries [K, w] of norm 1, with the exact scores."""

    def __init__(self, name: str, strips: Tensor, queries: Sequence[Tensor]) -> None:
        self.name, self.strips, self.queries = name, strips, queries
        self.nbytes = 2 * strips.shape[2] * (strips.shape[1] + 2)
        energy = strips.square().sum(1)
        self.norms = {width: over_windows(energy, width).sqrt() for width in {query.shape[1] for query in queries}}
        self.exact = [self.scores(query, strips) for query in queries]

    def scores(self, query: Tensor, strips: Tensor, slack: Tensor | float = 0.0) -> Tensor:
        return ((correlation(query, strips) + slack) / self.norms[query.shape[1]]).amax(1)

    def survivors(self, bits: int) -> str:
        axes = mixed_axes(torch.linalg.eigh(torch.einsum("nkw,njw->kj", self.strips, self.strips))[1])
        decoded, lacks = coded(torch.einsum("nkw,kj->njw", self.strips, axes), bits)
        shares, block_shares, blocks = [], [], len(self.strips) // 16
        for query, exact in zip(self.queries, self.exact, strict=True):
            about = axes.T @ query
            first = self.scores(about, decoded).topk(min(FIRST, len(exact))).indices
            slack = over_windows(lacks.square(), query.shape[1]).sqrt()
            survives = self.scores(about, decoded, slack) >= exact[first].topk(K).values[-1]
            assert bool(survives[exact.topk(K).indices].all())
            shares.append(float(survives.float().mean()))
            block_shares.append(float(survives[: 16 * blocks].view(-1, 16).any(1).float().mean()))
        share, block_share = sum(shares) / len(shares), sum(block_shares) / len(block_shares)
        values, columns = self.strips.shape[1:]
        codes = (values * columns * bits / 8 + 5 * columns) / self.nbytes
        return (
            f"{bits} bits: {100 * share:.2f} % survive (worst {100 * max(shares):.1f}), "
            f"in {100 * block_share:.1f} % of the blocks; codes {100 * codes:.0f} % of the bank, "
            f"codes and blocks {100 * (codes + block_share):.0f} %"
        )

    def projected(self, channels: int, bits: int) -> str:
        columns = self.strips.shape[2]
        seen = torch.cat(list(self.queries[::2]), 1)
        ours = root(torch.einsum("nkw,njw->kj", self.strips, self.strips) / len(self.strips) / columns)
        theirs = root(seen @ seen.T / seen.shape[1])
        left, weight, right = torch.linalg.svd(theirs @ ours)
        turn = mixed_axes(torch.eye(channels, dtype=left.dtype))
        half = weight[:channels].sqrt()
        for_query = torch.linalg.pinv(theirs) @ left[:, :channels] * half @ turn
        for_strip = torch.linalg.pinv(ours) @ right[:channels].T * half @ turn
        decoded = coded(torch.einsum("nkw,kj->njw", self.strips, for_strip), bits)[0]
        about = [self.scores(for_query.T @ query, decoded) for query in self.queries[1::2]]
        codes = channels * columns * bits / 8 + 3 * columns
        return f"{channels} channels, {bits} bits: {self.rescored(about, codes)}"

    def peer(self, recipe: str) -> str:
        """Codes of FAISS, decoded, and ranked by the cosine of the best window like ours."""
        import faiss

        flat = self.strips.flatten(1).numpy()
        index = faiss.index_factory(flat.shape[1], recipe)
        index.train(flat)
        decoded = torch.from_numpy(index.sa_decode(index.sa_encode(flat))).view(self.strips.shape)
        about = [self.scores(query, decoded) for query in self.queries[1::2]]
        return f"FAISS {recipe}: {self.rescored(about, index.sa_code_size() + self.strips.shape[2])}"

    def rescored(self, about: Sequence[Tensor], code_bytes: float) -> str:
        """`about`: scores by code for every other query."""
        ranks = []
        for score, exact in zip(about, self.exact[1::2], strict=True):
            place = torch.empty(len(score), dtype=torch.long)
            place[score.argsort(descending=True)] = torch.arange(len(score))
            ranks.append(place[exact.topk(K).indices] + 1)
        every = torch.cat(ranks)
        needed = int(every.sort().values[-(-99 * len(every) // 100) - 1])
        kept = int((every <= needed).sum())
        codes = 100 * code_bytes / self.nbytes
        return (
            f"codes {codes:.1f} % of the bank; {needed} scored again keep {kept} of {len(every)} (at least "
            f"{100 * wilson(kept, len(every)):.1f} %), {codes + 100 * needed / len(self.strips):.1f} % with them; "
            f"by code alone {100 * float((every <= K).float().mean()):.1f} %"
        )


def root(covariance: Tensor) -> Tensor:
    value, axis = torch.linalg.eigh(covariance)
    return (axis * value.clamp(min=1e-12).sqrt()) @ axis.T


def wilson(hits: int, count: int) -> float:
    """The lower end of the 95 % interval of a share."""
    z, share = 1.96, hits / count
    spread = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (share + z**2 / (2 * count) - spread) / (1 + z**2 / count)


def banks(index_path: Path, region: Path, name: str | None, photos: int, added: int) -> list[Bank]:
    manifest = Manifest.load(region)
    rows = manifest.photos.to_pylist()
    rows = rows[:: max(1, len(rows) // photos)][:photos]
    with PlaceIndex.open(index_path) as index:
        model = load_model(name)
        index.check_model(model.fingerprint)
        assumed = model.query_input.assumed_fov_deg
        images = [decode_image(content, "photo") for content in contents(manifest, rows)]
        shown = [Photo(image, row["fov_deg"] or assumed) for image, row in zip(images, rows, strict=True)]
        found = []
        for layer in index.layers:
            strips = torch.as_tensor(index.strips(layer.name, index.ids()).strips).float().flatten(1, 2)
            strips = crowd(strips / strips.flatten(1).norm(dim=1)[:, None, None], added)
            strips = strips / strips.flatten(1).norm(dim=1)[:, None, None]
            queries = []
            for photo in shown:
                query = model.encode_queries([photo])[layer.name]
                width = query.strips.shape[3] if query.width is None else int(query.width[0])
                one = query.strips[0, ..., :width].float().flatten(0, 1)
                queries.append(one / one.norm())
            found.append(Bank(layer.name, strips, queries))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("region", type=Path)
    parser.add_argument("--model", help="the index's: a name or a file")
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--crowd", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 5, 6])
    parser.add_argument("--project", nargs="*", default=["16,2", "24,2", "24,3", "24,4", "32,4"])
    parser.add_argument("--faiss", nargs="*", default=[])
    arguments = parser.parse_args()
    with torch.inference_mode():
        for bank in banks(arguments.index, arguments.region, arguments.model, arguments.photos, arguments.crowd):
            print(
                f"{bank.name}: {len(bank.strips)} strips of {tuple(bank.strips.shape[1:])}, {len(bank.queries)} photos"
            )
            for bits in arguments.bits:
                print("  " + bank.survivors(bits), flush=True)
            for choice in arguments.project:
                print("  " + bank.projected(*map(int, choice.split(","))), flush=True)
            for recipe in arguments.faiss:
                print("  " + bank.peer(recipe), flush=True)


if __name__ == "__main__":
    main()
