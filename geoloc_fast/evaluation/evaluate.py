"""Measure a locator's answers on photos of known position, one photo after the other, so that memory does not grow.

How the places were ranked is measured as `protocol` does it; beside it stands what became of the ranking:
the answers, how sure they were, and how long they took. Every photo stays in every denominator: one that cannot be read
is wrong, and so is one with no place in range. A photo without a position is right at its own place, by its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from geoloc_fast.data.datasets import PhotoDataset
from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.evaluation.metrics import heading_error_deg, one_percent
from geoloc_fast.evaluation.protocol import RADII_M, Measured, Near, table
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG
from geoloc_fast.locate.candidates import NEIGHBOURS, Candidate
from geoloc_fast.locate.confidence import RIGHT_M, calibration_error, ranking_quality
from geoloc_fast.locate.locator import Answer, Given, Locator, usable_fov
from geoloc_fast.models.contract import AzimuthColumns, QueryInput
from geoloc_fast.progress import Progress

__all__ = [
    "RECALL_K", "Evaluation", "Truth", "Views", "contents", "evaluate", "evaluate_views", "fov_label",
    "neighbours_for", "summary", "truth_of", "views_of",
]  # fmt: skip

RECALL_K = (1, 5, 10)
FOV_DEG = (70, 90, 120, 180)
_MOST_NEIGHBOURS = 1024


class Truth(NamedTuple):
    """Where photos were taken, n of them."""

    lat: np.ndarray
    """float64 [n]; NaN where unknown."""
    lon: np.ndarray
    heading_deg: np.ndarray
    """float64 [n]; NaN where unknown."""
    place: np.ndarray
    """int64 [n], id in the index of the photo's own place, which counts where it has no position; -1 where unknown."""

    def take(self, rows: Sequence[int] | np.ndarray) -> Truth:
        return Truth(*(values[rows] for values in self))

    def away_m(self, n: int, lat: Any, lon: Any, place: Any) -> np.ndarray:
        """Metres from the n-th photo to answers: 0 at its own place and inf elsewhere if it has no position."""
        if np.isfinite(self.lat[n]):
            with np.errstate(invalid="ignore"):
                away = great_circle_m(self.lat[n], self.lon[n], np.asarray(lat, float), np.asarray(lon, float))
            return np.where(np.isfinite(away), away, np.inf)
        return np.where((np.asarray(place) == self.place[n]) & (self.place[n] >= 0), 0.0, np.inf)


