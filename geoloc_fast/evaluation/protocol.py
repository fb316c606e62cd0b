"""The published protocols: recall of a bank of places for photos of known position, computed in one stream.

    R@k       one of the first k places lies within the threshold (25 m) of the photo
    R@1%      k = floor(R / 100) + 1
    radii     R@1 at other distances
    median    distance of the first place
    log-rank  mean of log(1 + rank) of the first place in range, counted from 0; where it is not among the places that
              were looked up, as if it came right after them
    heading   error of the first place's heading where that place is right, wrapped to half a turn; shares within limits

Every photo stays in every denominator: one with no place in range is wrong, and counted. A photo without a position
is 0 m from its own place, if that is known, and from no other. Ties go to the lower row, as in `strip_topk`. Beside the
bank, memory is a few numbers per photo: never photos x places.

This works on strips, so that protocols and ablations compare encoders and nothing else; `PhotoBatch` may carry several
readings of a photo (other fields of view), of which the best counts for each place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoloc_fast.azimuth import shift_to_heading
from geoloc_fast.evaluation.metrics import heading_error_deg, one_percent
from geoloc_fast.geo.sphere import great_circle_m, latitude_band_deg
from geoloc_fast.retrieval import MAX_K, StripBank, StripTopK, strip_topk

__all__ = ["HEADING_DEG", "RADII_M", "Measured", "Near", "PhotoBatch", "heading_key", "measure", "table"]

RADII_M = (10.0, 25.0, 50.0, 100.0, 200.0)
HEADING_DEG = (5.0, 11.25, 22.5)  # the last is one of 16 bins
_RESAMPLES = 1000


def heading_key(limit_deg: float) -> str:
    """Name of the share of headings within so many degrees: heading_within_22_5_deg."""
    return f"heading_within_{limit_deg:g}_deg".replace(".", "_")


class PhotoBatch(NamedTuple):
    """Photos of known position, or of known place."""

    readings: Sequence[tuple[Tensor, Tensor]]
    """Strips `[B, C, H, Wq]` with their widths `[B]`, as `encode_photo` gives them: one for each field of view that
    is tried."""
    lat: np.ndarray
    lon: np.ndarray
    heading_deg: np.ndarray
    """NaN where unknown."""
    groups: Mapping[str, Sequence[str]] = {}
    """Names of groupings (city, field of view) to the group of each photo."""
    place: np.ndarray | None = None
    """The bank's row of each photo's own place, -1 where unknown; for photos without a position."""


def _in_order(labels: Iterable[str]) -> list[str]:
    """The different labels in order of their words and numbers: "up to 90" before "up to 120"."""
    return sorted({str(label) for label in labels}, key=lambda label: re.sub(r"\d+", lambda n: n[0].zfill(20), label))


class Measured(NamedTuple):
    """What is kept of every photo, in the order they came."""

    k: tuple[int, ...]
    one_percent: int | None  # the k of R@1%, None where it is beyond what a search returns
    threshold_m: float
    places: int
    rank: np.ndarray  # of the first place in range, from 0; inf if it is not among the answers
    away_m: np.ndarray  # of the first place; inf if there was none
    heading_error_deg: np.ndarray  # of the first place; NaN if the truth is unknown
    reachable: np.ndarray  # whether any place is in range
    groups: dict[str, np.ndarray]
    looked_up: int = MAX_K  # places a photo
    photo: np.ndarray | None = None  # which photo each row is a turn of, where a photo is shown several times

    def metrics(self, *, seed: int = 0) -> dict[str, Any]:
        """Plain values, printable as JSON: of all photos, and `by` every group. `interval` holds the middle 95 % of
        a bootstrap over photos, for every figure."""
        everything = np.ones(len(self.rank), bool)
        found = self._figures(everything, seed)
        found["places"], found["threshold_m"] = self.places, self.threshold_m
        found["by"] = {
            name: {label: self._figures(labels == label, seed) for label in _in_order(labels)}
            for name, labels in self.groups.items()
        }
        return found

    def _figures(self, chosen: np.ndarray, seed: int) -> dict[str, Any]:
        rows = np.flatnonzero(chosen)
        figures = self._of(rows)
        # Photos are drawn, with all their turns.
        photo = rows if self.photo is None else np.asarray(self.photo)[rows]
        ends = np.cumsum(np.unique(photo, return_counts=True)[1])
        turns_of = np.split(rows[np.argsort(photo, kind="stable")], ends)[:-1]
        rng = np.random.default_rng(seed)
        drawn = []
        for _ in range(_RESAMPLES if len(rows) else 0):
            picked = rng.integers(len(turns_of), size=len(turns_of))
            drawn.append(self._of(np.concatenate([turns_of[n] for n in picked])))
        interval: dict[str, list[float | None] | None] = {}
        for name, value in figures.items():
            values = np.sort(np.array([one[name] for one in drawn], np.float64))  # NaN, of no value, comes last
            values = values[~np.isnan(values)]
            # Values themselves, not means of two: a median may be infinitely far away.
            bounds = values[[round(share * (len(values) - 1)) for share in (0.025, 0.975)]] if len(values) else None
            interval[name] = None if bounds is None or value is None else [_finite(float(end)) for end in bounds]
        return {
            "photos": len(turns_of),
            "photos_with_no_place_in_range": int((~self.reachable[rows]).sum()),
            **{name: _finite(value) for name, value in figures.items()},
            "interval": interval,
        }

    def _of(self, rows: np.ndarray) -> dict[str, float | None]:
        if not len(rows):
            return {}
        rank, away = self.rank[rows], self.away_m[rows]
        figures: dict[str, float | None] = {f"recall_at_{k}": float((rank < k).mean()) for k in self.k}
        if self.one_percent is not None:
            figures["recall_at_1_percent"] = float((rank < self.one_percent).mean())
        figures["mean_log_rank"] = float(np.log1p(np.minimum(rank, min(self.looked_up, self.places))).mean())
        for radius in RADII_M:
            figures[f"recall_at_1_within_{radius:g}_m"] = float((away <= radius).mean())
        figures["median_error_m"] = float(np.sort(away)[(len(away) - 1) // 2])
        error = np.abs(self.heading_error_deg[rows][away <= self.threshold_m])
        error = error[np.isfinite(error)]
        for limit in HEADING_DEG:
            figures[heading_key(limit)] = float((error <= limit).mean()) if len(error) else None
        return figures


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _merged(found: Sequence[StripTopK]) -> tuple[StripTopK, Tensor]:
    """The answers of several readings of the same photos as one, and the reading [B, k] of each: every place with its
    best score, best first, as many as each reading had. Ties go to the lower row, then to the earlier reading."""
    score, index, shift = (torch.cat([getattr(one, name) for one in found], dim=1) for name in StripTopK._fields)
    k = found[0].index.shape[1]
    reading = torch.arange(len(found), device=index.device).repeat_interleave(k).expand(index.shape)
    # Stable sorts, the least important key first: place, then score.
    order = index.argsort(dim=1, stable=True)
    order = order.gather(1, score.gather(1, order).argsort(dim=1, descending=True, stable=True))
    score, index, shift, reading = (x.gather(1, order) for x in (score, index, shift, reading))
    # A place counts where it comes first.
    by_place = index.argsort(dim=1, stable=True)
    sorted_index = index.gather(1, by_place)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[:, 1:] = sorted_index[:, 1:] == sorted_index[:, :-1]
    again = torch.zeros_like(again).scatter(1, by_place, again) | (index < 0)
    first = again.to(torch.uint8).argsort(dim=1, stable=True)[:, :k]
    kept = ~again.gather(1, first)
    merged = StripTopK(
        torch.where(kept, score.gather(1, first), float("-inf")),
        torch.where(kept, index.gather(1, first), -1),
        torch.where(kept, shift.gather(1, first), -1),
    )
    return merged, reading.gather(1, first)


def measure(
    photos: Iterable[PhotoBatch],
    bank: StripBank,
    lat: np.ndarray,
    lon: np.ndarray,
    *,
    k: Sequence[int] = (1, 5, 10),
    threshold_m: float = 25.0,
    select: str = "correlation",
) -> Measured:
    """Searches the bank, whose rows lie at `lat`, `lon`, for every photo, and keeps how well it did."""
    for name, values in (("lat", lat), ("lon", lon)):
        if np.shape(values) != (len(bank),):
            raise ValueError(f"{name}: expected {len(bank)} values (one per strip), got shape {np.shape(values)}")
    if not k or min(k) < 1 or max(k) > MAX_K:
        raise ValueError(f"k: expected values from 1 to {MAX_K}, got {list(k)}")
    percent = one_percent(len(bank))
    percent_k = percent if percent <= MAX_K else None
    reach = max(*k, percent_k or 1)
    near = Near(np.asarray(lat, np.float64), np.asarray(lon, np.float64), threshold_m)
    parts: list[tuple[np.ndarray, ...]] = []
    groups: dict[str, list[str]] = {}
    for batch in photos:
        found, width = _search(batch.readings, bank, reach, select)
        index = found.index.cpu().numpy()
        with np.errstate(invalid="ignore"):
            away = great_circle_m(batch.lat[:, None], batch.lon[:, None], near.lat[index], near.lon[index])
            away = np.where((index >= 0) & np.isfinite(away), away, np.inf)
        reachable = np.array([near.any(*at) for at in zip(batch.lat, batch.lon, strict=True)], bool)
        if batch.place is not None:
            own = np.isnan(batch.lat) & (batch.place >= 0)
            away[own[:, None] & (index == batch.place[:, None])] = 0.0
            reachable |= own
        right = away <= threshold_m
        rank = np.where(right.any(axis=1), right.argmax(axis=1), np.inf)
        columns = bank.shape[2]
        heading = shift_to_heading(found.shift[:, :1], width, columns, column0_deg=bank.column0_deg)[:, 0].cpu().numpy()
        error = np.where(index[:, 0] >= 0, heading_error_deg(heading, batch.heading_deg), np.nan)
        parts.append((rank, away[:, 0], error, reachable))
        for name, labels in batch.groups.items():
            groups.setdefault(name, []).extend(map(str, labels))
    rank, first, error, reachable = (
        [np.concatenate(part) for part in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    )
    labelled = {name: np.array(labels) for name, labels in groups.items()}
    for name, column in labelled.items():
        if len(column) != len(rank):
            raise ValueError(f"photos: expected the group {name!r} of all {len(rank)}, got {len(column)}")
    return Measured(
        tuple(sorted(set(k))), percent_k, threshold_m, len(bank), rank, first, error, reachable.astype(bool), labelled,
        reach,
    )  # fmt: skip


def _search(
    readings: Sequence[tuple[Tensor, Tensor]], bank: StripBank, k: int, select: str
) -> tuple[StripTopK, Tensor]:
    """The answers, and the width [B, 1] of the reading that the first of each is from."""
    found = [strip_topk(strips, bank, k, query_width=width, select=select) for strips, width in readings]
    if len(found) == 1:
        return found[0], readings[0][1][:, None]
    merged, reading = _merged(found)
    widths = torch.stack([width for _, width in readings], dim=1)
    return merged, widths.gather(1, reading[:, :1])


class Near:
    """Whether a place lies in range, without looking at all of them: those of the same latitude suffice."""

    def __init__(self, lat: np.ndarray, lon: np.ndarray, range_m: float) -> None:
        # One more at the end: where the row -1 of no answer lies.
        self.lat, self.lon, self.range_m = np.append(lat, np.nan), np.append(lon, np.nan), range_m
        self.order = np.argsort(lat, kind="stable")  # NaN last, where no search ends
        self.sorted_lat = lat[self.order]

    def any(self, lat: float, lon: float) -> bool:
        band = latitude_band_deg(self.range_m)
        first, last = np.searchsorted(self.sorted_lat, (lat - band, lat + band))
        rows = self.order[first:last]
        return bool((great_circle_m(lat, lon, self.lat[rows], self.lon[rows]) <= self.range_m).any())


def table(metrics: Mapping[str, Any]) -> str:
    """The metrics as the lines a person reads: all photos first, then every group."""
    names = [name for name in metrics["interval"] if name.startswith("recall_at") and "within" not in name]
    titles = [name.removeprefix("recall_at_").replace("_percent", "%") for name in names]
    lines = [
        f"{metrics['photos']} photos, {metrics['photos_with_no_place_in_range']} of them with no place within "
        f"{metrics['threshold_m']:g} m, against {metrics['places']} places; [middle 95 % of resamples]",
        f"{'':26}{'photos':>7}" + "".join(f"{'R@' + title:>22}" for title in titles) + f"{'median':>10}{'heading':>9}",
    ]
    rows = [("all", metrics)] + [
        (f"{name} {label}", part) for name, parts in metrics.get("by", {}).items() for label, part in parts.items()
    ]
    for title, part in rows:
        cells = [f"{title:26.26}{part['photos']:7}"]
        for name in names:
            value, ends = part.get(name), part["interval"].get(name)
            text = (
                "" if value is None or ends is None else f"{100 * value:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            )
            cells.append(f"{text:>22}")
        median, heading = part.get("median_error_m"), part.get(heading_key(HEADING_DEG[-1]))
        cells.append(f"{'' if median is None else f'{median:.0f} m':>10}")
        cells.append(f"{'' if heading is None else f'{100 * heading:.0f} %':>9}")
        lines.append("".join(cells))
    return "\n".join(lines)
