"""torch datasets over a manifest.

Samples are dictionaries, in the manifest's order, and depend on nothing but the manifest, the settings, the seed and
the epoch: not on the number of workers. An image that cannot be read ends the iteration with an ImageError that says
which.

    places = PlaceDataset(manifest)
    for batch in loader(places, 64, workers=2):
        batch = finish(batch, "cuda")       # floats; the polar image is made here, on the device

Workers decode and augment bytes; `finish` makes the polar image of a whole batch and floats of everything.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from geoloc_fast.azimuth import shift_to_heading
from geoloc_fast.data.manifest import CALIBRATION_STATUS, Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg
from geoloc_fast.images.augment import Augmentation, change_colours, generator_of
from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG, pixels_across, to_cylindrical
from geoloc_fast.images.decode import decode_image, fit_panorama, stitch_views
from geoloc_fast.polar import polar_resample

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PairDataset",
    "PhotoDataset",
    "PlaceDataset",
    "assign_places",
    "collate",
    "finish",
    "loader",
]

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of bytes
IMAGENET_STD = (58.395, 57.12, 57.375)

_PLACE, _PHOTO, _SATELLITE, _PANORAMA, _SHARED = range(5)  # what a random generator is for
_NAN = math.nan


class _Images(Dataset[dict[str, Any]]):
    """What the three datasets share: the manifest, randomness, decoding."""

    def __init__(
        self, manifest: Manifest, panorama_size: tuple[int, int], augment: Augmentation | None, seed: int
    ) -> None:
        if len(panorama_size) != 2 or min(panorama_size) < 1:
            raise ValueError(f"panorama_size: expected (rows, columns), got {panorama_size!r}")
        self.manifest = manifest
        self.panorama_size = panorama_size
        self.augment = augment
        self.seed = seed
        # Shared with worker processes, which otherwise would keep the epoch they were started in.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that decides the random numbers."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Changes the epoch, and with it the random numbers. It also reaches workers that are already running."""
        self._epoch.fill_(epoch)

    def _generator(self, row: int, what: int) -> np.random.Generator:
        return generator_of(self.seed, self.epoch if self.augment is not None else 0, row, what)

    def _decode(self, path: str, at_least: tuple[int, int] | None = None) -> np.ndarray:
        return decode_image(self.manifest.open_image(path), path, at_least=at_least)

    def _coloured(self, image: np.ndarray, row: int, what: int) -> np.ndarray:
        return image if self.augment is None else change_colours(image, self.augment, self._generator(row, what))


