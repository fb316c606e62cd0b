"""From photos to answers: where each was taken, which way it looked, and how sure that is.

    decode -> azimuth columns -> strip -> the nearest places of the index -> candidates -> answer

Neighbouring places see much the same, so the nearest places are gathered into candidates: every place pulls with a
weight that falls off with its score, and those within `SPACING_M` of a better one join it. A candidate stands at the
weighted mean of those of its places that agree about the heading.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.errors import ImageError, PlaceIndexError
from geoloc_fast.geo.regions import Region
from geoloc_fast.geo.sphere import great_circle_m, move_m, offset_m
from geoloc_fast.images.cylindrical import pixels_across, to_cylindrical
from geoloc_fast.images.decode import decode_image, read_header
from geoloc_fast.images.exif import PhotoExif, parse_exif
from geoloc_fast.images.storage import MAX_FILE_BYTES
from geoloc_fast.index import Neighbours, PlaceIndex
from geoloc_fast.layers import QueryStrips
from geoloc_fast.locate.confidence import FEATURES, Confidence
from geoloc_fast.models import Geolocalizer

__all__ = [
    "SPACING_M",
    "Answer",
    "AzimuthColumns",
    "Candidate",
    "Locator",
    "candidates_of",
    "features_of",
    "usable_fov",
]

SPACING_M = 25.0  # no two candidates are nearer to one another
NEIGHBOURS = 64
SHARPNESS = 0.03  # a place this much below the best score pulls with 1/e of its weight
AGREEING_DEG = 45.0  # between the headings of neighbours
RADIUS_HOLDS = 0.68  # as the accuracy that telephones give
_SMALLEST_PX = 32
_WIDEST = 2.2  # width by height, from which on it is no perspective photo


class AzimuthColumns(NamedTuple):
    """A panorama, or a cut of one: columns that are azimuth already, at the scale of the model's panoramas."""

    columns: np.ndarray
    """uint8 [H, w, 3] of a model whose panoramas are (H, W); it sees w / W of the horizon."""


Image = str | os.PathLike[str] | bytes | np.ndarray | AzimuthColumns


@dataclass(frozen=True)
class Candidate:
    """A spot where the photo may have been taken.

    Attributes:
        lat, lon: degrees, WGS84.
        heading_deg: of the photo's centre, clockwise from true north, if it was taken here.
        probability: that the photo was taken within 25 m; None if the model has no confidence fitted.
        score: of its best place, a cosine.
        place: id of its best place in the index.
        places: how many of the nearest places it is made of.
        weight: their share of the weight of all of them.
    """

    lat: float
    lon: float
    heading_deg: float
    probability: float | None
    score: float
    place: int
    places: int
    weight: float


@dataclass(frozen=True)
class Answer:
    """What came of one photo.

    Attributes:
        image: its name.
        status: "located", "unknown" (not sure enough; the candidates are for a person to look at), or "unreadable".
        candidates: the answer first, then the runners-up, most weight first, `SPACING_M` apart at least.
        radius_m: the truth lies this near to the first candidate with probability 0.68; None if the candidates do not
            reach that together.
        problem: why it is unreadable.
        fov_deg, fov_from: the horizontal field of view it was seen with, and who said so: "given", "exif" or "assumed".
        exif_agrees: whether the position that the file claims lies within 100 m of the first candidate; None if it
            claims none. The claim has no part in the answer and is not repeated in it.
        seconds: how long decoding, encoding, search and the answer took, of a batch the mean.
        neighbours: the nearest places, [k] each, before they are gathered into candidates.
        features: what its probability is judged by, or would be.
    """

    image: str
    status: str
    candidates: tuple[Candidate, ...] = ()
    radius_m: float | None = None
    problem: str | None = None
    fov_deg: float | None = None
    fov_from: str | None = None
    exif_agrees: bool | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    neighbours: Neighbours | None = field(default=None, compare=False, repr=False)
    features: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def best(self) -> Candidate | None:
        """The answer, if there is one."""
        return self.candidates[0] if self.status == "located" else None


