"""last.safetensors: everything that a run needs to continue, complete or absent, with a digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from geoloc_fast.files import write_atomically

__all__ = ["Checkpoint", "first_difference"]

_FORMAT = "geoloc_fast.training.3"


class Checkpoint(NamedTuple):
    """A run that was interrupted: tensors, position, settings."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """ValueError: it is none, of another version, or damaged."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: expected a checkpoint, got {error}") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path}: expected a checkpoint of {_FORMAT}, got {metadata.get('format')}")
        if metadata.pop("sha256", None) != _digest(tensors, metadata):
            raise ValueError(f"{path}: expected what training wrote, got something else; the file is damaged")
        return cls(tensors, json.loads(metadata["position"]), json.loads(metadata["settings"]))

    def save(self, path: Path) -> None:
        whole = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        metadata = {
            "format": _FORMAT,
            "position": json.dumps(self.position),
            "settings": json.dumps(self.settings, sort_keys=True, default=list),
        }
        metadata["sha256"] = _digest(whole, metadata)
        write_atomically(path, safetensors.torch.save(whole, metadata))


def first_difference(a: Any, b: Any, name: str = "") -> str:
    """Where two settings differ first: its name and both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                return first_difference(a.get(key), b.get(key), f"{name}.{key}".lstrip("."))
    return f"{name}: {a!r} and now {b!r}"


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