class PlaceDataset(_Images):
    """Places, in the manifest's order.

    A sample holds:

    - `satellite`: uint8 [3, S, S], north-up; black where a place has none (`has_satellite`). `metres_per_pixel` of it,
      with `extent_m`; NaN where unknown.
    - `panorama`: uint8 [3, H, W], rolled so that its column 0 looks at `column0_deg + turn_deg`, if its heading is
      known or was measured (`heading_known`); as it is otherwise; black where a place has none (`has_panorama`).
    - `turn_deg`, `mirrored`: what augmentation did. `finish` samples the polar image accordingly.
    - `metres_per_pixel` of `satellite`, and `shown_m`, the metres that its image showed; NaN where unknown.
    - `calibration`: 0 to 3 for none, low quality, measured, known.
    - `place_row`, `place_id`, `place_lat`, `place_lon` (NaN if unknown).

    Args:
        satellite_size: S; the middle square of the satellite image is scaled to it.
        extent_m: cut the satellite image to this many metres, where its resolution is known.
        column0_deg: the frame: where column 0 of panoramas and polar images looks.
    """

    _COLUMNS = (
        "id", "lat", "lon", "satellite", "metres_per_pixel", "street", "street_views", "street_column0_deg",
        "calibration_column0_deg", "calibration_status",
    )  # fmt: skip

    def __init__(
        self,
        manifest: Manifest,
        *,
        satellite_size: int = 256,
        panorama_size: tuple[int, int] = (128, 512),
        extent_m: float | None = None,
        column0_deg: float = 180.0,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(manifest, panorama_size, augment, seed)
        self.satellite_size = satellite_size
        self.extent_m = extent_m
        self.column0_deg = column0_deg
        self._table = manifest.places.select(self._COLUMNS)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = _row(row, len(self))
        turn_deg, mirrored = self._geometry(row)
        return self._sample(row, turn_deg, mirrored)

    def _geometry(self, row: int, what: int = _PLACE) -> tuple[float, bool]:
        if self.augment is None:
            return 0.0, False
        rng = self._generator(row, what)
        columns = int(rng.integers(self.panorama_size[1]))
        mirrored = bool(rng.random() < self.augment.mirror)
        return (360.0 * columns / self.panorama_size[1] if self.augment.turn else 0.0), mirrored

    def _sample(self, row: int, turn_deg: float, mirrored: bool) -> dict[str, Any]:
        place = self._table.slice(row, 1).to_pylist()[0]
        satellite, shown_m = self._satellite(place, row, mirrored)
        kept_m = shown_m if self.extent_m is None else min(shown_m, self.extent_m)
        panorama, heading_known = self._panorama(place, row, turn_deg, mirrored)
        return {
            "satellite": _channels_first(satellite),
            "has_satellite": place["satellite"] is not None,
            "metres_per_pixel": kept_m / self.satellite_size,
            "shown_m": shown_m,
            "panorama": _channels_first(panorama),
            "has_panorama": place["street"] is not None or place["street_views"] is not None,
            "heading_known": heading_known,
            "calibration": 3 - CALIBRATION_STATUS.index(place["calibration_status"]),
            "turn_deg": turn_deg,
            "mirrored": mirrored,
            "column0_deg": self.column0_deg,
            "place_row": row,
            "place_id": place["id"],
            "place_lat": _NAN if place["lat"] is None else place["lat"],
            "place_lon": _NAN if place["lon"] is None else place["lon"],
        }

    def _satellite(self, place: dict[str, Any], row: int, mirrored: bool) -> tuple[np.ndarray, float]:
        """uint8 [S, S, 3], and the metres that its image shows."""
        size, resolution = self.satellite_size, place["metres_per_pixel"]
        if place["satellite"] is None:
            return np.zeros((size, size, 3), np.uint8), _NAN
        # Only at its own size do we know how many metres it shows.
        image = self._decode(place["satellite"], None if resolution is not None else (size, size))
        side = min(image.shape[:2])
        shown_m = _NAN if resolution is None else resolution * side
        if resolution is not None and self.extent_m is not None:
            side = max(1, min(side, round(self.extent_m / resolution)))
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = image[top : top + side, left : left + side]
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
        image = self._coloured(image, row, _SATELLITE)
        return (image[:, ::-1] if mirrored else image), shown_m

    def _panorama(self, place: dict[str, Any], row: int, turn_deg: float, mirrored: bool) -> tuple[np.ndarray, bool]:
        rows, columns = self.panorama_size
        column0 = place["calibration_column0_deg"]
        column0 = place["street_column0_deg"] if column0 is None else column0
        if place["street"] is not None:
            # Of a panorama the width decides: its rows are cut or stretched.
            image = self._decode(place["street"], (1, columns))
        elif place["street_views"] is not None:
            enough = (1, pixels_across(90.0, columns))
            image = stitch_views([self._decode(path, enough) for path in place["street_views"]], (rows, columns))
            column0 = 315.0 if column0 is None else column0
        else:
            return np.zeros((rows, columns, 3), np.uint8), False
        image = self._turned(image, column0, turn_deg, mirrored)
        return self._coloured(fit_panorama(image, (rows, columns)), row, _PANORAMA), column0 is not None

    def _turned(self, image: np.ndarray, column0: float | None, turn_deg: float, mirrored: bool) -> np.ndarray:
        """A panorama, or a map of one, whose column 0 looks at `column0`, in the frame of the sample."""
        width, columns = image.shape[1], self.panorama_size[1]
        if mirrored:
            # Pixel j is sampled at its left edge, so the mirror image begins one pixel after the mirrored beginning.
            image = image[:, ::-1]
            column0 = None if column0 is None else 360.0 / width - column0
        if column0 is not None:
            # A pixel of the result is the mean of width / columns pixels; its middle is what must lie at the angle.
            beyond = (width / columns - 1) / 2
            return np.roll(image, -round((self.column0_deg + turn_deg - column0) * width / 360.0 - beyond), axis=1)
        return np.roll(image, -round(turn_deg * width / 360.0), axis=1)


class PhotoDataset(_Images):
    """Photos, in the manifest's order, in azimuth columns.

    A sample holds:

    - `photo`: uint8 [3, H, w]: reprojected to cylindrical columns, 360 / W degrees each; `photo_width` is w.
    - `fov_deg` used, `fov_known`.
    - `heading_deg` of its centre, clockwise from true north (mirrored with the photo); NaN if unknown.
    - `photo_row`, `photo_id`, `photo_lat`, `photo_lon` (NaN if unknown).

    Args:
        panorama_size: (H, W) of the panoramas it will be compared with.
        assumed_fov_deg: of photos whose field of view is unknown.
        use_fov: whether a known field of view is used; the headline results do not. A photo that goes all the way
            round is always taken as such.
        crop_fov_deg: cut photos that go all the way round to this angle, at a random place: the limited field of view
            of the published protocols. Without `use_fov` the cut is stretched to the assumed one.

    Photos that `prepare` has reprojected are taken as they are.
    """

    _COLUMNS = ("id", "image", "lat", "lon", "heading_deg", "fov_deg")
    _PREPARED = ("projection", "strip_fov_deg")

    def __init__(
        self,
        manifest: Manifest,
        *,
        panorama_size: tuple[int, int] = (128, 512),
        assumed_fov_deg: float = 90.0,
        use_fov: bool = True,
        crop_fov_deg: float | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(manifest, panorama_size, augment, seed)
        for name, value in (("assumed_fov_deg", assumed_fov_deg), ("crop_fov_deg", crop_fov_deg)):
            if value is not None and not 360.0 / panorama_size[1] <= value <= 360:
                raise ValueError(f"{name}: expected at least one column and at most 360 degrees, got {value}")
        self.assumed_fov_deg = assumed_fov_deg
        self.use_fov = use_fov
        self.crop_fov_deg = crop_fov_deg
        there = [name for name in self._PREPARED if name in manifest.photos.column_names]
        self._table = manifest.photos.select([*self._COLUMNS, *there])
        if len(there) == 2 and not use_fov:
            fixed = pc.and_(
                self._table["projection"].is_valid(), pc.less_equal(self._table["fov_deg"], WIDEST_PHOTO_DEG)
            )
            if pc.any(fixed).as_py():
                raise ValueError(
                    "use_fov: expected True, since photos of this manifest were prepared with their own field of view, "
                    "got False; use the manifest it was prepared from"
                )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = _row(row, len(self))
        mirrored = self.augment is not None and bool(self._generator(row, _PHOTO).random() < self.augment.mirror)
        return self._sample(row, mirrored)

    def _sample(self, row: int, mirrored: bool) -> dict[str, Any]:
        photo = self._table.slice(row, 1).to_pylist()[0]
        rows, columns = self.panorama_size
        degrees = 360.0 / columns
        given = photo["fov_deg"]
        known = given is not None and (self.use_fov or given > WIDEST_PHOTO_DEG)
        fov = given if known else self.assumed_fov_deg
        fov = max(fov, degrees)
        linear = fov > WIDEST_PHOTO_DEG  # a panorama, or a part of one
        if photo.get("projection") is not None and photo.get("strip_fov_deg") is not None:
            fov, linear = photo["strip_fov_deg"], True
        if linear:
            image = self._decode(photo["image"], (1, max(1, round(fov / degrees))))
        else:
            image = self._decode(photo["image"], (1, pixels_across(fov, columns)))
        if mirrored:
            image = np.ascontiguousarray(image[:, ::-1])
        if linear:
            strip = fit_panorama(image, (rows, max(1, round(fov / degrees))))
        else:
            strip = to_cylindrical(image, fov, size=self.panorama_size)
        heading = _NAN if photo["heading_deg"] is None else photo["heading_deg"]
        heading = -heading if mirrored else heading
        if self.crop_fov_deg is not None and given == 360.0:
            start, width = self._cut(row)
            heading = self._heading_of_cut(start, width, heading)
            strip = np.roll(strip, -start, axis=1)[:, :width]
            fov = width * degrees
            if not self.use_fov and width < columns:
                known, fov = False, self.assumed_fov_deg
                strip = cv2.resize(strip, (round(fov / degrees), rows), interpolation=cv2.INTER_AREA)
        seen = strip.any(axis=2, keepdims=True)  # what lies above and below a photo is black, and stays it
        strip = self._coloured(strip, row, _PHOTO) * seen
        return {
            "photo": _channels_first(strip),
            "photo_width": strip.shape[1],
            "fov_deg": float(fov),
            "fov_known": known,
            "heading_deg": heading % 360.0,
            "photo_row": row,
            "photo_id": photo["id"],
            "photo_lat": _NAN if photo["lat"] is None else photo["lat"],
            "photo_lon": _NAN if photo["lon"] is None else photo["lon"],
        }

    def _cut(self, row: int) -> tuple[int, int]:
        """First column and columns. Not only under augmentation: the published tests cut too, once for all epochs."""
        columns = self.panorama_size[1]
        start = int(self._generator(row, _SHARED).integers(columns))
        return start, max(1, round((self.crop_fov_deg or 360.0) * columns / 360.0))

    def _heading_of_cut(self, start: int, width: int, heading_deg: float) -> float:
        left_deg = heading_deg - 180.0
        return float(shift_to_heading(torch.tensor(start), width, self.panorama_size[1], column0_deg=left_deg))

    def heading_deg(self, row: int) -> float:
        """The `heading_deg` of a sample without augmentation. It does not read the image."""
        row = _row(row, len(self))
        photo = self._table.slice(row, 1).to_pylist()[0]
        heading = _NAN if photo["heading_deg"] is None else photo["heading_deg"]
        if self.crop_fov_deg is not None and photo["fov_deg"] == 360.0:
            heading = self._heading_of_cut(*self._cut(row), heading)
        return heading % 360.0


class PairDataset(Dataset[dict[str, Any]]):
    """Photos with their place: the keys of both datasets in one sample.

    Row i is the i-th photo that has a `place`; `assign_places` gives one to photos with a position. If a sample is
    mirrored, photo and place are.

    Args:
        photos, places: over the same manifest, with the same augmentation and `panorama_size`.
        split: only photos of this split.
    """

    def __init__(self, photos: PhotoDataset, places: PlaceDataset, *, split: str | None = None) -> None:
        if photos.manifest is not places.manifest and photos.manifest != places.manifest:
            raise ValueError("photos, places: expected datasets of one manifest, got two")
        for name in ("panorama_size", "augment", "seed"):
            ours, theirs = getattr(photos, name), getattr(places, name)
            if ours != theirs:
                raise ValueError(f"photos, places: expected the same {name}, got {ours} and {theirs}")
        self.photos = photos
        self.places = places
        table = photos.manifest.photos
        place_rows = pc.index_in(table["place"], value_set=photos.manifest.places["id"].combine_chunks())
        wanted = table["place"].is_valid()
        if split is not None:
            wanted = pc.and_(wanted, pc.fill_null(pc.equal(table["split"], split), False))
        self._photo_rows = np.flatnonzero(wanted.to_numpy(zero_copy_only=False))
        self._place_rows = place_rows.take(self._photo_rows).to_numpy()

    @property
    def photo_rows(self) -> np.ndarray:
        """For every row, the row of its photo."""
        return self._photo_rows

    @property
    def place_rows(self) -> np.ndarray:
        """For every row, the row of its place."""
        return self._place_rows

    @property
    def epoch(self) -> int:
        """The epoch that decides the random numbers."""
        return self.photos.epoch

    def set_epoch(self, epoch: int) -> None:
        """Changes the epoch of photos and places. It also reaches workers that are already running."""
        self.photos.set_epoch(epoch)
        self.places.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._photo_rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = _row(row, len(self))
        photo_row, place_row = int(self._photo_rows[row]), int(self._place_rows[row])
        # By the photo, so that two photos of a place see it turned differently.
        turn_deg, mirrored = self.places._geometry(photo_row, _SHARED + 1)
        return {**self.photos._sample(photo_row, mirrored), **self.places._sample(place_row, turn_deg, mirrored)}


def _row(row: int, count: int) -> int:
    if not -count <= row < count:
        raise IndexError(f"row: expected 0 to {count - 1}, got {row}")
    return row % count


def _channels_first(image: np.ndarray) -> Tensor:
    """[h, w, 3] as [3, h, w]: a view in channels_last memory, which is how it is decoded."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def assign_places(manifest: Manifest, radius_m: float = 25.0) -> Manifest:
    """The manifest in which photos of unknown place have the nearest place within `radius_m`, if there is one."""
    if not manifest.has_positions:
        raise ValueError("manifest: expected places with positions, got none")
    places, photos = manifest.places, manifest.photos
    lat, lon = places["lat"].to_numpy(), places["lon"].to_numpy()
    order = np.argsort(lat, kind="stable")
    ids = places["id"].to_pylist()
    chosen = photos["place"].to_pylist()
    band = latitude_band_deg(radius_m)
    photo_lat, photo_lon = photos["lat"].to_numpy(), photos["lon"].to_numpy()
    first = np.searchsorted(lat[order], photo_lat - band, "left")
    last = np.searchsorted(lat[order], photo_lat + band, "right")
    for row, place in enumerate(chosen):
        if place is not None or not np.isfinite(photo_lat[row]):
            continue
        near = np.sort(order[first[row] : last[row]])
        away = great_circle_m(photo_lat[row], photo_lon[row], lat[near], lon[near])
        if len(near) and away.min() <= radius_m:
            chosen[row] = ids[near[int(away.argmin())]]
    column = photos.schema.get_field_index("place")
    return manifest.replace(photos=photos.set_column(column, "place", [chosen]))


# --- batches ---------------------------------------------------------------------------------------------


def collate(samples: Sequence[Mapping[str, Any]], *, photo_columns: int | None = None) -> dict[str, Any]:
    """A batch of samples: tensors of images and numbers, lists of text.

    Args:
        photo_columns: pad photos to this many columns, for one shape in all batches; default the widest of the
            batch. Columns beyond `photo_width` are black, and do not exist for any operator.
    """
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key == "photo":
            batch[key] = _padded(values, photo_columns)
        elif isinstance(values[0], Tensor):
            batch[key] = _stacked(values)
        elif isinstance(values[0], bool):
            batch[key] = torch.tensor(values, dtype=torch.bool)
        elif isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        elif isinstance(values[0], float):
            batch[key] = torch.tensor(values, dtype=torch.float64)
        else:
            batch[key] = values
    return batch


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Like torch.stack, into channels_last memory: one copy of what lies in memory, byte for byte."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def _padded(photos: Sequence[Tensor], columns: int | None) -> Tensor:
    widest = max(photo.shape[2] for photo in photos)
    if columns is None:
        columns = widest
    if columns < widest:
        raise ValueError(f"photo_columns: expected at least {widest}, the widest photo of the batch, got {columns}")
    batch = torch.zeros(len(photos), photos[0].shape[1], columns, 3, dtype=photos[0].dtype)
    for at, photo in enumerate(photos):
        batch[at, :, : photo.shape[2]] = photo.permute(1, 2, 0)
    return batch.permute(0, 3, 1, 2)


def finish(
    batch: Mapping[str, Any],
    device: str | torch.device,
    *,
    size: tuple[int, int] | None = None,
    border: str = "replicate",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The batch on a device, with images as normalised floats, and `polar` made from `satellite`.

    Missing images, and columns beyond the width of a photo, are exactly 0.

    Args:
        size: (H, W) of the polar image; default that of the panoramas.
        border: of `polar_resample`, beyond the satellite image.
        mean, std: per channel, of bytes.
    """
    device = torch.device(device)
    done: dict[str, Any] = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }
    offset = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
    scale = torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]
    if "satellite" in done:
        satellite = done.pop("satellite")
        middle = torch.full((len(satellite), 2), satellite.shape[-1] / 2, dtype=torch.float64, device=device)
        # Column c of a mirrored image was column S - 1 - c.
        middle[:, 1] -= done["mirrored"].to(torch.float64)
        polar = polar_resample(
            satellite,
            tuple(done["panorama"].shape[-2:]) if size is None else size,
            column0_deg=float(batch["column0_deg"][0]),
            center=middle,
            max_radius=satellite.shape[-1] / 2,
            heading_deg=done["turn_deg"],
            border=border,
            mean=mean,
            std=std,
            dtype=dtype,
        )
        done["polar"] = polar * done["has_satellite"].to(dtype)[:, None, None, None]
        panorama = done["panorama"].to(torch.float32).sub_(offset).div_(scale)
        done["panorama"] = panorama.mul_(done["has_panorama"][:, None, None, None]).to(dtype)
    if "photo" in done:
        photo = done["photo"].to(torch.float32).sub_(offset).div_(scale)
        exists = torch.arange(photo.shape[3], device=device) < done["photo_width"][:, None]
        done["photo"] = photo.mul_(exists[:, None, None, :]).to(dtype)
    return done


