"""Pairs decoded once are those of the loader, and augmentation of whole batches keeps geometry."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geoloc_fast.data.datasets import PairDataset, PhotoDataset, PlaceDataset, collate, finish
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.images.augment import Augmentation
from geoloc_fast.training.recipes.geolocalizer.memory import PairsInMemory
from geoloc_fast.training.recipes.geolocalizer.street_choice import chosen_street

PLAIN = Augmentation(turn=False, brightness=0, contrast=0, saturation=0, tint=0, grey=0, blur=0, noise=0)


def in_memory(region: Path, augment: Augmentation, **how: Any) -> tuple[PairsInMemory, PairDataset]:
    manifest = Manifest.load(region)
    photos = PhotoDataset(manifest, panorama_size=(32, 128))
    pairs = PairDataset(photos, PlaceDataset(manifest, satellite_size=64, panorama_size=(32, 128)))
    return PairsInMemory(pairs, [photos], augment, **how), pairs


def drawn(ready: PairsInMemory, rows: list[int], epoch: int = 0) -> dict[str, Any]:
    return ready.batch(rows, (epoch, 0), torch.device("cpu"))


def test_pairs_in_memory_are_those_of_the_loader(region: Path) -> None:
    ready, pairs = in_memory(region, PLAIN)
    rows = [3, 0, 21]
    expected = finish(collate([pairs[row] for row in rows]), "cpu")
    got = drawn(ready, rows)
    assert got.keys() == expected.keys() - {
        "calibration",
        "column0_deg",
        "fov_deg",
        "fov_known",
        "metres_per_pixel",
        "shown_m",
    }
    for name, value in got.items():
        if isinstance(value, Tensor):
            # Bytes of the polar image are rounded before they are normalised.
            torch.testing.assert_close(value, expected[name], atol=0.011 if name == "polar" else 1e-4, rtol=0)
        else:
            assert value == expected[name]


def test_in_memory_a_batch_has_one_reading_however_it_is_shared_out(region: Path) -> None:
    _, pairs = in_memory(region, PLAIN)
    how: dict[str, Any] = {"panorama_size": (32, 128), "use_fov": False}
    readings = [PhotoDataset(pairs.photos.manifest, assumed_fov_deg=fov, **how) for fov in (60, 120)]
    ready = PairsInMemory(pairs, readings, PLAIN)
    widths = set()
    for number in range(8):
        whole, *parts = (
            ready.batch(rows, (1, number), torch.device("cpu"))["photo_width"].tolist()
            for rows in ([4, 1, 7], [4], [1], [7])
        )
        assert whole == [width for part in parts for width in part]
        widths |= set(whole)
    assert widths == {round(60 * 128 / 360), round(120 * 128 / 360)}


def test_in_memory_turns_mirrors_and_cuts_keep_geometry(region: Path) -> None:
    ready, _ = in_memory(region, replace(PLAIN, turn=True, mirror=0.5), cut=0.5)
    plain = drawn(in_memory(region, PLAIN)[0], list(range(8)))
    got = drawn(ready, list(range(8)), epoch=3)
    again = drawn(ready, [5, 2], epoch=3)
    assert torch.equal(again["polar"], got["polar"][[5, 2]])
    assert torch.equal(again["heading_deg"], got["heading_deg"][[5, 2]])
    assert got["mirrored"].any() and not got["mirrored"].all()
    assert (got["photo_width"] < plain["photo_width"]).any()
    for n in range(8):
        turn = round(float(got["turn_deg"][n]) * 128 / 360)
        mirrored = bool(got["mirrored"][n])
        for name in ("polar", "panorama"):
            image = plain[name][n]
            image = image.flip(2).roll(1, 2) if mirrored else image  # column 0 looks south, and does in the mirror
            torch.testing.assert_close(got[name][n], image.roll(-turn, 2))
        # Where the photo's first column looks, from its heading, is where that column was before.
        width, whole = int(got["photo_width"][n]), int(plain["photo_width"][n])
        photo = plain["photo"][n, :, :, :whole]
        photo = photo.flip(2) if mirrored else photo
        heading = float(plain["heading_deg"][n])
        heading = 360 / 128 - heading if mirrored else heading
        ahead = (float(got["heading_deg"][n]) - heading + 180) % 360 - 180
        first = round(ahead * 128 / 360 + whole / 2 - width / 2)
        torch.testing.assert_close(got["photo"][n, :, :, :width], photo[:, :, first : first + width])
        assert not got["photo"][n, :, :, width:].any()


def test_street_views_as_an_experiment_wants_them(region: Path) -> None:
    ready, _ = in_memory(region, PLAIN)
    street, polar = (images.permute(0, 3, 2, 1) for images in (ready.panorama, ready.polar))
    count = len(street)
    unknown = torch.arange(count) % 4 == 0
    lies = torch.stack([one.roll(-20, 2) if u else one for one, u in zip(street, unknown, strict=True)])
    has = {"has_panorama": torch.arange(count) != 1, "has_satellite": torch.arange(count) != 2}

    def chosen(how: str) -> tuple[Tensor, Tensor, Tensor]:
        return chosen_street(
            how, lies, polar, heading_known=~unknown & (torch.arange(count) != 1), column0_deg=180.0, **has
        )

    image, there, known = chosen("as_is")
    assert torch.equal(image, lies) and torch.equal(there, has["has_panorama"]) and torch.equal(known, there)
    image, there, known = chosen("azimuth")
    assert torch.equal(there, has["has_panorama"]) and torch.equal(known, there)
    assert torch.equal(image[~unknown], lies[~unknown])
    better = (image[unknown].float() - street[unknown].float()).abs().mean((1, 2, 3))
    worse = (lies[unknown].float() - street[unknown].float()).abs().mean((1, 2, 3))
    assert (better < 0.7 * worse).float().mean() > 0.6
    image, there, known = chosen("projected")
    assert torch.equal(known, has["has_satellite"]) and torch.equal(there, known)
    assert not image[:, :, :16].any()  # the sky
    down = math.radians(8.5 * 360 / 128)
    row = round(31 - 1.65 / math.tan(down) / 25 * 32)
    assert torch.equal(image[:, :, 24], polar[:, :, row])
