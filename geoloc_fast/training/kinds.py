"""Teaches the kind heads of a layered model what images show, from synthetic cities, whose renderer knows it.

Both heads look at frozen features: one at photos, one at satellite images from above. The features of a published
network have seen the world, and stay as they are.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import BundleError, TrainingStopped
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.images.decode import decode_image
from geoloc_fast.models.bundle import kind_of, load_bundle, write_bundle
from geoloc_fast.models.contract import Photo, model_path
from geoloc_fast.models.layered import Layered, LayeredConfig
from geoloc_fast.models.layered.kinds import KindHead
from geoloc_fast.progress import Progress

__all__ = ["load_kinds", "save_kinds", "train_kinds"]

_BATCH = 4  # images a step
_RATE, _LEAST = 2e-3, 0.02  # the learning rate, and the share of it that is left at the end
_CROP = 256  # pixels of a satellite image a step looks at
_COMMON = 0.05  # a kind that is rarer than this share weighs more, by the root


def train_kinds(
    manifest: Manifest,
    kinds: Sequence[str],
    pretrained: str | os.PathLike[str],
    config: LayeredConfig | None = None,
    *,
    steps: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Layered, dict[str, float]]:
    """A layered model whose kind heads are trained, its maps still fresh, and how often each head is right.

    Args:
        manifest: synthetic cities with `photo_kinds` and `satellite_kinds`.
        kinds: what the numbers in them mean.
        pretrained: weights of the backbone.
        config: sizes; `kinds` is filled in.
        steps: for each head, of four images each; one place in ten is kept back to measure.
    """
    if "photo_kinds" not in manifest.photos.column_names or "satellite_kinds" not in manifest.places.column_names:
        raise TrainingStopped(
            f"{manifest.root}: expected cities with photo_kinds and satellite_kinds; make them with train/cities.py"
        )
    torch.manual_seed(seed)
    model = Layered(dataclasses.replace(config or LayeredConfig(), kinds=len(kinds)))
    model.backbone.load_pretrained(pretrained)
    right = {}
    for number, side in enumerate(("level", "above")):
        told = _Examples(manifest, model, side)
        steps_before = number * steps

        def shown(done: int, before: int = steps_before) -> None:
            if progress is not None:
                progress(before + done, 2 * steps)

        right[side] = _train(model, side, told, steps, np.random.default_rng([seed, number]), shown)
    return model, right


def load_kinds(path: str | os.PathLike[str], config: LayeredConfig) -> Layered:
    """A model of `config` with the kind heads of a file of `train/kinds.py`, or of a layered model that has them, by
    path or name. BundleError if there are none."""
    path = model_path(path)
    heads: Layered
    if kind_of(path) == Layered.kind:
        heads = Layered.load(path)
    else:
        heads = load_bundle(path, "kinds", lambda text: Layered(LayeredConfig.from_json(text)))
    if not heads.config.kinds:
        raise BundleError(f"{path}: expected a model that tells kinds of ground apart, got one without")
    model = Layered(dataclasses.replace(config, kinds=heads.config.kinds))
    model.kind_heads.load_state_dict(heads.kind_heads.state_dict())
    return model


def save_kinds(model: Layered, path: str | os.PathLike[str]) -> None:
    """Writes a model whose kind heads are trained, for `load_kinds`."""
    write_bundle(path, "kinds", model.config.to_json(), model.state_dict(), torch.float32)


class _Examples:
    """Images of one side with the shares of the kinds in every cell of their features."""

    def __init__(self, manifest: Manifest, model: Layered, side: str) -> None:
        self.manifest, self.model, self.side = manifest, model, side
        table = manifest.photos if side == "level" else manifest.places
        names = ("image", "photo_kinds", "fov_deg") if side == "level" else ("satellite", "satellite_kinds")
        rows = table.select(list(names)).to_pylist()
        self.rows = [row for row in rows if all(value is not None for value in row.values())]
        self.count, self.cell = model.config.kinds, model.config.strides[0]

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, number: int, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """uint8 [3, H, W] and float32 [kinds, H / cell, W / cell]; turned and cut by chance if there is one."""
        row = self.rows[number]
        if self.side == "level":
            return self._photo(row, rng)
        return self._above(row, rng)

    def _read(self, path: str) -> np.ndarray:
        content = np.frombuffer(self.manifest.open_image(path), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
        if image is None or int(image.max()) >= self.count:
            raise TrainingStopped(f"{path}: expected numbers of {self.count} kinds in a PNG")
        return np.asarray(image)

    def _photo(self, row: dict[str, Any], rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        fov_deg, config = float(row["fov_deg"]), self.model.config
        image = decode_image(self.manifest.open_image(row["image"]), row["image"])
        shown, _ = self.model.query_image(Photo(image, fov_deg))
        kinds = self._read(row["photo_kinds"])
        size = config.level_size[0] // self.cell, config.level_size[1] // self.cell
        told = np.zeros((size[0], shown.shape[2] // self.cell, self.count + 2), np.float32)
        for first in range(0, self.count, 3):  # as the channels of an image
            is_kind = np.stack([(kinds == kind) for kind in range(first, first + 3)], -1).astype(np.uint8) * 255
            if is_kind.any():
                columns = to_cylindrical(is_kind, fov_deg, size=size)
                cut = (columns.shape[1] - told.shape[1]) // 2  # the photo's own cut, in cells
                here = columns[:, max(cut, 0) : max(cut, 0) + told.shape[1]]
                left = max(-cut, 0)
                told[:, left : left + here.shape[1], first : first + 3] = here / np.float32(255)
        target = torch.from_numpy(told[..., : self.count].transpose(2, 0, 1).copy())
        if rng is not None and rng.random() < 0.5:
            return shown.flip(2), target.flip(2)
        return shown, target

    def _above(self, row: dict[str, Any], rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        side = self.model.config.satellite_px
        image = decode_image(self.manifest.open_image(row["satellite"]), row["satellite"])
        if image.shape[:2] != (side, side):
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        kinds, cells = self._read(row["satellite_kinds"]), side // self.cell
        told = np.stack([
            cv2.resize((kinds == kind).astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA)
            for kind in range(self.count)
        ])  # fmt: skip
        if rng is not None:
            crop = min(_CROP, side) // self.cell
            top, left = rng.integers(0, cells - crop + 1, 2)
            image = image[self.cell * top :, self.cell * left :][: self.cell * crop, : self.cell * crop]
            told = told[:, top : top + crop, left : left + crop]
            turns = int(rng.integers(4))
            image, told = np.rot90(image, turns), np.rot90(told, turns, axes=(1, 2))
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(told.copy())


def _train(model: Layered, side: str, told: _Examples, steps: int, rng: np.random.Generator, shown: Any) -> float:
    """Trains one head; how often its likeliest kind is the one that fills most of a cell, on places kept back."""
    kept, order = list(range(0, len(told), 10)), [n for n in range(len(told)) if n % 10]
    if len(order) < _BATCH:
        raise TrainingStopped(f"{side}: expected at least {_BATCH + 1} images with kinds, got {len(told)}")
    head = model.kind_heads.get_submodule(side)
    assert isinstance(head, KindHead)
    head.requires_grad_(True)
    some = torch.stack([told.get(n, None)[1].sum((1, 2)) for n in order[:: max(1, len(order) // 40)]]).sum(0)
    weight = (_COMMON / (some / some.sum()).clamp_min(1e-5)).sqrt().clamp(0.5, 6.0).view(-1, 1, 1)
    optimiser = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=1e-3)

    def logits(image: Tensor) -> Tensor:
        with torch.no_grad():
            maps = model.backbone(image[None], circular=False, strides=model.config.strides)
        found: Tensor = head.logits(maps)[0]
        return found

    waiting: list[int] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * max(_LEAST, 1 - step / steps)
        optimiser.zero_grad()
        for _ in range(_BATCH):
            waiting = waiting or rng.permutation(order).tolist()
            image, target = told.get(waiting.pop(), rng)
            said = target * weight
            loss = -(logits(image).log_softmax(0) * said).sum() / said.sum().clamp_min(1.0)
            torch.autograd.backward(loss / _BATCH)
        optimiser.step()
        shown(step + 1)
    head.requires_grad_(False)
    right, cells = 0.0, 0.0
    for n in kept:
        image, target = told.get(n, None)
        most, kind = target.max(0)
        clear = most > 0.5
        right += float(((logits(image).argmax(0) == kind) & clear).sum())
        cells += float(clear.sum())
    return right / max(cells, 1.0)
