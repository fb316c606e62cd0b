"""From queries to answers: position, heading and probability.

    decode -> strips by layer -> the nearest places of the index -> candidates -> answer

A locator knows a model by its contract alone, and takes what that model takes: photos, azimuth columns, text.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from geoloc_fast._native import __version__
from geoloc_fast.errors import ImageError, PlaceIndexError, WordError
from geoloc_fast.geo.regions import Region
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import pixels_across
from geoloc_fast.images.decode import decode_image, read_header
from geoloc_fast.images.exif import PhotoExif, parse_exif
from geoloc_fast.images.storage import read_file
from geoloc_fast.index import Coverage, Neighbours, Searchable
from geoloc_fast.layers import Layer, QueryStrips
from geoloc_fast.locate.candidates import (
    NEIGHBOURS,
    Candidate,
    candidates_of,
    features_of,
    radius_m,
    with_probabilities,
)
from geoloc_fast.locate.confidence import Confidence
from geoloc_fast.locate.together import DEPTH, Beside, add_up
from geoloc_fast.models.contract import AzimuthColumns, Model, Photo, Query, Text
from geoloc_fast.models.text.words import checked_text

__all__ = ["Answer", "Given", "Locator", "Provenance", "content_of", "share_of_turn", "usable_fov"]

_SMALLEST_PX = 32
_WIDEST = 2.2  # width by height, from which on it is no perspective photo

Given = Query | str | os.PathLike[str] | bytes | np.ndarray
"""What a locator takes: a query, or the image of a photo."""


class Provenance(NamedTuple):
    """What an answer is from."""

    model: str
    """Its name, its fingerprint, and what it was trained on."""
    model_fingerprint: str
    trained_on: str
    index_id: str
    """The index's id, and the commit that was searched."""
    index_commit: int
    version: str
    """Of this package."""