class _Order(Sampler[int]):
    """All rows once; shuffled by seed and epoch alone."""

    def __init__(self, dataset: Any, shuffle: bool, seed: int) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(len(self)))
        return iter(np.random.default_rng((self.seed, self.dataset.epoch)).permutation(len(self)).tolist())


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # one process a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers


class _Guarded(Dataset[Any]):
    """Hands an ImageError on as a sample: raised in a worker it would lose its fields."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        try:
            return self.dataset[row]
        except ImageError as error:
            return error


class _Collate:
    """Picklable, for start methods other than fork."""

    def __init__(self, photo_columns: int | None) -> None:
        self.photo_columns = photo_columns

    def __call__(self, samples: Sequence[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, ImageError):
                return sample
        return collate(samples, photo_columns=self.photo_columns)


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, ImageError):
                try:
                    raise batch
                finally:
                    # Error and frame would keep each other, and the workers, alive: ended by the garbage
                    # collector instead of here, they take ten seconds.
                    del batch
            yield batch


def loader(
    dataset: PlaceDataset | PhotoDataset | PairDataset,
    batch_size: int,
    *,
    workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    photo_columns: int | None = None,
    pin_memory: bool = False,
    batches: Sampler[list[int]] | None = None,
) -> DataLoader[dict[str, Any]]:
    """A DataLoader whose batches do not depend on the number of workers. Call `dataset.set_epoch` before each epoch.

    `batches` says which rows make each batch, instead of `batch_size`, `shuffle`, `seed` and `drop_last`.

    An image that cannot be read raises its ImageError here, in this process, when its batch is due.
    """
    which: dict[str, Any] = {"batch_sampler": batches}
    if batches is None:
        which = {"batch_size": batch_size, "sampler": _Order(dataset, shuffle, seed), "drop_last": drop_last}
    return _Loader(
        _Guarded(dataset),
        num_workers=workers,
        collate_fn=_Collate(photo_columns),
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        **which,
    )
