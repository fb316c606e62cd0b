"""Datasets: true geometry under augmentation, the same samples for any number of workers, errors that name the file."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from geoloc_fast.data.datasets import (
    PairDataset,
    PhotoDataset,
    PlaceDataset,
    assign_places,
    collate,
    finish,
    loader,
)
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.geo.sphere import great_circle_m, move_m
from geoloc_fast.images.augment import Augmentation, change_colours, colour_matrix

ONLY_GEOMETRY = Augmentation(
    turn=True, mirror=0.5, brightness=0, contrast=0, saturation=0, tint=0, grey=0, blur=0, noise=0
)
DEGREES = 360 / 512
BYTES: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def colour(azimuth_deg: np.ndarray) -> np.ndarray:
    """What is seen in a direction: smooth, and different in every direction."""
    azimuth = np.radians(azimuth_deg)
    waves = [np.sin(azimuth), np.cos(azimuth + 1), np.sin(2 * azimuth + 0.5) * 0.7 + 0.3 * np.sin(5 * azimuth)]
    return np.rint(127 + 110 * np.stack(waves, -1)).astype(np.uint8)


def draw_panorama(column0_deg: float, width: int = 512, height: int = 128) -> np.ndarray:
    return np.tile(colour(column0_deg + 360 * np.arange(width) / width), (height, 1, 1))


def draw_satellite(size: int = 256) -> np.ndarray:
    """Every ray from the middle has one colour; the middle is pixel size / 2, as for polar_resample."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    return colour(np.degrees(np.arctan2(columns, -rows)))