@dataclass(frozen=True)
class Answer:
    """What came of one query.

    Attributes:
        image: its name.
        status: "located", "unknown" (not sure enough; the candidates are for a person to look at), "unverified"
            (nothing judges answers of this kind: no probability, candidates in their order), or "unreadable".
        candidates: the answer first, then the runners-up, most weight first, `SPACING_M` apart at least.
        radius_m: the truth lies this near to the first candidate with probability 0.68; None if the candidates do not
            reach that together.
        problem: why it is unreadable.
        fov_deg, fov_from: the horizontal field of view it was seen with, and who said so: "given", "exif", "assumed",
            or "tried": of those that the model tries the one with which it fits best.
        exif_agrees: whether the position that the file claims lies within 100 m of the first candidate; None if it
            claims none. The claim has no part in the answer and is not repeated in it.
        provenance: model, index and commit.
        exact: whether no place that was not looked at can belong among the nearest.
        coverage: how much of an index in shards was searched; None of one index, which is searched whole. Where it is
            not complete there is no probability and no "unknown": what is known of both holds for the whole alone.
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
    provenance: Provenance | None = None
    exact: bool = True
    coverage: Coverage | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    neighbours: Neighbours | None = field(default=None, compare=False, repr=False)
    features: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def best(self) -> Candidate | None:
        """The answer, if there is one."""
        return self.candidates[0] if self.status == "located" else None


@dataclass(frozen=True)
class _Shown:
    query: Query  # as the model takes it
    fov_deg: float | None = None
    fov_from: str | None = None
    exif: PhotoExif = field(default_factory=PhotoExif)


class Locator:
    """Locates queries in an index with the model it was built with. Safe to use from several threads.

    Args:
        index: an opened index; its snapshot is searched. Or several of one model, as one.
        model: as `load_model` gives it.
        confidence: how sure its answers are; without it, and where other layers take part than those it was fitted
            with, no answer has a probability, and all are "unverified".
        within: search this region only.
        least_probability: below it the answer is "unknown"; default what `confidence` says.
        neighbours: how many of the nearest places are looked up; candidates are made of the first `NEIGHBOURS`.
        beside: an index of descriptions of the same places, for `locate(..., text=...)`.
    """

    def __init__(
        self,
        index: Searchable,
        model: Model,
        *,
        confidence: Confidence | None = None,
        within: Region | None = None,
        least_probability: float | None = None,
        neighbours: int = NEIGHBOURS,
        beside: Beside | None = None,
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
        self.beside = beside
        self._places = len(index) if within is None else len(index.ids(within))
        if not self._places:
            where = "has no places" if within is None else f"has no places within {within}"
            raise PlaceIndexError(f"{index.path}: {where}; add some with `geoloc-fast index add`")

    def locate(
        self,
        queries: Iterable[Given],
        *,
        fov_deg: float | Sequence[float | None] | None = None,
        candidates: int = 5,
        batch: int = 1,
        text: str | None = None,
        use_exif: bool = True,
    ) -> Iterator[Answer]:
        """An answer for each query, in order, as they come.

        Args:
            queries: photos as paths, contents of files, uint8 [h, w, 3] arrays (RGB, upright) or `Photo`; or
                `AzimuthColumns`; or `Text`: whatever the model takes.
            fov_deg: horizontal field of view of all photos, or of each; default (and None) what the `Photo` says, else
                its file, else what the model assumes or tries. Azimuth columns have their own.
            candidates: at most this many each.
            batch: queries that are encoded and searched together: faster, but the first answer comes later.
            text: a description of where they were taken, which counts beside each of them (`beside`). The confidence
                of the photos' model says nothing of such an answer: it is "unverified".
            use_exif: whether a file may say its field of view.
        """
        if text is not None and self.beside is None:
            raise ValueError("text: expected a locator with an index of descriptions beside it, got none")
        said = None if text is None or self.beside is None else self.beside.search(text)
        given = [fov_deg] if fov_deg is None or isinstance(fov_deg, (int, float)) else fov_deg
        for value in given:
            if value is not None and not usable_fov(value):
                raise ValueError(f"fov_deg: expected 10 to 150 degrees, got {value}")
        if candidates < 1 or batch < 1:
            raise ValueError(f"candidates, batch: expected at least 1, got {candidates} and {batch}")
        numbered = enumerate(queries)
        while part := list(islice(numbered, batch)):
            fov = [given[n if len(given) > 1 else 0] for n, _ in part]
            yield from self._batch(part, fov, candidates, said, use_exif)

    def _batch(
        self, queries: list[tuple[int, Given]], fov_deg: list[float | None], candidates: int, said: Neighbours | None,
        use_exif: bool,
    ) -> list[Answer]:  # fmt: skip
        started = time.perf_counter()
        names = [_name(query, number) for number, query in queries]
        shown: dict[int, _Shown] = {}
        answers: dict[int, Answer] = {}
        for n, (name, (_, query)) in enumerate(zip(names, queries, strict=True)):
            try:
                shown[n] = self._show(query, name, fov_deg[n], use_exif)
            except ImageError as error:
                answers[n] = Answer(name, "unreadable", problem=error.reason, provenance=self._provenance())
            except WordError as error:
                answers[n] = Answer(name, "unreadable", problem=str(error), provenance=self._provenance())
        decoded = encoded = searched = time.perf_counter()
        strips = {}
        if shown:
            try:
                strips = self.model.encode_queries([one.query for one in shown.values()])
            except WordError:  # words or a script that only the model knows it cannot read: which of them?
                for n in list(shown):
                    try:
                        self.model.encode_queries([shown[n].query])
                    except WordError as error:
                        answers[n] = Answer(names[n], "unreadable", problem=str(error), provenance=self._provenance())
                        del shown[n]
                strips = self.model.encode_queries([one.query for one in shown.values()])
        if shown:
            encoded = time.perf_counter()
            depth = self.neighbours if said is None else max(self.neighbours, min(DEPTH, self._places))
            found = self.index.search(strips, depth, layers=self.model.layers, within=self.within)
            searched = time.perf_counter()
            share = share_of_turn(self.model.layers, strips, len(shown))
            judge = self.confidence
            if said is not None or (judge is not None and self.index.filled.intersection(strips) != set(judge.layers)):
                judge = None
            for row, (n, one) in enumerate(shown.items()):
                nearest = found.photo(row)
                if said is not None and self.beside is not None:
                    nearest = add_up(nearest, said, self.beside.ratio, self.neighbours)
                answers[n] = self._answer(names[n], one, nearest, float(share[row]), candidates, judge, found.coverage)
        ends = (started, decoded, encoded, searched, time.perf_counter())
        stages = ("decode", "encode", "search", "answer")
        seconds = {stage: (ends[i + 1] - ends[i]) / len(queries) for i, stage in enumerate(stages)}
        return [replace(answers[n], seconds=seconds) for n in range(len(queries))]

    def _show(self, query: Given, name: str, fov_deg: float | None, use_exif: bool) -> _Shown:
        """The query as the model takes it."""
        takes = self.model.query_input
        kind = {AzimuthColumns: "columns", Text: "text"}.get(type(query), "photo")
        if kind not in takes.takes:
            raise ValueError(f"queries: model {self.model.name} takes {' and '.join(takes.takes)}, got {kind}")
        if isinstance(query, Text):
            return _Shown(Text(checked_text(query.text)))
        if isinstance(query, AzimuthColumns):
            columns, (rows, turn) = query.columns, takes.size
            shape = list(columns.shape)
            if columns.dtype != np.uint8 or shape[:1] + shape[2:] != [rows, 3] or not 1 <= shape[1] <= turn:
                raise TypeError(
                    f"queries: expected columns uint8 [{rows}, 1 to {turn}, 3], got {columns.dtype} {shape}"
                )
            return _Shown(query, 360 * columns.shape[1] / turn, "given")
        photo = query if isinstance(query, Photo) else Photo(query)
        return self._decode(photo.image, name, photo.fov_deg if fov_deg is None else fov_deg, use_exif)

    def _decode(
        self, image: str | os.PathLike[str] | bytes | np.ndarray, name: str, fov_deg: float | None, use_exif: bool
    ) -> _Shown:
        takes, exif = self.model.query_input, PhotoExif()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TypeError(f"queries: expected uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
            height, width = image.shape[:2]
        else:
            content = image if isinstance(image, bytes) else read_file(image, name)
            header = read_header(content, name)
            height, width = header.height, header.width
            exif = parse_exif(header.exif, (height, width))
        if min(height, width) < _SMALLEST_PX:
            raise ImageError(name, f"is {width} x {height} pixels; at least {_SMALLEST_PX} each way are needed")
        if width > _WIDEST * height:
            raise ImageError(
                name, f"{width} x {height} pixels look like a panorama; crop a view from it and use that as a photo"
            )
        fov, source = (fov_deg, "given") if fov_deg is not None else (exif.fov_deg if use_exif else None, "exif")
        if fov is None or not usable_fov(fov):
            fov, source = None, "tried" if takes.tried_fov_deg else "assumed"
        if not isinstance(image, np.ndarray):
            widest = max(takes.readings_deg) if fov is None else fov
            image = decode_image(content, name, at_least=(1, pixels_across(widest, takes.size[1])))
        return _Shown(Photo(image, fov), fov, source, exif)

    def _answer(
        self, name: str, shown: _Shown, neighbours: Neighbours, share: float, limit: int, judge: Confidence | None,
        coverage: Coverage | None,
    ) -> Answer:  # fmt: skip
        nearest = neighbours.first(NEIGHBOURS)
        found = candidates_of(nearest)
        features = features_of(found, nearest, share, content_of(shown.query), self._places)
        status, radius = "unverified", None
        if coverage is not None and not coverage.complete:
            judge = None  # what it knows holds for the whole index alone
        if judge is not None and self._places < judge.least_places:
            status = "unknown"  # too small a region to tell
        elif judge is not None:
            first = float(judge.probability(features[None])[0])
            found = with_probabilities(found, first, judge.further_down)
            least = judge.threshold if self.least_probability is None else self.least_probability
            status = "located" if first >= least else "unknown"
            radius = radius_m(found, judge)
        best, agrees, fov_deg = found[0], None, shown.fov_deg
        if shown.fov_from in ("assumed", "tried"):  # which of them, the search has found out
            fov_deg = self.model.query_input.readings_deg[int(neighbours.reading[0])]
        if shown.exif.lat is not None and best.lat is not None:
            agrees = bool(great_circle_m(best.lat, best.lon, shown.exif.lat, shown.exif.lon) <= 100.0)
        keys = self._keys([candidate.place for candidate in found[:limit]])
        return Answer(
            name,
            status,
            tuple(replace(candidate, key=key) for candidate, key in zip(found, keys, strict=False)),
            radius,
            fov_deg=None if fov_deg is None else round(fov_deg, 2),
            fov_from=shown.fov_from,
            exif_agrees=agrees,
            provenance=self._provenance(),
            exact=bool(neighbours.exact),
            coverage=coverage,
            neighbours=neighbours,
            features=features,
        )

    def _keys(self, places: list[int]) -> list[str]:
        """Of places that were found; of one that has been removed since, after a `refresh` of the index, none."""
        try:
            return [place.key for place in self.index.places(places)]
        except KeyError:
            return [key for place in places for key in (self._keys([place]) if len(places) > 1 else [""])]

    def _provenance(self) -> Provenance:
        model, index = self.model, self.index
        return Provenance(
            model.name, str(model.fingerprint), model.trained_on, index.index_id, index.commit, __version__
        )


def content_of(query: Query) -> float:
    """How much there is to see, whatever the size: the spread of brightness over 16 x 16 parts, 0 for a blank and next
    to 0 for noise. Of a text a constant."""
    if isinstance(query, Text):
        return 0.25
    image = query.columns if isinstance(query, AzimuthColumns) else query.image
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return float(cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA).std() / 255)


def usable_fov(degrees: float) -> bool:
    """Whether a perspective photo can be shown with this field of view."""
    return math.isfinite(degrees) and 10 <= degrees <= 150


def share_of_turn(layers: Sequence[Layer], strips: Mapping[str, QueryStrips], batch: int) -> np.ndarray:
    """[B] how much of the whole turn each query sees, in its first reading; 1 without a layer that has a heading."""
    for layer in layers:
        if layer.name in strips and layer.column0_deg is not None and layer.strip[2] > 1:
            query = strips[layer.name]
            if query.width is None:
                return np.full(batch, query.strips.shape[3] / layer.strip[2])
            width = query.width.cpu().numpy()
            if query.query is not None:
                width = width[np.searchsorted(query.query.cpu().numpy(), np.arange(batch))]
            return width / layer.strip[2]
    return np.ones(batch)


def _name(query: Given, number: int) -> str:
    if isinstance(query, Text):
        return f"text {number}"
    image = query.image if isinstance(query, Photo) else query
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