@dataclass(frozen=True)
class _Photo:
    columns: np.ndarray  # uint8 [H, w, 3]
    fov_deg: float
    fov_from: str
    exif: PhotoExif


class Locator:
    """Locates photos in an index with the model it was built with.

    Args:
        index: an opened index; its snapshot is searched.
        model: a model bundle that was loaded.
        confidence: how sure its answers are; without it no answer has a probability and none is "unknown".
        within: search this region only.
        least_probability: below it the answer is "unknown"; default what `confidence` says.
        neighbours: how many of the nearest places are looked up; candidates are made of the first `NEIGHBOURS`.
    """

    def __init__(
        self,
        index: PlaceIndex,
        model: Geolocalizer,
        *,
        confidence: Confidence | None = None,
        within: Region | None = None,
        least_probability: float | None = None,
        neighbours: int = NEIGHBOURS,
    ) -> None:
        index.check_model(model.fingerprint)
        if least_probability is not None and not 0 <= least_probability <= 1:
            raise ValueError(f"least_probability: expected 0 to 1, got {least_probability}")
        self.index = index
        self.model = model
        self.confidence = confidence
        self.within = within
        self.least_probability = least_probability
        self.neighbours = max(NEIGHBOURS, neighbours)
        self._places = len(index) if within is None else len(index.ids(within))
        if not self._places:
            where = "has no places" if within is None else f"has no places within {within}"
            raise PlaceIndexError(f"{index.path}: {where}; add some with `geoloc-fast index add`")

    def locate(
        self,
        images: Iterable[Image],
        *,
        fov_deg: float | Sequence[float | None] | None = None,
        candidates: int = 5,
        batch: int = 1,
    ) -> Iterator[Answer]:
        """An answer for each photo, in order, as they come.

        Args:
            images: paths, contents of files, uint8 [h, w, 3] arrays (RGB, upright), or `AzimuthColumns`.
            fov_deg: horizontal field of view of all of them, or of each; default (and None) what the file says,
                else the model's assumption. Azimuth columns have their own.
            candidates: at most this many each.
            batch: photos that are encoded and searched together: faster, but the first answer comes later.
        """
        given = [fov_deg] if fov_deg is None or isinstance(fov_deg, (int, float)) else fov_deg
        for value in given:
            if value is not None and not usable_fov(value):
                raise ValueError(f"fov_deg: expected 10 to 150 degrees, got {value}")
        if candidates < 1 or batch < 1:
            raise ValueError(f"candidates, batch: expected at least 1, got {candidates} and {batch}")
        numbered = enumerate(images)
        while part := list(islice(numbered, batch)):
            yield from self._batch(part, [given[n if len(given) > 1 else 0] for n, _ in part], candidates)

    def _batch(self, images: list[tuple[int, Image]], fov_deg: list[float | None], candidates: int) -> list[Answer]:
        started = time.perf_counter()
        names = [_name(image, number) for number, image in images]
        photos: dict[int, _Photo] = {}
        answers: dict[int, Answer] = {}
        for n, (name, (_, image)) in enumerate(zip(names, images, strict=True)):
            try:
                photos[n] = self._load(image, name, fov_deg[n])
            except ImageError as error:
                answers[n] = Answer(name, "unreadable", problem=error.reason)
        decoded = encoded = searched = time.perf_counter()
        if photos:
            strips, width = self.encode([photo.columns for photo in photos.values()])
            encoded = time.perf_counter()
            query = {self.model.layers[0].name: QueryStrips(strips, width)}
            found = self.index.search(query, self.neighbours, layers=self.model.layers, within=self.within)
            searched = time.perf_counter()
            for row, (n, photo) in enumerate(photos.items()):
                share = int(width[row]) / self.model.config.strip[2]
                answers[n] = self._answer(names[n], photo, found.photo(row), share, candidates)
        ends = (started, decoded, encoded, searched, time.perf_counter())
        stages = ("decode", "encode", "search", "answer")
        seconds = {stage: (ends[i + 1] - ends[i]) / len(images) for i, stage in enumerate(stages)}
        return [replace(answers[n], seconds=seconds) for n in range(len(images))]

    def _load(self, image: Image, name: str, fov_deg: float | None) -> _Photo:
        size = self.model.config.image_size
        exif = PhotoExif()
        if isinstance(image, AzimuthColumns):
            columns = image.columns
            shape = list(columns.shape)
            if columns.dtype != np.uint8 or shape[:1] + shape[2:] != [size[0], 3] or not 1 <= shape[1] <= size[1]:
                raise TypeError(
                    f"images: expected columns uint8 [{size[0]}, 1 to {size[1]}, 3], got {columns.dtype} {shape}"
                )
            return _Photo(columns, 360 * columns.shape[1] / size[1], "given", exif)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TypeError(f"images: expected uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
            height, width = image.shape[:2]
        else:
            content = image if isinstance(image, bytes) else _read(Path(image), name)
            header = read_header(content, name)
            height, width = header.height, header.width
            exif = parse_exif(header.exif, (height, width))
        if min(height, width) < _SMALLEST_PX:
            raise ImageError(name, f"is {width} x {height} pixels; at least {_SMALLEST_PX} each way are needed")
        if width > _WIDEST * height:
            raise ImageError(name, f"{width} x {height} pixels look like a panorama; cut a view of it out as a photo")
        fov, source = (fov_deg, "given") if fov_deg is not None else (exif.fov_deg, "exif")
        if fov is None or not usable_fov(fov):
            fov, source = self.model.config.assumed_fov_deg, "assumed"
        if not isinstance(image, np.ndarray):
            image = decode_image(content, name, at_least=(1, pixels_across(fov, size[1])))
        return _Photo(to_cylindrical(image, fov, size=size), fov, source, exif)

    def encode(self, photos: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Strips and their widths of photos in azimuth columns, uint8 [H, w, 3]."""
        widest = max(photo.shape[1] for photo in photos)
        batch = np.zeros((len(photos), photos[0].shape[0], widest, 3), np.uint8)
        for row, photo in zip(batch, photos, strict=True):
            row[:, : photo.shape[1]] = photo
        with torch.inference_mode():
            found = self.model.encode_photo(
                torch.from_numpy(batch).permute(0, 3, 1, 2), torch.tensor([photo.shape[1] for photo in photos])
            )
        return found.strips.cpu(), found.width.cpu()

    def _answer(self, name: str, photo: _Photo, neighbours: Neighbours, share: float, limit: int) -> Answer:
        nearest = neighbours.first(NEIGHBOURS)
        found = candidates_of(nearest)
        features = features_of(found, nearest, share, self._places)
        status, radius = "located", None
        if self.confidence is not None:
            first = float(self.confidence.probability(features[None])[0])
            found = _with_probabilities(found, first, self.confidence.further_down)
            least = self.confidence.threshold if self.least_probability is None else self.least_probability
            status = "located" if first >= least else "unknown"
            radius = _radius_m(found, self.confidence)
        agrees = None
        if photo.exif.lat is not None:
            agrees = bool(great_circle_m(found[0].lat, found[0].lon, photo.exif.lat, photo.exif.lon) <= 100.0)
        return Answer(
            name,
            status,
            tuple(found[:limit]),
            radius,
            fov_deg=round(photo.fov_deg, 2),
            fov_from=photo.fov_from,
            exif_agrees=agrees,
            neighbours=neighbours,
            features=features,
        )  # fmt: skip


def usable_fov(degrees: float) -> bool:
    """Whether a perspective photo can be shown with this field of view."""
    return 10 <= degrees <= 150


def candidates_of(neighbours: Neighbours) -> list[Candidate]:
    """Candidates from the nearest places of one photo ([k] each), most weight first."""
    there = neighbours.id >= 0
    ids, score, heading, lat, lon = (
        values[there]
        for values in (neighbours.id, neighbours.score, neighbours.heading_deg, neighbours.lat, neighbours.lon)
    )
    weight = np.exp((score.astype(np.float64) - score[0]) / SHARPNESS)
    weight /= weight.sum()
    near = great_circle_m(lat[:, None], lon[:, None], lat, lon) <= SPACING_M
    left = np.ones(len(ids), bool)
    found = []
    while left.any():
        seed = int(left.argmax())
        members = np.flatnonzero(left & near[seed])
        left[members] = False
        # A neighbour that looks another way was matched by something else.
        agree = np.abs((heading[members] - heading[seed] + 180) % 360 - 180) <= AGREEING_DEG
        pull = weight[members] * agree / (weight[members] * agree).sum()
        east, north = offset_m(lat[seed], lon[seed], lat[members], lon[members])
        to_lat, to_lon = move_m(lat[seed], lon[seed], float(pull @ east), float(pull @ north))
        turn = np.radians(heading[members])
        middle = math.degrees(math.atan2(float(pull @ np.sin(turn)), float(pull @ np.cos(turn)))) % 360.0
        best = float(score[seed]), int(ids[seed])
        found.append(
            Candidate(float(to_lat), float(to_lon), middle, None, *best, len(members), float(weight[members].sum()))
        )
    found.sort(key=lambda candidate: (-candidate.weight, candidate.place))
    at_lat, at_lon = (np.array([getattr(candidate, name) for candidate in found]) for name in ("lat", "lon"))
    apart = great_circle_m(at_lat[:, None], at_lon[:, None], at_lat, at_lon) >= SPACING_M
    kept: list[int] = []
    for n in range(len(found)):  # means may have moved together
        if apart[n, kept].all():
            kept.append(n)
    return [found[n] for n in kept]


def features_of(candidates: list[Candidate], neighbours: Neighbours, width_share: float, places: int) -> np.ndarray:
    """What `Confidence` judges an answer by; in the order of FEATURES."""
    scores = neighbours.score[neighbours.id >= 0].astype(np.float64)
    first = candidates[0]
    runner_up = candidates[1] if len(candidates) > 1 else None
    rest = scores[len(scores) // 4 :]
    values = {
        "score": first.score,
        "lead": first.score - (runner_up.score if runner_up else 0.0),
        "stands_out": (first.score - rest.mean()) / (rest.std() + 0.01),
        "weight": first.weight,
        "runner_up": runner_up.weight if runner_up else 0.0,
        "width": width_share,
        "log_places": math.log(places),
    }
    return np.array([values[name] for name in FEATURES])


def _with_probabilities(candidates: list[Candidate], first: float, further_down: float) -> list[Candidate]:
    """The first has its own; what is left goes to the others by weight, as far as they are ever right."""
    others = sum(candidate.weight for candidate in candidates[1:])
    rest = (1 - first) * further_down / others if others else 0.0
    return [
        replace(candidate, probability=min(first, candidate.weight * rest) if n else first)
        for n, candidate in enumerate(candidates)
    ]


def _radius_m(candidates: list[Candidate], confidence: Confidence) -> float | None:
    first = candidates[0]
    probability = first.probability or 0.0
    if probability >= RADIUS_HOLDS:
        return confidence.within(RADIUS_HOLDS / probability)
    others = candidates[1:]
    lat, lon = (np.array([getattr(other, name) for other in others]) for name in ("lat", "lon"))
    away = great_circle_m(first.lat, first.lon, lat, lon).tolist()
    by_distance = sorted((metres, other.probability or 0.0) for metres, other in zip(away, others, strict=True))
    for metres, more in by_distance:
        probability += more
        if probability >= RADIUS_HOLDS:
            return metres
    return None


def _name(image: Image, number: int) -> str:
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"


def _read(path: Path, name: str) -> bytes:
    try:
        # Without waiting: a named pipe would hold us for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(name, f"cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "is not a plain file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(name, f"is {status.st_size} bytes long; at most {MAX_FILE_BYTES} are read")
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        return file.read(MAX_FILE_BYTES)
