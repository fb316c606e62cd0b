"""The exact search of a bank against approximate indexes of its windows, at equal recall.

    python bench/windows_at_recall.py INDEX REGION [--model city] [--layer satellite] [--rows 4000] [--photos 100]
        [--columns 8]

An index of vectors knows no shifts: every window of every strip, divided by its norm, is a vector of its own, W of them
a strip, and the inner product with a query of as many columns is the very score of `strip_topk`. Peers are graphs
(HNSW) of usearch and FAISS and an inverted file of FAISS. Of each, the fewest nodes or lists looked at that find 99 of
100 of the ten best strips count; queries come one at a time, on one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from screened_codes import banks, wilson
from torch import Tensor
from usearch.index import Index

from geoloc_fast import StripBank, strip_topk

K = 10
MOST = 4096  # nodes or windows looked at

Found = Callable[..., np.ndarray[Any, Any]]  # (query [D], effort) -> windows, best first


def windows_of(strips: Tensor, width: int) -> Tensor:
    """[N * W, C * width] of norm 1, from strips [N, C, W]: window s of strip n at n * W + s."""
    columns = strips.shape[2]
    at = (torch.arange(columns)[:, None] + torch.arange(width)) % columns
    windows = strips[:, :, at].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return windows / windows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def of_usearch(windows: Tensor) -> tuple[Found, int]:
    index: Any = Index(ndim=windows.shape[1], metric="ip", dtype="bf16", connectivity=16, expansion_add=128)
    index.add(np.arange(len(windows)), windows.numpy(), threads=os.cpu_count() or 1)

    def found(query: np.ndarray[Any, Any], effort: int) -> np.ndarray[Any, Any]:
        index.expansion_search = effort
        return np.asarray(index.search(query, effort, threads=1).keys, dtype=np.int64)

    return found, index.serialized_length


def of_faiss(windows: Tensor, recipe: str) -> tuple[Found, int]:
    index: Any = faiss.index_factory(windows.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index.train(windows[:: max(1, len(windows) // 40_000)].numpy())
    index.add(windows.numpy())
    faiss.omp_set_num_threads(1)
    graph = recipe.startswith("HNSW")

    def found(query: np.ndarray[Any, Any], effort: int) -> np.ndarray[Any, Any]:
        if graph:
            index.hnsw.efSearch = effort
        else:
            index.nprobe = max(1, effort // 8)
        return index.search(query[None], effort)[1][0]

    return found, len(faiss.serialize_index(index))


def timed(run: Callable[[Any], Any], queries: Sequence[Any]) -> float:
    """Milliseconds of the median query, after a round that does not count."""
    seconds = []
    for turn in range(3):
        for query in queries:
            begin = time.perf_counter()
            run(query)
            if turn:
                seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("region", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--layer", default="satellite")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--columns", type=int, default=8, help="of a query; wider ones are cut to their middle")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layer = next(
        bank
        for bank in banks(arguments.index, arguments.region, arguments.model, arguments.photos, 0)
        if bank.name == arguments.layer
    )
    strips, width = layer.strips[: arguments.rows], arguments.columns
    bank = StripBank.pack(strips[:, :, None, :])
    strips = bank.unpack().flatten(1, 2)  # the values that all of them search
    queries = []
    for query in layer.queries:
        if query.shape[1] >= width:
            first = (query.shape[1] - width) // 2
            query = query[:, first : first + width]
            queries.append(query / query.norm())
    batched = [query[None, :, None, :].contiguous() for query in queries]
    exact = [strip_topk(query, bank, K, select="cosine").index[0].tolist() for query in batched]
    ours = timed(lambda query: strip_topk(query, bank, K, select="cosine"), batched)
    print(f"{len(strips)} strips of {tuple(strips.shape[1:])}, {len(queries)} queries of {width} columns")
    print(f"geoloc_fast, exact: {ours:.3f} ms, {bank.nbytes / 1e6:.1f} MB")
    windows = windows_of(strips, width)
    flat = [query.flatten().numpy() for query in queries]
    recipes: dict[str, Callable[[], tuple[Found, int]]] = {
        "usearch HNSW, bf16": lambda: of_usearch(windows),
        "FAISS HNSW32, SQ8": lambda: of_faiss(windows, "HNSW32_SQ8"),
        "FAISS IVF256, SQ8": lambda: of_faiss(windows, "IVF256,SQ8"),
    }
    for name, make in recipes.items():
        begin = time.perf_counter()
        found, nbytes = make()
        built = time.perf_counter() - begin
        effort = 32
        while True:
            hits = 0
            for query, best in zip(flat, exact, strict=True):
                rows = list(dict.fromkeys((found(query, effort) // strips.shape[2]).tolist()))[:K]
                hits += len(set(rows) & set(best))
            recall = hits / (K * len(flat))
            if recall >= 0.99 or effort >= MOST:
                break
            effort *= 2
        spent = timed(partial(found, effort=effort), flat)
        print(
            f"{name}: {spent:.3f} ms at an effort of {effort}, recall {100 * recall:.1f} % (at least "
            f"{100 * wilson(hits, K * len(flat)):.1f} %), {nbytes / 1e6:.0f} MB, built in {built:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
