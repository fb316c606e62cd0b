"""One photo in an index, and in the same index as shards in processes: python bench/sharded_search.py [--places N]

Answers must be the same bits. Times are medians of alternating calls; `overhead` is what the shards take longer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from geoloc_fast.cluster import ShardedIndex, cut
from geoloc_fast.index import PlaceIndex
from geoloc_fast.layers import Layer, QueryStrips, Rows
from geoloc_fast.testing import random_strips

LAYER = Layer("place", (16, 4, 16), "cosine", 180.0)
AT_ONCE = 4096

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--places", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--searches", type=int, default=100)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        index = PlaceIndex.create(Path(folder) / "one", model="b" * 64, layers=(LAYER,))
        for begin in range(0, given.places, AT_ONCE):
            count = min(AT_ONCE, given.places - begin)
            lat, lon = 48 + rng.uniform(0, 0.5, count), 11 + rng.uniform(0, 0.5, count)
            strips = random_strips(count, *LAYER.strip, seed=begin)
            index.add({"place": Rows(strips)}, model="b" * 64, lat=lat, lon=lon)
        index.compact()
        cut(index, Path(folder) / "shards", given.shards)
        took: dict[str, list[float]] = {"one": [], "shards": []}
        with ShardedIndex.open(Path(folder) / "shards", "local", threads=1) as sharded:
            for n in range(-10, given.searches):
                query = {"place": QueryStrips(random_strips(1, 16, 4, 4, seed=1000 + n))}
                began = time.perf_counter()
                expected = index.search(query, 10)
                middle = time.perf_counter()
                found = sharded.search(query, 10)
                ended = time.perf_counter()
                for ours, theirs in zip(found, expected, strict=True):
                    assert ours.tobytes() == theirs.tobytes()
                if n >= 0:
                    took["one"].append(middle - began)
                    took["shards"].append(ended - middle)
        median = {name: 1000 * float(np.median(seconds)) for name, seconds in took.items()}
        overhead = median["shards"] - median["one"]
        print(json.dumps({
            "places": given.places, "shards": given.shards, "threads": torch.get_num_threads(), "ms": median,
            "overhead_ms": overhead, "hedges": sharded.counts["hedges"],
        }, indent=1))  # fmt: skip
