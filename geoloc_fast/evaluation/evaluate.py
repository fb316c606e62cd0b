"""How good a locator's answers are, on photos of known position; one photo after the other, so memory does not grow.

How the places were ranked is measured as `protocol` does it; beside it stands what became of the ranking:
the answers, how sure they were, and how long they took. Every photo stays in every denominator: one that cannot be read
is wrong, and so is one with no place in range.
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
from geoloc_fast.geo.regions import Box, Region
from geoloc_fast.geo.sphere import great_circle_m
from geoloc_fast.images.cylindrical import WIDEST_PHOTO_DEG
from geoloc_fast.index import PlaceIndex
from geoloc_fast.locate.confidence import RIGHT_M, Confidence, calibration_error, ranking_quality
from geoloc_fast.locate.locator import NEIGHBOURS, Answer, AzimuthColumns, Image, Locator, usable_fov
from geoloc_fast.models import Geolocalizer, GeolocalizerConfig

__all__ = [
    "RECALL_K", "Evaluation", "Views", "contents", "evaluate", "fit_confidence", "fov_label", "neighbours_for",
    "summary", "views_of",
]  # fmt: skip

RECALL_K = (1, 5, 10)
FOV_DEG = (70, 90, 120, 180)
_MOST_NEIGHBOURS = 1024


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

    def add(self, answer: Answer, lat: float, lon: float, heading_deg: float, reachable: bool) -> None:
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
        first = answer.candidates[0]
        with np.errstate(invalid="ignore"):
            away = great_circle_m(lat, lon, found.lat, found.lon)
            near = away <= RIGHT_M
        self.rank.append(float(near.argmax()) if near.any() else np.inf)
        self.place_away_m.append(float(away[0]))
        self.place_error_deg.append(float(heading_error_deg(found.heading_deg[0], heading_deg)))
        self.away_m.append(float(great_circle_m(lat, lon, first.lat, first.lon)))
        self.heading_error_deg.append(float(heading_error_deg(first.heading_deg, heading_deg)))
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
            {name: np.array(labels) for name, labels in self.groups.items()},
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
                "median_error_m": float(np.nanmedian(away)) if np.isfinite(away).any() else None,
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


def fov_label(fov_deg: float | None) -> str:
    """The group of a photo by its field of view, as the published protocols cut it."""
    if fov_deg is None:
        return "unknown"
    return next((f"up to {limit} degrees" for limit in FOV_DEG if fov_deg <= limit), "wider")


class Views(NamedTuple):
    """Photos of known position, as they are shown to a locator."""

    rows: list[dict[str, Any]]
    """Of the photos table."""
    truth: dict[str, list[float]]
    """`lat`, `lon`, `heading_deg` of each; NaN where unknown."""
    fov_deg: list[float] | float | None
    images: Callable[[], Iterator[Image]]


def views_of(
    manifest: Manifest, rows: Sequence[dict[str, Any]], config: GeolocalizerConfig, crop_fov_deg: Sequence[float] = ()
) -> dict[str, Views]:
    """The ways to show these photos of the manifest, by title.

    Photos are shown with the field of view that the model assumes, and with the one that is known of them. Panoramas
    have theirs: they are shown as they are, or, if they go all the way round, in cuts of `crop_fov_deg`, each
    somewhere, and these also stretched to the field of view that the model assumes, as if nobody knew theirs.
    """
    nan, assumed = float("nan"), config.assumed_fov_deg

    def numbers(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
        return [nan if row[name] is None else float(row[name]) for row in rows]

    def truth(rows: Sequence[dict[str, Any]], heading_deg: list[float]) -> dict[str, list[float]]:
        return {"lat": numbers(rows, "lat"), "lon": numbers(rows, "lon"), "heading_deg": heading_deg}

    wide = [row for row in rows if (row["fov_deg"] or 0.0) > WIDEST_PHOTO_DEG]
    photos = [row for row in rows if (row["fov_deg"] or 0.0) <= WIDEST_PHOTO_DEG]
    found = {}
    if photos:
        shown: dict[str, list[float] | float] = {"field of view assumed": assumed}
        known = [row["fov_deg"] is not None and usable_fov(row["fov_deg"]) for row in photos]
        if any(known):
            shown["field of view known"] = [
                row["fov_deg"] if there else assumed for row, there in zip(photos, known, strict=True)
            ]
        for title, fov in shown.items():
            where = truth(photos, numbers(photos, "heading_deg"))
            found[title] = Views(photos, where, fov, partial(contents, manifest, photos))
    if crop_fov_deg:
        wide = [row for row in wide if row["fov_deg"] == 360.0]
        if not wide:
            raise ValueError("crop_fov_deg: expected photos that go all the way round (fov_deg 360), got none")
    row_of = {name: n for n, name in enumerate(manifest.photos["id"].to_pylist())} if wide else {}
    rows_of_wide = [row_of[row["id"]] for row in wide]
    crops: list[tuple[float | None, bool]] = [(crop, known) for crop in crop_fov_deg for known in (True, False)]
    for crop, known_fov in crops or [(None, True)] * bool(wide):
        views = PhotoDataset(
            manifest,
            panorama_size=config.image_size,
            assumed_fov_deg=assumed,
            use_fov=known_fov,
            crop_fov_deg=crop,
        )
        title = "panoramas as they are" if crop is None else f"panoramas cut to {crop:g} degrees"
        title += "" if known_fov else f" taken for {assumed:g}"
        where = truth(wide, [views.heading_deg(n) for n in rows_of_wide])
        found[title] = Views(wide, where, None, partial(_columns, views, rows_of_wide))
    return found


def contents(manifest: Manifest, rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """The files of these rows of the photos table; what cannot be had is empty, so unreadable, so wrong."""
    for row in rows:
        try:
            yield manifest.open_image(row["image"])
        except ImageError:
            yield b""


def _columns(views: PhotoDataset, rows: Iterable[int]) -> Iterator[Image]:
    """Photos in their azimuth columns; one that cannot be read is empty."""
    for row in rows:
        try:
            photo = views[row]["photo"].permute(1, 2, 0).contiguous().numpy()
        except ImageError:
            yield b""
            continue
        yield AzimuthColumns(photo)


def neighbours_for(places: int) -> int:
    """How many neighbours a locator must keep for R@1%."""
    return min(max(NEIGHBOURS, one_percent(places)), _MOST_NEIGHBOURS)


def evaluate(
    locator: Locator,
    images: Iterable[Any],
    *,
    lat: Sequence[float] | np.ndarray,
    lon: Sequence[float] | np.ndarray,
    heading_deg: Sequence[float] | np.ndarray | None = None,
    fov_deg: Sequence[float | None] | float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    keep: list[Answer] | None = None,
) -> Evaluation:
    """Locates photos one at a time and compares with the truth.

    Args:
        images: as `Locator.locate` takes them.
        lat, lon: where they were taken.
        heading_deg: where they looked; NaN where unknown.
        fov_deg: as `Locator.locate` takes it.
        groups: names of groupings (city) to the group of each photo: ranks are counted by group too.
        keep: a list that is given every answer, without its neighbours.
    """
    place_lat, place_lon = locator.index.positions(locator.within)
    near = Near(place_lat, place_lon, RIGHT_M)
    result = Evaluation(
        len(place_lat), locator.neighbours, groups={name: list(labels) for name, labels in (groups or {}).items()}
    )
    for n, answer in enumerate(locator.locate(images, fov_deg=fov_deg)):
        at = float(lat[n]), float(lon[n])
        heading = float("nan") if heading_deg is None else float(heading_deg[n])
        result.add(answer, *at, heading, near.any(*at))
        if keep is not None:
            keep.append(replace(answer, neighbours=None))
    return result


def fit_confidence(
    index: PlaceIndex,
    model: Geolocalizer,
    images: Callable[[np.ndarray], Iterable[Any]],
    *,
    lat: np.ndarray,
    lon: np.ndarray,
    fov_deg: Sequence[float | None] | float | None = None,
    precision: float = 0.9,
) -> Confidence:
    """How sure the answers of a model are, learned from photos of known position.

    The whole index is searched, its halves and its quarters, each for the photos taken in it: a probability has to hold
    for regions of any size. How well it does is for `evaluate` to say, on other photos.

    Args:
        images: gives the photos of these rows of `lat`, `lon`; it is asked once for each region.
        fov_deg: as `Locator.locate` takes it.
        precision: of the answers that are to be given.
    """
    features, away, further_down = [], [], []
    for region in _regions(*index.positions()):
        rows = np.arange(len(lat)) if region is None else np.flatnonzero(region.contains(lat, lon))
        if not len(rows) or not len(index.ids(region)):
            continue
        fov = [fov_deg[int(row)] for row in rows] if isinstance(fov_deg, Sequence) else fov_deg
        answers = Locator(index, model, within=region).locate(images(rows), fov_deg=fov, candidates=NEIGHBOURS)
        for row, answer in zip(rows, answers, strict=True):
            if answer.features is not None:
                distance = [float(great_circle_m(lat[row], lon[row], c.lat, c.lon)) for c in answer.candidates]
                features.append(answer.features)
                away.append(distance[0])
                further_down.append(min(distance[1:], default=np.inf) <= RIGHT_M)
    if not features:
        raise ValueError("images: expected photos that can be read, got none")
    return Confidence.fit(
        str(model.fingerprint), np.array(features), np.array(away), np.array(further_down), precision=precision
    )


def _regions(lat: np.ndarray, lon: np.ndarray) -> list[Region | None]:
    south, middle, north = np.quantile(lat, (0, 0.5, 1)).tolist()
    turned = (lon - lon[0] + 180) % 360 - 180  # across the antimeridian too
    west, centre, east = ((np.quantile(turned, (0, 0.5, 1)) + lon[0] + 180) % 360 - 180).tolist()
    rows, columns = ((south, middle), (middle, north)), ((west, centre), (centre, east))
    halves = [Box(low, west, high, east) for low, high in rows]
    return [None, *halves, *(Box(low, left, high, right) for low, high in rows for left, right in columns)]


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as the lines a person reads."""
    lines = [table(metrics)]
    if metrics["photos"]:
        within = (f"{radius:g} m {100 * metrics[f'recall_at_1_within_{radius:g}_m']:.1f} %" for radius in RADII_M)
        lines.append(f"first place within {', '.join(within)}")
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