def draw_photo(heading_deg: float, fov_deg: float, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    height, width = size
    focal_px = width / 2 / math.tan(math.radians(fov_deg / 2))
    azimuth = heading_deg + np.degrees(np.arctan((np.arange(width) - (width - 1) / 2) / focal_px))
    return np.tile(colour(azimuth), (height, 1, 1))


def save(path: Path, image: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path.name


@pytest.fixture
def world(tmp_path: Path) -> Manifest:
    """Eight places and photos of one scene, with panoramas of all widths and headings."""
    save(tmp_path / "satellite.png", draw_satellite())
    places, photos = [], []
    for i, (width, column0) in enumerate(
        [(512, 180), (512, 0), (1024, 77), (2048, 300.5), (600, 10), (512, 359), (1024, 90), (512, 33)]
    ):
        street = save(tmp_path / f"street{i}.png", draw_panorama(column0, width, width // 8))
        heading, fov = (53.0 * i + 20) % 360, (90.0, 60.0, 110.0, 75.5)[i % 4]
        places.append(
            {"id": f"place {i}", "lat": 50 + i / 1000, "lon": 8.0, "satellite": "satellite.png", "street": street}
        )
        places[-1] |= (
            {"street_column0_deg": column0}
            if i % 2
            else {"calibration_column0_deg": column0, "calibration_status": "measured"}
        )
        image = save(tmp_path / f"photo{i}.png", draw_photo(heading, fov))
        photos.append(
            {"id": f"photo {i}", "image": image, "heading_deg": heading, "fov_deg": fov, "place": f"place {i}"}
        )
    return Manifest.from_rows(tmp_path, places, photos)


def offset_columns(a: np.ndarray, b: np.ndarray) -> float:
    """By how many columns b must be rolled to fit a, found to a fraction of one."""
    spectrum = (np.fft.rfft(a - a.mean(0), axis=0) * np.conj(np.fft.rfft(b - b.mean(0), axis=0))).sum(1)
    fine = np.fft.irfft(spectrum, 64 * len(a))
    at = int(fine.argmax()) / 64
    return at - len(a) if at > len(a) / 2 else at


@pytest.mark.parametrize("augment", [None, ONLY_GEOMETRY])
def test_panorama_polar_image_and_photo_line_up(world: Manifest, augment: Augmentation | None) -> None:
    photos, places = PhotoDataset(world, augment=augment), PlaceDataset(world, augment=augment)
    pairs = PairDataset(photos, places)
    seen = set()
    signed = []
    for epoch in range(3):
        pairs.set_epoch(epoch)
        batch = finish(collate([pairs[i] for i in range(len(pairs))]), "cpu", **BYTES)
        assert batch["polar"].shape == batch["panorama"].shape == (8, 3, 128, 512)
        for i in range(8):
            seen.add(bool(batch["mirrored"][i]))
            sign = -1 if batch["mirrored"][i] else 1
            column0 = 180 + float(batch["turn_deg"][i])
            expected = colour(sign * (column0 + DEGREES * np.arange(512))).astype(float)
            polar = batch["polar"][i, :, 20:100].mean(1).T.numpy()
            panorama = batch["panorama"][i, :, 60].T.numpy()
            assert np.abs(polar - expected).mean() < 2
            assert abs(offset_columns(polar, expected)) < 0.2
            assert abs(offset_columns(panorama, expected)) < 0.6, (i, epoch)
            assert abs(offset_columns(np.roll(panorama, 40, 0), expected) - 40) < 0.6  # and would be noticed if not
            signed.append(offset_columns(panorama, polar))
            # The photo shows the columns that its heading says.
            width = int(batch["photo_width"][i])
            assert width == round(float(batch["fov_deg"][i]) / DEGREES)
            start = (float(batch["heading_deg"][i]) - column0) / DEGREES - width / 2
            strip = batch["photo"][i, :, 64, :width].T.numpy()
            shown = colour(sign * (column0 + DEGREES * (start + np.arange(width))))
            assert np.abs(strip - shown)[2:-2].mean() < 2.5, (i, epoch)
    assert abs(np.mean(signed)) < 0.15  # columns: no bias to either side
    assert seen == ({False} if augment is None else {False, True})


def test_unknown_heading_is_said(world: Manifest) -> None:
    places = world.places
    for name in ("street_column0_deg", "calibration_column0_deg", "calibration_status"):
        places = places.drop_columns([name])
    sample = PlaceDataset(world.replace(places=places))[0]
    assert sample["heading_known"] is False and sample["calibration"] == 0
    np.testing.assert_array_equal(sample["panorama"].permute(1, 2, 0).numpy()[0], draw_panorama(180)[0])
    known = PlaceDataset(world)[0]
    assert known["heading_known"] is True and known["calibration"] == 2


def test_four_views(tmp_path: Path) -> None:
    views = [save(tmp_path / f"{i}.png", draw_photo(90.0 * i, 90.0, (400, 400))) for i in range(4)]
    place = {"id": "a", "lat": 1.0, "lon": 2.0, "street_views": views}
    sample = PlaceDataset(Manifest.from_rows(tmp_path, [place], []))[0]
    got = sample["panorama"][:, 60].T.numpy().astype(float)
    assert abs(offset_columns(got, draw_panorama(180)[0].astype(float))) < 0.6
    assert sample["heading_known"] and not sample["has_satellite"] and (sample["satellite"] == 0).all()


def test_what_is_missing_is_zero(tmp_path: Path) -> None:
    save(tmp_path / "s.png", draw_satellite(64))
    places = [
        {"id": "a", "lat": 1.0, "lon": 2.0, "satellite": "s.png"},
        {"id": "b", "lat": 1.0, "lon": 2.0, "street": "s.png"},
    ]
    batch = next(iter(loader(PlaceDataset(Manifest.from_rows(tmp_path, places, [])), 2)))
    assert batch["has_satellite"].tolist() == [True, False] and batch["has_panorama"].tolist() == [False, True]
    done = finish(batch, "cpu")
    for name, row in (("polar", 1), ("panorama", 0)):
        assert (done[name][row] == 0).all() and done[name][1 - row].abs().sum() > 0
        assert torch.isfinite(done[name]).all()
    assert finish(batch, "cpu", dtype=torch.bfloat16, size=(32, 64))["polar"].shape == (2, 3, 32, 64)


def test_extent(tmp_path: Path) -> None:
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:200, 150:250] = 255  # the middle 100 pixels, 20 m at 0.2 m each
    save(tmp_path / "s.png", image)
    place = {"id": "a", "lat": 1.0, "lon": 2.0, "satellite": "s.png", "metres_per_pixel": 0.2}
    manifest = Manifest.from_rows(tmp_path, [place], [])
    assert (PlaceDataset(manifest, extent_m=20.0, satellite_size=64)[0]["satellite"] == 255).all()
    whole = PlaceDataset(manifest, satellite_size=64)[0]["satellite"].numpy()
    assert whole.mean() / 255 == pytest.approx(1 / 9, abs=0.02)


def test_photo_fields_of_view(world: Manifest, tmp_path: Path) -> None:
    known = PhotoDataset(world)
    assumed = PhotoDataset(world, use_fov=False, assumed_fov_deg=119.5)
    assert known[1]["photo_width"] == round(60 / DEGREES) and known[1]["fov_known"]
    assert assumed[1]["photo_width"] == 170 and not assumed[1]["fov_known"]  # the paper's 170 of 512
    around = Manifest.from_rows(
        world.root, [], [{"id": "a", "image": "street0.png", "heading_deg": 0.0, "fov_deg": 360.0}]
    )
    assert PhotoDataset(around, use_fov=False)[0]["photo_width"] == 512
    part = Manifest.from_rows(world.root, [], [{"id": "a", "image": "street0.png", "fov_deg": 200.0}])
    assert PhotoDataset(part)[0]["photo_width"] == round(200 / DEGREES)
    with pytest.raises(ValueError, match="assumed_fov_deg: expected"):
        PhotoDataset(world, assumed_fov_deg=0.1)


@pytest.mark.parametrize("augment", [None, ONLY_GEOMETRY])
def test_cropping_a_panorama_to_a_field_of_view(world: Manifest, augment: Augmentation | None) -> None:
    rows = [{"id": str(i), "image": "street0.png", "heading_deg": 0.0, "fov_deg": 360.0} for i in range(8)]
    photos = PhotoDataset(Manifest.from_rows(world.root, [], rows), crop_fov_deg=90.0, augment=augment)
    headings = []
    for sample in (photos[i] for i in range(8)):
        assert sample["photo"].shape == (3, 128, 128) and sample["fov_deg"] == 90.0
        strip = sample["photo"][:, 64].T.numpy().astype(float)
        azimuth = sample["heading_deg"] + DEGREES * (np.arange(128) - 64)
        fits = [np.abs(strip - colour(sign * azimuth)).mean() for sign in (1, -1)]
        assert min(fits) < 3 and (augment is not None or fits[0] < 3)
        headings.append(sample["heading_deg"])
    assert len(set(headings)) > 5
    if augment is None:
        assert [photos.heading_deg(i) for i in range(8)] == headings
    photos.set_epoch(1)
    again = [photos[i]["heading_deg"] for i in range(8)]
    assert (again == headings) == (augment is None)  # the published test draws its crops once


def same(a: Any, b: Any) -> bool:
    return (
        bool(torch.equal(a, b))
        if isinstance(a, torch.Tensor) and not a.is_floating_point()
        else (bool(torch.equal(a.nan_to_num(7), b.nan_to_num(7))) if isinstance(a, torch.Tensor) else a == b)
    )


def test_batches_do_not_depend_on_workers(world: Manifest) -> None:
    augment = Augmentation(mirror=0.5)

    def epochs(workers: int, start: int = 0) -> list[dict[str, Any]]:
        pairs = PairDataset(PhotoDataset(world, augment=augment, seed=3), PlaceDataset(world, augment=augment, seed=3))
        batches = loader(pairs, 3, workers=workers, shuffle=True, seed=5)
        found = []
        for epoch in range(start, 2):
            pairs.set_epoch(epoch)  # reaches workers that live on from the epoch before
            found += list(batches)
        return found

    alone = epochs(0)
    assert len(alone) == 6
    assert not same(alone[0]["panorama"], alone[3]["panorama"]) and alone[0]["photo_id"] != alone[3]["photo_id"]
    for workers in (1, 2):
        other = epochs(workers)
        assert len(other) == 6
        for ours, theirs in zip(alone, other, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(same(ours[key], theirs[key]) for key in ours)
    # Epoch 1 is the same whether epoch 0 was run or not.
    assert all(same(a[key], b[key]) for a, b in zip(alone[3:], epochs(0, 1), strict=True) for key in a)


@pytest.mark.parametrize(("workers", "damage"), [(0, "truncated"), (0, "missing"), (0, "bomb"), (2, "truncated")])
def test_errors_name_the_file(world: Manifest, workers: int, damage: str) -> None:
    file = world.root / "photo5.png"
    content = file.read_bytes()
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "bomb":
        file.write_bytes(content[:16] + b"\0\0\xff\xff\0\0\xff\xff" + content[24:])
    batches = iter(loader(PhotoDataset(world), 2, workers=workers))
    assert [name for _ in range(2) for name in next(batches)["photo_id"]] == [f"photo {i}" for i in range(4)]
    with pytest.raises(ImageError, match=r"^photo5\.png: ") as caught:
        next(batches)
    assert caught.value.path == "photo5.png"
    del caught, batches  # its frames would keep the workers for the garbage collector


def test_shuffling(world: Manifest) -> None:
    photos = PhotoDataset(world)

    def order(**settings: Any) -> list[str]:
        return [name for batch in loader(photos, 3, **settings) for name in batch["photo_id"]]

    assert order() == [f"photo {i}" for i in range(8)]
    first = order(shuffle=True)
    assert sorted(first) == order() and first != order() and order(shuffle=True) == first
    assert order(shuffle=True, seed=1) != first
    photos.set_epoch(1)
    assert order(shuffle=True) != first
    assert len(order(drop_last=True)) == 6


def test_collate_pads_photos(world: Manifest) -> None:
    samples = [PhotoDataset(world)[i] for i in range(4)]
    batch = collate(samples)
    widest = max(sample["photo_width"] for sample in samples)
    assert batch["photo"].shape == (4, 3, 128, widest) and batch["photo"].is_contiguous(
        memory_format=torch.channels_last
    )
    assert collate(samples, photo_columns=200)["photo"].shape[3] == 200
    with pytest.raises(ValueError, match=f"photo_columns: expected at least {widest}"):
        collate(samples, photo_columns=100)
    done = finish(batch, "cpu")
    for row, sample in enumerate(samples):
        assert (done["photo"][row, :, :, sample["photo_width"] :] == 0).all()
    assert batch["photo_lat"].dtype == torch.float64 and batch["photo_lat"].isnan().all()


def test_pairs(world: Manifest) -> None:
    photos = world.photos.to_pylist()
    photos[0]["place"] = None
    photos[1] |= {"split": "train", "place": "place 6"}
    photos[2]["split"] = "train"
    manifest = Manifest.from_rows(world.root, world.places.to_pylist(), photos)
    pairs = PairDataset(PhotoDataset(manifest), PlaceDataset(manifest))
    assert len(pairs) == 7 and pairs[0]["photo_id"] == "photo 1" and pairs[0]["place_id"] == "place 6"
    train = PairDataset(PhotoDataset(manifest), PlaceDataset(manifest), split="train")
    assert [train[i]["photo_row"] for i in range(len(train))] == [1, 2]
    assert pairs[-1]["photo_id"] == "photo 7"
    with pytest.raises(IndexError):
        pairs[7]
    with pytest.raises(ValueError, match="the same augment"):
        PairDataset(PhotoDataset(manifest, augment=ONLY_GEOMETRY), PlaceDataset(manifest))
    with pytest.raises(ValueError, match="of one manifest"):
        PairDataset(PhotoDataset(manifest), PlaceDataset(world))


def test_no_samples(tmp_path: Path) -> None:
    manifest = Manifest.from_rows(tmp_path, [], [])
    for dataset in (
        PlaceDataset(manifest),
        PhotoDataset(manifest),
        PairDataset(PhotoDataset(manifest), PlaceDataset(manifest)),
    ):
        assert len(dataset) == 0 and list(loader(dataset, 4, shuffle=True)) == []


def test_assign_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places, photos = [], []
    for i in range(300):
        lat, lon = move_m(60.0, 179.9999, *rng.uniform(-300, 300, 2))  # across the antimeridian
        places.append({"id": f"{i}", "lat": float(lat), "lon": float(lon), "satellite": "a"})
        lat, lon = move_m(60.0, 179.9999, *rng.uniform(-350, 350, 2))
        photos.append({"id": f"{i}", "image": "a", "lat": float(lat), "lon": float(lon)})
    photos += [{"id": "nowhere", "image": "a"}, {"id": "given", "image": "a", "lat": 0.0, "lon": 0.0, "place": "7"}]
    manifest = assign_places(Manifest.from_rows(tmp_path, places, photos), 25.0)
    got = manifest.photos["place"].to_pylist()
    lat, lon = (np.array([place[name] for place in places]) for name in ("lat", "lon"))
    for i, photo in enumerate(photos[:300]):
        away = great_circle_m(photo["lat"], photo["lon"], lat, lon)
        assert got[i] == (str(int(away.argmin())) if away.min() <= 25 else None)
    assert got[300:] == [None, "7"] and 100 < sum(place is not None for place in got) < 300


def test_colours_change_but_not_places() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 3)
    untouched = change_colours(image, ONLY_GEOMETRY, np.random.default_rng(0))
    np.testing.assert_array_equal(untouched, image)
    means = []
    for seed in range(200):
        got = change_colours(image, Augmentation(), np.random.default_rng(seed))
        assert got.shape == image.shape and got.dtype == np.uint8
        means.append(got.mean())
        same_again = change_colours(image, Augmentation(), np.random.default_rng(seed))
        np.testing.assert_array_equal(got, same_again)
    assert 10 < np.std(means) < 40 and abs(np.mean(means) - image.mean()) < 6
    grey = change_colours(image, Augmentation(grey=1.0, tint=0, noise=0), np.random.default_rng(1)).astype(int)
    assert np.ptp(grey, axis=2).max() <= 1
    flat = np.full((100, 100, 3), 128, np.uint8)
    noisy = [
        change_colours(
            flat,
            Augmentation(brightness=0, contrast=0, saturation=0, tint=0, noise=20, blur=0),
            np.random.default_rng(s),
        )
        for s in range(50)
    ]
    assert 5 < np.mean([n.std() for n in noisy]) < 15 and abs(np.mean([n.mean() for n in noisy]) - 128) < 0.2


def test_a_batch_changes_like_its_images() -> None:
    """The same draws give the same colours, within the fixed point of bytes."""
    how = Augmentation(noise=0, blur=0, grey=0.5)
    images = torch.randint(0, 256, (16, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = colour_matrix(draws.numpy(), how)
    batch = torch.einsum("bij,bjhw->bihw", weight[:, :, :3], images.float()) + weight[:, :, 3, None, None]
    batch = batch.clamp(0, 255)
    for image, changed, drawn in zip(images, batch, draws.numpy(), strict=True):

        class Drawn:
            def __init__(self, drawn: np.ndarray) -> None:
                self.left = [2 * drawn[:3] - 1, 2 * drawn[3:6] - 1]
                self.chances = np.array([drawn[6], 1.0])

            def uniform(self, *_: Any) -> Any:
                return self.left.pop(0) if self.left else 0.5

            def random(self, _: int) -> np.ndarray:
                return self.chances

        alone = change_colours(image.permute(1, 2, 0).numpy(), how, Drawn(drawn))  # type: ignore[arg-type]
        away = np.abs(alone.astype(float) - changed.permute(1, 2, 0).numpy())
        assert away.max() < 1 and away.mean() < 0.35


def test_what_a_photo_does_not_show_stays_black(world: Manifest) -> None:
    plain, varied = PhotoDataset(world), PhotoDataset(world, augment=Augmentation())
    for n in range(4):
        nothing = (plain[n]["photo"] == 0).all(0)
        assert nothing.any() and (varied[n]["photo"][:, nothing] == 0).all()


@pytest.mark.parametrize(("name", "value"), [("mirror", 1.5), ("brightness", 1.0), ("noise", -1), ("blur", -0.1)])
def test_augmentation_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Augmentation(**{name: value})
