"""How good a locator's answers are, on photos of known position; one photo after the other, so memory does not grow.

Every photo stays in every denominator: one that cannot be read is wrong, and so is one with no place in range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geoloc_fast.confidence import RIGHT_M, calibration_error, ranking_quality
from geoloc_fast.geo import great_circle_m
from geoloc_fast.locate import NEIGHBOURS, Answer, Locator
from geoloc_fast.metrics import heading_error_deg, one_percent

__all__ = ["RECALL_K", "Evaluation", "evaluate", "neighbours_for", "summary"]

RECALL_K = (1, 5, 10)
_RESAMPLES = 1000
_MOST_NEIGHBOURS = 1024


@dataclass
class Evaluation:
    """What is kept of each photo."""

    k: tuple[int, ...]
    rank: list[float] = field(default_factory=list)  # of the first place in range; inf if none
    reachable: list[bool] = field(default_factory=list)
    away_m: list[float] = field(default_factory=list)  # to the first candidate
    heading_error_deg: list[float] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    radius_m: list[float] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)

    def add(self, answer: Answer, lat: float, lon: float, heading_deg: float, reachable: bool) -> None:
        nan = float("nan")
        self.status.append(answer.status)
        self.reachable.append(reachable)
        self.seconds.append(dict(answer.seconds))
        if answer.neighbours is None:
            for values in (self.away_m, self.heading_error_deg, self.probability, self.radius_m):
                values.append(nan)
            self.rank.append(np.inf)
            return
        first = answer.candidates[0]
        with np.errstate(invalid="ignore"):
            near = great_circle_m(lat, lon, answer.neighbours.lat, answer.neighbours.lon) <= RIGHT_M
        self.rank.append(float(near.argmax()) if near.any() else np.inf)
        self.away_m.append(float(great_circle_m(lat, lon, first.lat, first.lon)))
        self.heading_error_deg.append(float(heading_error_deg(first.heading_deg, heading_deg)))
        self.probability.append(nan if first.probability is None else first.probability)
        self.radius_m.append(nan if answer.radius_m is None else answer.radius_m)

    def metrics(self, seed: int = 0) -> dict[str, Any]:
        """Plain values, printable as JSON; intervals are the middle 95 % of a bootstrap over photos."""
        rank, away = np.array(self.rank), np.array(self.away_m)
        count, right = len(rank), np.nan_to_num(away, nan=np.inf) <= RIGHT_M
        rng = np.random.default_rng(seed)
        recall, interval = {}, {}
        for k in self.k:
            hit = rank < k
            recall[f"recall_at_{k}"] = float(hit.mean()) if count else None
            if count:  # photos drawn with replacement: their hits are binomial
                resampled = rng.binomial(count, hit.mean(), _RESAMPLES) / count
                interval[f"recall_at_{k}"] = np.quantile(resampled, (0.025, 0.975)).tolist()
        error = np.array(self.heading_error_deg)[right]
        error = error[np.isfinite(error)]
        given = np.array([status == "located" for status in self.status], bool)
        total = np.array([1000 * sum(seconds.values()) for seconds in self.seconds])
        stages = sorted({stage for seconds in self.seconds for stage in seconds})
        found: dict[str, Any] = {
            "photos": count,
            "unreadable": self.status.count("unreadable"),
            "photos_with_no_place_in_range": count - sum(self.reachable),
            "recall": recall,
            "recall_95": interval,
            "median_error_m": float(np.nanmedian(away)) if np.isfinite(away).any() else None,
            "first_candidate_right": float(right.mean()) if count else None,
            "heading_error_deg_when_right": {
                "mean": float(error.mean()) if error.size else None,
                "std": float(error.std()) if error.size else None,
                "median_absolute": float(np.median(np.abs(error))) if error.size else None,
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
    keep: list[Answer] | None = None,
) -> Evaluation:
    """Locates photos one at a time and compares with the truth.

    Args:
        images: as `Locator.locate` takes them.
        lat, lon: where they were taken.
        heading_deg: where they looked; NaN where unknown.
        fov_deg: as `Locator.locate` takes it.
        keep: a list that is given every answer.
    """
    places = len(locator.index)
    place_lat, place_lon = locator.index.positions(locator.within)
    at = (*RECALL_K, one_percent(places)) if one_percent(places) <= locator.neighbours else RECALL_K
    result = Evaluation(tuple(sorted(set(at))))
    for n, answer in enumerate(locator.locate(images, fov_deg=fov_deg)):
        reachable = bool((great_circle_m(float(lat[n]), float(lon[n]), place_lat, place_lon) <= RIGHT_M).any())
        heading = float("nan") if heading_deg is None else float(heading_deg[n])
        result.add(answer, float(lat[n]), float(lon[n]), heading, reachable)
        if keep is not None:
            keep.append(answer)
    return result


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as the lines a person reads."""
    out_of_range = metrics["photos_with_no_place_in_range"]
    lines = [f"{metrics['photos']} photos, {out_of_range} with no place within {RIGHT_M:g} m"]
    for name, value in metrics["recall"].items():
        low, high = metrics["recall_95"].get(name, (0, 0))
        lines.append(f"  {name:14} {100 * value:5.1f} %   (95 % of resamples: {100 * low:.1f} to {100 * high:.1f})")
    error = metrics["heading_error_deg_when_right"]
    if error["mean"] is not None:
        lines.append(f"  heading, where right: {error['mean']:+.1f} ± {error['std']:.1f} degrees")
    if "confidence" in metrics:
        sure = metrics["confidence"]
        precision = "" if sure["precision"] is None else f", right {100 * sure['precision']:.0f} % of the time"
        auroc = "" if sure["auroc"] is None else f"; AUROC {sure['auroc']:.2f}"
        lines.append(f"  answers given for {100 * sure['coverage']:.0f} % of photos{precision}")
        lines.append(f"  calibration error {sure['calibration_error']:.3f}{auroc}")
    stages = metrics["latency_ms"]["median_of_stages"]
    if metrics["photos"]:
        shares = ", ".join(f"{stage} {value:.1f}" for stage, value in stages.items())
        lines.append(f"  one photo: {metrics['latency_ms']['median']:.1f} ms ({shares})")
    return "\n".join(lines)