@dataclass
class Evaluation:
    """What is kept of each photo; distances and headings are NaN where there is no answer.

    `rank`, `place_away_m` and `place_error_deg` are of the ranked places, the rest of the answer.
    """

    places: int
    neighbours: int  # so many were looked up
    rank: list[float] = field(default_factory=list)  # of the first place in range, from 0; inf if none
    place_away_m: list[float] = field(default_factory=list)
    place_error_deg: list[float] = field(default_factory=list)
    reachable: list[bool] = field(default_factory=list)
    away_m: list[float] = field(default_factory=list)  # to the first candidate
    heading_error_deg: list[float] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    radius_m: list[float] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)  # names of groupings to the group of each photo
    photo: list[int] | None = None  # which photo each is a turn of, where photos are shown several times

    def add(self, answer: Answer, truth: Truth, n: int, reachable: bool) -> None:
        """What came of the n-th photo of `truth`."""
        nan = float("nan")
        self.status.append(answer.status)
        self.reachable.append(reachable)
        self.seconds.append(dict(answer.seconds))
        found = answer.neighbours
        if found is None:
            self.rank.append(np.inf)
            self.place_away_m.append(np.inf)
            for values in (
                self.place_error_deg, self.away_m, self.heading_error_deg, self.probability, self.radius_m,
            ):  # fmt: skip
                values.append(nan)
            return
        first, heading_deg = answer.candidates[0], float(truth.heading_deg[n])
        away = truth.away_m(n, found.lat, found.lon, found.id)
        near = away <= RIGHT_M
        self.rank.append(float(near.argmax()) if near.any() else np.inf)
        self.place_away_m.append(float(away[0]))
        self.place_error_deg.append(float(heading_error_deg(found.heading_deg[0], heading_deg)))
        self.away_m.append(_away_m(truth, n, first))
        heading = nan if first.heading_deg is None else first.heading_deg
        self.heading_error_deg.append(float(heading_error_deg(heading, heading_deg)))
        self.probability.append(nan if first.probability is None else first.probability)
        self.radius_m.append(nan if answer.radius_m is None else answer.radius_m)

    @property
    def one_percent(self) -> int | None:
        """The k of R@1%, None where fewer neighbours were looked up."""
        k = one_percent(self.places)
        return k if k <= self.neighbours else None

    @property
    def right(self) -> np.ndarray:
        """bool [N]: whether the first candidate lies in range, however sure the answer was."""
        return np.nan_to_num(np.array(self.away_m), nan=np.inf) <= RIGHT_M

    @property
    def milliseconds(self) -> np.ndarray:
        """[N]: all stages of each photo together."""
        return np.array([1000 * sum(seconds.values()) for seconds in self.seconds])

    def metrics(self, seed: int = 0) -> dict[str, Any]:
        """Plain values, printable as JSON: those of `Measured.metrics`, and of the answers, confidence and time."""
        ranked = Measured(
            RECALL_K, self.one_percent, RIGHT_M, self.places, np.array(self.rank), np.array(self.place_away_m),
            np.array(self.place_error_deg), np.array(self.reachable, bool),
            {name: np.array(labels) for name, labels in self.groups.items()}, self.neighbours,
            None if self.photo is None else np.array(self.photo),
        )  # fmt: skip
        count, right, away = len(self.rank), self.right, np.array(self.away_m)
        error = np.array(self.heading_error_deg)[right]
        error = error[np.isfinite(error)]
        given = np.array([status == "located" for status in self.status], bool)
        total = self.milliseconds
        stages = sorted({stage for seconds in self.seconds for stage in seconds})
        found: dict[str, Any] = {
            **ranked.metrics(seed=seed),
            "unreadable": self.status.count("unreadable"),
            "answers": {
                "right": float(right.mean()) if count else None,
                "median_error_m": _median(away),
                "heading_error_deg_when_right": {
                    "mean": float(error.mean()) if error.size else None,
                    "std": float(error.std()) if error.size else None,
                    "median_absolute": float(np.median(np.abs(error))) if error.size else None,
                },
            },
            "latency_ms": {
                "median": float(np.median(total)) if count else None,
                "p95": float(np.quantile(total, 0.95)) if count else None,
                "median_of_stages": {
                    stage: 1000 * float(np.median([seconds.get(stage, 0.0) for seconds in self.seconds]))
                    for stage in stages
                },
            },
        }
        probability = np.array(self.probability)
        judged = np.isfinite(probability)
        if judged.any():
            radius = np.array(self.radius_m)
            drawn = np.isfinite(radius)
            found["confidence"] = {
                "calibration_error": calibration_error(probability[judged], right[judged]),
                "auroc": ranking_quality(probability[judged], right[judged]) if 0 < right.sum() < count else None,
                "coverage": float(given.mean()),
                "precision": float(right[given].mean()) if given.any() else None,
                "radius_given": float(drawn.mean()),
                "radius_holds": float((away[drawn] <= radius[drawn]).mean()) if drawn.any() else None,
            }
        return found


