"""Two builds of the CPU module against each other, in one process and in turn: which of them searches a bank faster.

    python bench/two_builds.py before.so after.so [--count 400000] [--dtype bf16] [--batch 1] [--shape 16 4 16]
        [--width 5] [--rounds 25]

A sum over the bank's memory takes turns with them: what reading alone takes. The answers must be the same to the bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.machinery import ExtensionFileLoader
from typing import Any

import torch
from torch import Tensor

from geoloc_fast import StripBank, _native, strip_topk
from geoloc_fast.reference.strip_bank import HEADER_BYTES
from geoloc_fast.testing import random_strips

DISTINCT = 50_000  # strips; then the same come again


def module(path: str, number: int) -> Any:
    name = f"build{number}._native_cpu"  # pybind11 would give the first again under the same name
    loader = ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader, origin=path)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+")
    parser.add_argument("--count", type=int, default=400_000)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shape", type=int, nargs=3, default=[16, 4, 16])
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    strips = random_strips(min(arguments.count, DISTINCT), *arguments.shape, seed=1)
    part = StripBank.pack(strips, dtype=arguments.dtype)
    rows = torch.arange(len(part))
    bank = StripBank.join([(part, rows)] * max(1, arguments.count // len(part)))
    query = random_strips(arguments.batch, *arguments.shape[:2], arguments.width, seed=2)
    answers: dict[str, tuple[Tensor, ...]] = {}

    def search(path: str, native: Any) -> None:
        _native.native_cpu = native
        answers[path] = tuple(strip_topk(query, bank, 10))

    calls: dict[str, Callable[[], Any]] = {"reading": bank.buffer[HEADER_BYTES:].view(torch.float32).sum}
    for number, path in enumerate(arguments.builds):
        calls[path] = partial(search, path, module(path, number))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(arguments.rounds + 1):
        for name in random.sample(list(calls), len(calls)):
            begin = time.perf_counter()
            calls[name]()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    first = answers[arguments.builds[0]]
    assert all(torch.equal(a, b) for found in answers.values() for a, b in zip(first, found, strict=True))
    reading = statistics.median(seconds["reading"])
    for name, values in seconds.items():
        middle, quarters = statistics.median(values), statistics.quantiles(values)
        print(
            f"{name}: {1e3 * middle:.2f} ms ({1e3 * quarters[0]:.2f} to {1e3 * quarters[2]:.2f}), "
            f"{bank.nbytes / middle / 1e9:.1f} GB/s, {100 * reading / middle:.0f} % of reading"
        )


if __name__ == "__main__":
    main()
