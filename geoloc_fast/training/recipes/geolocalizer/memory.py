"""Pairs decoded once and kept in memory as bytes of the network's size; augmentation is done on whole batches.

Decoding, reprojecting and colouring one pair takes 4 to 9 ms of processor time, as long as a small network's share of a
step; from memory it takes a tenth of that. A pair at 64 x 256 takes 100 KB.

    images of places   uint8 [N, W, H, 3]: columns first, so that turning and mirroring a place copies whole columns
    photos             uint8 [N, w, H, 3]: one for each reading (field of view known, assumed)

A batch is what `geoloc_fast.data.datasets.finish` makes of the loader's, without blur and noise. It depends on seed,
epoch and photo alone, but for the reading, which is the batch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from geoloc_fast.data.datasets import IMAGENET_MEAN, IMAGENET_STD, PairDataset, PhotoDataset, loader
from geoloc_fast.images.augment import Augmentation, colour_matrix, generator_of
from geoloc_fast.polar import polar_resample
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_street

_DECODE_BATCH = 64
_AUGMENT, _READING = 104, 105  # what a random number is for
_NARROWEST = 8  # columns that cutting leaves of a photo


class PairsInMemory:
    """Args:
    pairs: without augmentation.
    readings: photo datasets over the same manifest, without augmentation; every sample takes one of them.
    street: which street view a place has, see `street_choice`.
    border: of the polar images, beyond the satellite image.
    cut: the largest share of a photo's columns that is cut off, anew in every epoch.
    """

    def __init__(
        self,
        pairs: PairDataset,
        readings: Sequence[PhotoDataset],
        augment: Augmentation,
        *,
        street: str = "known",
        border: str = "replicate",
        cut: float = 0.0,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        if not 0 <= cut < 1:
            raise ValueError(f"cut: expected a share from 0 up to 1, got {cut}")
        self.augment, self.cut, self.seed = augment, cut, seed
        self.photo_rows, self.place_rows = pairs.photo_rows, pairs.place_rows
        self.column0_deg = pairs.places.column0_deg
        rows, columns = pairs.places.panorama_size
        polar = torch.empty(len(pairs.places), columns, rows, 3, dtype=torch.uint8)
        panorama = torch.empty_like(polar)
        about: dict[str, list[Any]] = {}
        begin = 0
        for batch in tqdm(
            loader(pairs.places, _DECODE_BATCH, workers=workers), desc="places", leave=False, disable=None
        ):
            part = slice(begin, begin + len(batch["satellite"]))
            begin = part.stop
            above = polar_resample(batch["satellite"], (rows, columns), column0_deg=self.column0_deg, border=border)
            batch["panorama"], batch["has_panorama"], batch["heading_known"] = chosen_street(
                street,
                batch["panorama"],
                above,
                has_panorama=batch["has_panorama"],
                has_satellite=batch["has_satellite"],
                heading_known=batch["heading_known"],
                column0_deg=self.column0_deg,
            )
            polar[part] = above.permute(0, 3, 2, 1)
            panorama[part] = batch["panorama"].permute(0, 3, 2, 1)
            _add(about, batch, "has_satellite", "has_panorama", "heading_known", "place_id", "place_lat", "place_lon")
        self.polar, self.panorama, self.places = polar, panorama, _joined(about)
        self.readings = []
        for reading in readings:
            images, about = [], {}
            for batch in tqdm(
                loader(reading, _DECODE_BATCH, workers=workers), desc="photos", leave=False, disable=None
            ):
                images.append(batch["photo"].permute(0, 3, 2, 1))
                _add(about, batch, "photo_width", "heading_deg", "photo_id", "photo_lat", "photo_lon")
            widest = max(part.shape[1] for part in images)
            photo = torch.cat([F.pad(part, (0, 0, 0, 0, 0, widest - part.shape[1])) for part in images])
            self.readings.append((photo, _joined(about)))

    def batch(self, pairs: Sequence[int], at: tuple[int, int], device: torch.device) -> dict[str, Any]:
        """Some of the pairs of the batch `at` (epoch, number)."""
        epoch, number = at
        photo_row, place_row = (
            torch.from_numpy(rows[list(pairs)].astype(np.int64)) for rows in (self.photo_rows, self.place_rows)
        )
        drawn = np.stack([generator_of(self.seed, epoch, int(row), _AUGMENT).random(26) for row in photo_row])
        chance = torch.from_numpy(drawn)
        columns = self.polar.shape[1]
        turn = (chance[:, 0] * columns).long() if self.augment.turn else torch.zeros(len(pairs), dtype=torch.long)
        mirrored = chance[:, 1] < self.augment.mirror

        # Column j looks at column0 + 360 (j + turn) / W; in the mirror what stood at azimuth a stands at -a.
        axis = round(2 * self.column0_deg / 360 * columns)
        column = torch.arange(columns) + turn[:, None]
        column = torch.where(mirrored[:, None], -column - axis, column) % columns
        done: dict[str, Any] = {
            name: value[place_row] for name, value in self.places.items() if isinstance(value, Tensor)
        }
        done["place_id"] = [self.places["place_id"][row] for row in place_row]
        for n, (name, images, has) in enumerate(
            (("polar", self.polar, done["has_satellite"]), ("panorama", self.panorama, done["has_panorama"]))
        ):
            there = has[:, None, None].expand(-1, columns, self.polar.shape[2])
            done[name] = self._finished(images[place_row[:, None], column], drawn[:, 5 + 7 * n :][:, :7], there)

        # One reading for the whole batch, or its photos would be padded to the widest of all readings.
        which = generator_of(self.seed, epoch, number, _READING).integers(len(self.readings))
        photos, about = self.readings[int(which)]
        width, heading = about["photo_width"][photo_row], about["heading_deg"][photo_row]
        kept = (width * (1 - self.cut * chance[:, 3])).round().long().clamp(min=_NARROWEST).minimum(width)
        first = ((width - kept + 1) * chance[:, 4]).long()
        column = first[:, None] + torch.arange(int(kept.max()))
        exists = torch.arange(column.shape[1]) < kept[:, None]
        # The heading lies over column width / 2. In the mirror columns are sampled at their right edge.
        offset = first + kept / 2 - width / 2
        column = torch.where(mirrored[:, None], (width[:, None] - 1) - column, column).clamp(0, photos.shape[1] - 1)
        heading = torch.where(mirrored, 360 / columns - heading, heading) + offset * 360 / columns
        image = photos[photo_row[:, None], column]
        seen = image.any(3) & exists[:, :, None]  # what lies above and below a photo is black, and stays it
        done["photo"] = self._finished(image, drawn[:, 19:26], seen, exists)
        done |= {
            "photo_width": kept,
            "heading_deg": heading % 360,
            "turn_deg": turn.double() * 360 / columns,
            "mirrored": mirrored,
            "photo_row": photo_row,
            "place_row": place_row,
            "photo_lat": about["photo_lat"][photo_row],
            "photo_lon": about["photo_lon"][photo_row],
        }
        done["photo_id"] = [about["photo_id"][row] for row in photo_row]
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in done.items()}

    def all_places(self, size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """As they are, `size` at a time, in the manifest's order."""
        for begin in range(0, len(self.polar), size):
            part = slice(begin, begin + size)
            done = {name: value[part] for name, value in self.places.items() if isinstance(value, Tensor)}
            for name, images, has in (
                ("polar", self.polar, done["has_satellite"]),
                ("panorama", self.panorama, done["has_panorama"]),
            ):
                there = has[:, None, None].expand(-1, *images.shape[1:3])
                done[name] = self._finished(images[part], None, there)
            yield {name: value.to(device) for name, value in done.items()}

    def all_photos(self, size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """As they are, in the first reading."""
        photos, about = self.readings[0]
        for begin in range(0, len(photos), size):
            part = slice(begin, begin + size)
            width = about["photo_width"][part]
            image = photos[part, : int(width.max())]
            exists = torch.arange(image.shape[1]) < width[:, None]
            photo = self._finished(image, None, image.any(3) & exists[:, :, None], exists)
            yield {"photo": photo.to(device), "photo_width": width}

    def _finished(self, image: Tensor, drawn: np.ndarray | None, seen: Tensor, exists: Tensor | None = None) -> Tensor:
        """uint8 [B, w, H, 3] in other colours and normalised, [B, 3, H, w] in channels_last memory. What is not `seen`
        is black; what does not `exists` is 0."""
        count, wide, high, _ = image.shape
        values = image.reshape(count, wide * high, 3).to(torch.float32)
        if drawn is not None:
            matrix = colour_matrix(drawn, self.augment)
            values = torch.baddbmm(matrix[:, None, :, 3], values, matrix[:, :, :3].mT).clamp_(0, 255)
        values = values.view(image.shape)
        values.mul_(seen[..., None])
        values.sub_(torch.tensor(IMAGENET_MEAN)).div_(torch.tensor(IMAGENET_STD))
        there = seen[..., None] if exists is None else exists[:, :, None, None]
        return values.mul_(there).transpose(1, 2).contiguous().permute(0, 3, 1, 2)


def _add(about: dict[str, list[Any]], batch: dict[str, Any], *names: str) -> None:
    for name in names:
        about.setdefault(name, []).append(batch[name])


def _joined(about: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: torch.cat(parts) if isinstance(parts[0], Tensor) else [value for part in parts for value in part]
        for name, parts in about.items()
    }