def _median(values: np.ndarray) -> float | None:
    """Of what is known, the lower of the middle two; None if that is infinitely far away."""
    known = np.sort(values[~np.isnan(values)])
    middle = float(known[(len(known) - 1) // 2]) if len(known) else np.inf
    return middle if np.isfinite(middle) else None


def _away_m(truth: Truth, n: int, candidate: Candidate) -> float:
    lat, lon = (np.nan if value is None else value for value in (candidate.lat, candidate.lon))
    return float(truth.away_m(n, lat, lon, candidate.place))


def fov_label(fov_deg: float | None) -> str:
    """The group of a photo by its field of view, as the published protocols cut it."""
    if fov_deg is None:
        return "unknown"
    return next((f"up to {limit}°" for limit in FOV_DEG if fov_deg <= limit), "wider")


class Views(NamedTuple):
    """Photos as they are shown to a locator, in one of several ways."""

    key: str
    """Its name in JSON."""
    rows: list[dict[str, Any]]
    """Of the photos table."""
    truth: Truth
    fov_deg: list[float | None] | None
    images: Callable[[], Iterator[Given]]
    photo: list[int] | None = None
    """Which photo each is a turn of, where photos are shown several times."""


def truth_of(rows: Sequence[dict[str, Any]], ids: Mapping[str, int]) -> Truth:
    """The truth about rows of a photos table. `ids` are those of places in the index, by key."""

    def numbers(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)

    place = np.array([ids.get(row["place"], -1) for row in rows], np.int64)
    return Truth(numbers("lat"), numbers("lon"), numbers("heading_deg"), place)


def views_of(
    manifest: Manifest,
    rows: Sequence[dict[str, Any]],
    ids: Mapping[str, int],
    query_input: QueryInput,
    crop_fov_deg: Sequence[float] = (),
    turns: int = 1,
) -> dict[str, Views]:
    """The ways to show these photos of the manifest, by title.

    Photos are shown as if nobody knew their field of view, and with the one that is known of them. Panoramas
    have theirs: they are shown whole, or, if they go all the way round, as crops of `crop_fov_deg`, `turns` of them a
    panorama at seeded headings, and these also stretched to the field of view that the model assumes, as if nobody knew
    theirs.
    """
    assumed = query_input.assumed_fov_deg
    wide = [row for row in rows if (row["fov_deg"] or 0.0) > WIDEST_PHOTO_DEG]
    photos = [row for row in rows if (row["fov_deg"] or 0.0) <= WIDEST_PHOTO_DEG]
    found = {}
    if photos:
        shown: dict[str, list[float | None] | None] = {"field of view unknown": None}
        known = [row["fov_deg"] is not None and usable_fov(row["fov_deg"]) for row in photos]
        if any(known):
            shown["field of view known"] = [
                row["fov_deg"] if there else None for row, there in zip(photos, known, strict=True)
            ]
        for title, fov in shown.items():
            truth = truth_of(photos, ids)
            found[title] = Views(title.replace(" ", "_"), photos, truth, fov, partial(contents, manifest, photos))
    if not wide:
        if crop_fov_deg:
            raise ValueError("crop_fov_deg: expected photos that go all the way round (fov_deg 360), got none")
        return found
    if crop_fov_deg:
        wide = [row for row in wide if row["fov_deg"] == 360.0]
        if not wide:
            raise ValueError("crop_fov_deg: expected photos that go all the way round (fov_deg 360), got none")
    row_of = {name: n for n, name in enumerate(manifest.photos["id"].to_pylist())}
    rows_of_wide = [row_of[row["id"]] for row in wide]
    # A crop of the whole turn, or of the assumed angle, has no other field of view to be taken for.
    crops: list[tuple[float | None, bool]] = [
        (crop, known) for crop in crop_fov_deg for known in ((True,) if crop in (360.0, assumed) else (True, False))
    ]
    for crop, known_fov in crops or [(None, True)]:
        times = 1 if crop is None else turns
        seeds = [
            PhotoDataset(
                manifest,
                panorama_size=query_input.size,
                assumed_fov_deg=assumed,
                use_fov=known_fov,
                crop_fov_deg=crop,
                seed=seed,
            )
            for seed in range(times)
        ]
        title = "panoramas as they are" if crop is None else f"panoramas cropped to {crop:g} degrees"
        key = "panoramas_as_they_are" if crop is None else f"fov_{crop:g}"
        title += "" if known_fov else f" taken for {assumed:g}"
        key += "" if known_fov else f"_taken_for_{assumed:g}"
        heading = np.array([views.heading_deg(n) for n in rows_of_wide for views in seeds])
        truth = truth_of(wide, ids).take(np.repeat(np.arange(len(wide)), times))._replace(heading_deg=heading)
        found[title] = Views(
            key,
            [row for row in wide for _ in range(times)],
            truth,
            None,
            partial(_columns, seeds, rows_of_wide),
            None if times == 1 else [n for n in range(len(wide)) for _ in range(times)],
        )
    return found


def contents(manifest: Manifest, rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """The files of these rows of the photos table; what cannot be had is empty, so unreadable, so wrong."""
    for row in rows:
        try:
            yield manifest.open_image(row["image"])
        except ImageError:
            yield b""


def _columns(turns: Sequence[PhotoDataset], rows: Iterable[int]) -> Iterator[Given]:
    """Photos in their azimuth columns, every turn of one after the other; one that cannot be read is empty."""
    for row in rows:
        for views in turns:
            try:
                photo = views[row]["photo"].permute(1, 2, 0).contiguous().numpy()
            except ImageError:
                yield b""
                continue
            yield AzimuthColumns(photo)


def neighbours_for(places: int) -> int:
    """How many neighbours a locator must keep for R@1%, and for ranks in small regions."""
    return min(max(NEIGHBOURS, one_percent(places), min(places, 256)), _MOST_NEIGHBOURS)


def evaluate(
    locator: Locator,
    queries: Iterable[Given],
    truth: Truth,
    *,
    fov_deg: Sequence[float | None] | float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    photo: Sequence[int] | None = None,
    keep: list[Answer] | None = None,
    use_exif: bool = True,
) -> Evaluation:
    """Locates photos one at a time and compares with the truth.

    Args:
        queries, fov_deg, use_exif: as `Locator.locate` takes them.
        groups: names of groupings (city) to the group of each photo: ranks are counted by group too.
        photo: which photo each query is a turn of: figures are means within a photo first, intervals over photos.
        keep: a list that is given every answer, without its neighbours.
    """
    near = Near(*locator.index.positions(locator.within), RIGHT_M)
    there = set(locator.index.ids(locator.within).tolist())
    result = Evaluation(
        len(there),
        locator.neighbours,
        groups={name: list(labels) for name, labels in (groups or {}).items()},
        photo=None if photo is None else list(photo),
    )
    for n, answer in enumerate(locator.locate(queries, fov_deg=fov_deg, use_exif=use_exif)):
        lat, lon = float(truth.lat[n]), float(truth.lon[n])
        reachable = near.any(lat, lon) if np.isfinite(lat) else int(truth.place[n]) in there
        result.add(answer, truth, n, reachable)
        if keep is not None:
            keep.append(replace(answer, neighbours=None))
    return result


def evaluate_views(
    locator: Locator,
    views: Mapping[str, Views],
    *,
    keep: list[Answer] | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Evaluates every way to show the photos; `keep` is given the answers of the first."""
    total, before = sum(len(way.rows) for way in views.values()), 0
    found: dict[str, Evaluation] = {}

    def counted(queries: Iterator[Given], before: int) -> Iterator[Given]:
        for n, query in enumerate(queries):
            yield query
            if progress is not None:
                progress(before + n + 1, total)

    for title, way in views.items():
        found[title] = evaluate(
            locator,
            counted(way.images(), before),
            way.truth,
            fov_deg=way.fov_deg,
            groups={
                "city": [row["city"] or "unknown" for row in way.rows],
                "field of view": [fov_label(row["fov_deg"]) for row in way.rows],
            },
            photo=way.photo,
            keep=None if found else keep,
            use_exif=False,  # what is known of photos the manifest says
        )
        before += len(way.rows)
    return found


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as the lines a person reads."""
    lines = [table(metrics)]
    if metrics["photos"]:
        within = (f"{radius:g} m {100 * metrics[f'recall_at_1_within_{radius:g}_m']:.1f} %" for radius in RADII_M)
        lines.append(f"first place within {', '.join(within)}")
        lines.append(f"mean log-rank {metrics['mean_log_rank']:.2f}")
    error = metrics["answers"]["heading_error_deg_when_right"]
    if error["mean"] is not None:
        lines.append(f"heading of right answers: {error['mean']:+.1f} ± {error['std']:.1f} degrees")
    if "confidence" in metrics:
        sure = metrics["confidence"]
        precision = "" if sure["precision"] is None else f", right {100 * sure['precision']:.0f} % of the time"
        auroc = "" if sure["auroc"] is None else f"; AUROC {sure['auroc']:.2f}"
        lines.append(f"answers given for {100 * sure['coverage']:.0f} % of photos{precision}")
        lines.append(f"calibration error {sure['calibration_error']:.3f}{auroc}")
    if metrics["photos"]:
        stages = metrics["latency_ms"]["median_of_stages"]
        shares = ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items())
        lines.append(f"one photo: {metrics['latency_ms']['median']:.1f} ms ({shares})")
    return "\n".join(lines)
