"""A cache of features: float16, memory-mapped, with the hash of image, weights and settings as key.

A folder holds, for each set of weights and settings, one file of numbers and one of names. An entry counts when its
line of names is whole and its numbers are there, so a run that was ended loses what it had not finished and no more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["FeatureCache", "content_key"]


def content_key(image: Tensor, *settings: object) -> str:
    """Of an image's pixels and of how it is looked at."""
    digest = hashlib.sha256(repr((tuple(image.shape), *settings)).encode())
    digest.update(np.ascontiguousarray(image.numpy()).data)
    return digest.hexdigest()


class FeatureCache:
    """Arrays of float16 by key; one writer at a time."""

    def __init__(self, folder: str | os.PathLike[str], made_by: str) -> None:
        """Args:
        made_by: names the weights and settings of what makes the features; others have files of their own.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        stem = hashlib.sha256(made_by.encode()).hexdigest()[:24]
        self._numbers, self._names = root / f"{stem}.f16", root / f"{stem}.names"
        self._numbers.touch()
        self._names.touch()
        self._entries: dict[str, tuple[int, tuple[int, ...]]] = {}
        end, whole = self._numbers.stat().st_size // 2, 0
        for line in self._names.read_bytes().splitlines(keepends=True):
            try:
                key, start, shape = json.loads(line)
                if not line.endswith(b"\n") or start + math.prod(shape) > end:
                    break
            except (ValueError, TypeError):
                break
            self._entries[key] = (start, tuple(shape))
            whole += len(line)
        os.truncate(self._names, whole)  # what an ended run left half written
        self._map: np.ndarray = np.zeros(0, np.float16)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """The features of `key`, float32 of float16 values, made now if they are not there."""
        entry = self._entries.get(key)
        if entry is None:
            values = make().detach().cpu().to(torch.float16).contiguous().numpy()
            with open(self._numbers, "ab") as numbers:
                if odd := numbers.tell() % 2:
                    numbers.write(b"\0" * odd)
                start = numbers.tell() // 2
                numbers.write(values.tobytes())
            with open(self._names, "ab") as names:
                names.write(json.dumps([key, start, values.shape]).encode() + b"\n")
            self._entries[key] = (start, values.shape)
            return torch.from_numpy(values.astype(np.float32))
        start, shape = entry
        stop = start + math.prod(shape)
        if stop > len(self._map):
            self._map = np.memmap(self._numbers, np.float16, "r")
        return torch.from_numpy(self._map[start:stop].astype(np.float32).reshape(shape))
