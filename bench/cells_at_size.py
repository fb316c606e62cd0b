"""Cells by the million: one search over all codes, in memory and on a disk that holds more than memory does.

    python bench/cells_at_size.py memory --cells 2000000 --dim 512
    python bench/cells_at_size.py build --out big.index --cells 27300000 --dim 512
    python bench/cells_at_size.py search --out big.index

Codes are random: a search reads all of them whatever they say. `memory` takes turns with a sum (torch) over as many
bytes, the limit of a search with one query. `build` adds cells by the million to an index, with ids, keys and
attributes as `build_cell_index` gives them, and goes on where it was stopped. `search` asks one query and 64 at once.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from geoloc_fast import StripBank, strip_topk
from geoloc_fast.geo import s2
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows

MODEL = "0" * 64
K = 10
LEVEL = 16


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def codes(count: int, dim: int, seed: int) -> torch.Tensor:
    """bf16 [count, dim, 1, 1]: one block of random numbers, its rows rolled anew for every use."""
    draw = torch.Generator().manual_seed(seed)
    block = torch.randn(1 << 15, dim, generator=draw).div_(dim**0.5).bfloat16()
    parts = [block.roll(int(n), 1) for n in torch.randint(dim, (-(-count // len(block)),), generator=draw)]
    return torch.cat(parts)[:count, :, None, None]


def memory(chosen: argparse.Namespace) -> None:
    bank = StripBank.pack(codes(chosen.cells, chosen.dim, 1), dtype="bf16")
    queries = F.normalize(torch.randn(64, chosen.dim, generator=torch.Generator().manual_seed(2)), dim=1)
    numbers = bank.blocks.view(torch.float32)
    for batch in (1, 64):
        query = queries[:batch, :, None, None]
        found = strip_topk(query, bank, K, score="dot")
        exact = bank.unpack(found.index[0])[:, :, 0, 0].double() @ queries[0].double()
        assert float((exact - found.score[0]).abs().max()) < 1e-5
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(chosen.repeats if batch == 1 else 3):
            times[0].append(seconds(lambda query=query: strip_topk(query, bank, K, score="dot")))  # type: ignore[misc]
            times[1].append(seconds(numbers.sum))
        search, read = (min(taken) for taken in times)
        print(
            f"{batch} queries, {len(bank)} cells of {chosen.dim}, {bank.nbytes / 1e9:.2f} GB: search "
            f"{1e3 * search:.0f} ms ({bank.nbytes / search / 1e9:.1f} GB/s), reading alone {1e3 * read:.0f} ms "
            f"({bank.nbytes / read / 1e9:.1f} GB/s); {torch.get_num_threads()} threads, best of {len(times[0])} in "
            f"turn (medians {1e3 * statistics.median(times[0]):.0f} and {1e3 * statistics.median(times[1]):.0f} ms)",
            flush=True,
        )


def build(chosen: argparse.Namespace) -> None:
    layer = Layer("cell", (chosen.dim, 1, 1), "dot", None)
    if not PlaceIndex.exists(chosen.out):
        PlaceIndex.create(chosen.out, model=MODEL, layers=(layer,)).close()
    side = int(chosen.cells**0.5) + 1
    with PlaceIndex.open(chosen.out, "write") as index:
        while (done := len(index)) < chosen.cells:
            count = min(chosen.at_once, chosen.cells - done)
            number = np.arange(done, done + count)
            # Cells side by side over western Europe; every one is another.
            ids = s2.from_lat_lon(36 + 19 * (number // side) / side, -9 + 27 * (number % side) / side, LEVEL)
            lat, lon = s2.center(ids)
            rows = Rows(codes(count, chosen.dim, done))
            tokens = [s2.token(cell) for cell in ids]
            prototype = [s2.token(cell) for cell in s2.parent(ids, LEVEL - 1)]
            known = {"level": [LEVEL] * count, "area_m2": s2.area_m2(ids).tolist(), "photos": [3] * count}
            taken = seconds(
                lambda rows=rows, lat=lat, lon=lon, tokens=tokens, known=known, prototype=prototype: index.add(  # type: ignore[misc]
                    {"cell": rows}, model=MODEL, lat=lat, lon=lon, key=tokens,
                    attributes={**known, "prototype": prototype},
                )
            )  # fmt: skip
            print(f"{done + count} cells, added {count} in {taken:.1f} s", flush=True)
    size = sum(path.stat().st_size for path in Path(chosen.out).rglob("*") if path.is_file())
    print(f"{size / 1e9:.2f} GB on disk, {size / chosen.cells:.0f} bytes per cell")


def search(chosen: argparse.Namespace) -> None:
    began = time.perf_counter()
    with PlaceIndex.open(chosen.out) as index:
        dim = index.layers[0].strip[0]
        print(
            f"opened in {time.perf_counter() - began:.2f} s: {len(index)} cells, {index.info()['bytes'] / 1e9:.2f} GB"
        )
        draw = torch.Generator().manual_seed(7)
        for batch in (1, 64):
            query = F.normalize(torch.randn(batch, dim, generator=draw), dim=1)[:, :, None, None]
            before = resource.getrusage(resource.RUSAGE_SELF)
            taken = seconds(lambda query=query: index.search({"cell": QueryStrips(query)}, K))  # type: ignore[misc]
            after = resource.getrusage(resource.RUSAGE_SELF)
            print(
                f"{batch} queries: {taken:.1f} s, {after.ru_majflt - before.ru_majflt} major faults, processor "
                f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in (memory, build, search):
        one = verbs.add_parser(verb.__name__)
        one.set_defaults(verb=verb)
        one.add_argument("--threads", type=int, default=2)
        if verb is not search:
            one.add_argument("--cells", type=int, default=2_000_000)
            one.add_argument("--dim", type=int, default=512)
        if verb is memory:
            one.add_argument("--repeats", type=int, default=7)
        else:
            one.add_argument("--out", required=True)
        if verb is build:
            one.add_argument("--at-once", type=int, default=1_000_000)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.verb(chosen)


if __name__ == "__main__":
    main()
