"""The report of an evaluation: text, tables, filters, and each photo beside its matched place.

Nothing in it can ask for anything: its Content-Security-Policy allows images in `data:` addresses and the very scripts
that were written here, by their SHA-256, and no connection. Names and captions of others are text everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.resources import Resources

from geoloc_fast.evaluation.evaluate import Evaluation
from geoloc_fast.evaluation.metrics import heading_error_deg
from geoloc_fast.evaluation.report.figures import (
    CLASSES,
    COLOURS,
    latency_figure,
    map_figure,
    recall_figure,
    reliability_figure,
)
from geoloc_fast.evaluation.report.pictures import Pictures
from geoloc_fast.evaluation.report.views import data_uri, mosaic, own_file, polar_window, street_window
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.regions import Region
from geoloc_fast.geo.sphere import great_circle_m, offset_m
from geoloc_fast.index import Searchable
from geoloc_fast.locate.answers import percent, printable
from geoloc_fast.locate.confidence import RIGHT_M
from geoloc_fast.locate.locator import Answer

__all__ = ["CARDS", "write_report"]

CARDS = 48  # photos shown with pictures: about 30 KB each
MAP_PHOTOS = 4000
MAP_PLACES = 6000
_OF_EACH_CLASS = 8  # cards at least, if there are so many
_MOSAIC_PX = 1800
_MOSAIC_TILES = 4000
_MARGIN_M = 40.0
_ASPECT = (1.3, 1.9)  # of the map, least and most
_NONE = "–"
_RELIABILITY = """<div><h3>Does a probability mean what it says?</h3>
<p class="soft">Dots on the line do; larger ones are more photos.</p><div id="reliability"></div></div>"""
_WINDOW = {"street": (120, 400), "polar": (84, 400)}  # rows, columns


class _Photo:
    """One photo with its truth and its answer, as the page shows them."""

    def __init__(self, n: int, name: str, answer: Answer, lat: float, lon: float, heading_deg: float) -> None:
        first = answer.candidates[0]
        if first.lat is None:
            raise ValueError("answers: expected places with positions, which a map needs, got places without")
        self.n, self.answer, self.first = n, answer, first
        self.found_deg = float("nan") if first.heading_deg is None else first.heading_deg
        self.name = printable(name)
        self.lat, self.lon, self.heading_deg = lat, lon, heading_deg
        self.away_m = float(great_circle_m(lat, lon, first.lat, first.lon))
        self.right = self.away_m <= RIGHT_M
        right = "right" if self.right else "wrong"
        self.kind = f"unknown-{right}" if answer.status == "unknown" else right
        self.fov_deg = answer.fov_deg or 90.0
        self.error_deg = float(heading_error_deg(self.found_deg, heading_deg))

    @property
    def verdict(self) -> str:
        return f"{CLASSES[self.kind]}, {_metres(self.away_m)} away"

    @property
    def sure(self) -> str:
        probability = self.first.probability
        return f"score {self.first.score:.3f}" + (
            "" if probability is None else f", probability {percent(probability)} %"
        )


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    about: str,
    index: Searchable,
    within: Region | None = None,
    names: Sequence[str],
    lat: Sequence[float] | np.ndarray,
    lon: Sequence[float] | np.ndarray,
    heading_deg: Sequence[float] | np.ndarray,
    answers: Sequence[Answer],
    evaluations: Mapping[str, Evaluation],
    pictures: Pictures,
) -> None:
    """Writes the page.

    Args:
        title, about: what was evaluated, in a line and in some sentences.
        index, within: what was searched.
        names: of the photos; anybody's, so nothing in them is trusted.
        lat, lon, heading_deg: where and which way they were taken; heading NaN where unknown.
        answers: of the first of `evaluations`.
        evaluations: by what to call each.
        pictures: images of photos and places.
    """
    photos = [
        _Photo(n, names[n], answer, float(lat[n]), float(lon[n]), float(heading_deg[n]))
        for n, answer in enumerate(answers)
        if answer.candidates
    ]
    place_lat, place_lon = index.positions(within)
    cards = _chosen(photos)
    first = next(iter(evaluations.values()))
    metrics = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
    chance = _chance(photos, place_lat, place_lon)
    plots = [
        _map(photos, {photo.n for photo in cards}, index.ids(within), place_lat, place_lon, pictures),
        recall_figure(evaluations, chance),
        latency_figure(first),
    ]
    judged = bool(np.isfinite(first.probability).any())
    if judged:
        plots.append(reliability_figure(first))
    items = [json_item(plot, target=plot.name) for plot in plots]
    bokeh = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)
    scripts = [bokeh, own_file("page.js")]
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    of_first = metrics[next(iter(metrics))]
    page = Template(own_file("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}",
        style=own_file("page.css"),
        title=html.escape(title),
        about=html.escape(about),
        figures=_figures(of_first),
        map_note=f"{MAP_PHOTOS} of {len(photos)} photos are drawn." if len(photos) > MAP_PHOTOS else "",
        filters=_filters(photos),
        counts=_counts(of_first),
        table=_table(metrics, chance),
        reliability=_RELIABILITY if judged else "",
        stages=_stages(of_first),
        cards_note=_cards_note(cards, photos),
        cards="".join(_card(photo, index, pictures) for photo in cards),
        unreadable=_unreadable(answers, names),
        items=_inert(json.dumps(items)),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    write_atomically(Path(path), page)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _inert(text: str) -> str:
    """JSON that no HTML parser takes for anything else."""
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _metres(value: float) -> str:
    return f"{value:.0f} m" if value < 10_000 else f"{value / 1000:,.0f} km"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `range(count)`, evenly."""
    most = min(most, count)
    return [n * count // most for n in range(most)]


def _chosen(photos: Sequence[_Photo]) -> list[_Photo]:
    """Some of every class, the rest spread over all; answers before guesses, the surest first."""
    chosen: dict[int, _Photo] = {}
    for kind in CLASSES:
        of_kind = [photo for photo in photos if photo.kind == kind]
        chosen |= {photo.n: photo for photo in (of_kind[n] for n in _spread(len(of_kind), _OF_EACH_CLASS))}
    for photo in (photos[n] for n in _spread(len(photos), CARDS)):
        if len(chosen) < CARDS:
            chosen[photo.n] = photo
    order = list(CLASSES)
    return sorted(
        chosen.values(), key=lambda photo: (order.index(photo.kind), -(photo.first.probability or photo.first.score))
    )


def _chance(photos: Sequence[_Photo], lat: np.ndarray, lon: np.ndarray) -> float:
    """Recall@1 of a random place, from at most some hundred photos."""
    some = [photos[n] for n in _spread(len(photos), 500)]
    shares = [float((great_circle_m(photo.lat, photo.lon, lat, lon) <= RIGHT_M).mean()) for photo in some]
    return float(np.mean(shares)) if shares else 0.0


# --- the map -------------------------------------------------------------------------------------------------


def _map(
    photos: Sequence[_Photo],
    with_card: set[int],
    ids: np.ndarray,
    lat: np.ndarray,
    lon: np.ndarray,
    pictures: Pictures,
) -> Any:
    origin = float(lat[0]), float(lon[0])
    east, north = offset_m(*origin, lat, lon)
    drawn = [photos[n] for n in _spread(len(photos), MAP_PHOTOS)]
    truth = np.array([offset_m(*origin, photo.lat, photo.lon) for photo in drawn]).reshape(-1, 2)
    found = np.array([offset_m(*origin, photo.first.lat, photo.first.lon) for photo in drawn]).reshape(-1, 2)
    # Photos from elsewhere do not stretch the map: it is of the region.
    box = _framed(float(east.min()), float(north.min()), float(east.max()), float(north.max()))
    tiles = (
        (float(east[n]), float(north[n]), partial(pictures.tile, int(ids[n]))) for n in _spread(len(ids), _MOSAIC_TILES)
    )
    picture = mosaic(tiles, box, longer_px=_MOSAIC_PX)
    columns: dict[str, dict[str, list[Any]]] = {}
    for kind in CLASSES:
        of_kind = [n for n, photo in enumerate(drawn) if photo.kind == kind]
        some = [drawn[n] for n in of_kind]
        columns[kind] = {
            "card": [f"photo-{photo.n}" if photo.n in with_card else "" for photo in some],
            "name": [photo.name for photo in some],
            "verdict": [photo.verdict for photo in some],
            "heading": [_degrees(photo.heading_deg) for photo in some],
            "found": [_degrees(photo.found_deg) for photo in some],
            "sure": [photo.sure for photo in some],
            "x": truth[of_kind, 0].round(1).tolist(),
            "y": truth[of_kind, 1].round(1).tolist(),
            **_cone("", [(photo.heading_deg, photo) for photo in some]),
            "fx": found[of_kind, 0].round(1).tolist(),
            "fy": found[of_kind, 1].round(1).tolist(),
            **_cone("f", [(photo.found_deg, photo) for photo in some]),
        }
    shown = _spread(len(ids), MAP_PLACES)
    at = east[shown].round(1), north[shown].round(1)
    return map_figure(
        columns, at, box, None if picture is None else data_uri(picture, longer_px=_MOSAIC_PX, quality=72)
    )


def _cone(prefix: str, views: Sequence[tuple[float, _Photo]]) -> dict[str, list[float]]:
    """Beginning and end of views, as mathematical angles."""
    heading, fov = np.array([(heading_deg, photo.fov_deg) for heading_deg, photo in views]).reshape(-1, 2).T
    ends = (("begin", 90 - heading - fov / 2), ("end", 90 - heading + fov / 2))
    return {prefix + name: np.radians(degrees).round(3).tolist() for name, degrees in ends}


def _framed(west: float, south: float, east: float, north: float) -> tuple[float, float, float, float]:
    """With a margin, and neither too tall nor too wide to look at."""
    width, height = east - west + 2 * _MARGIN_M, north - south + 2 * _MARGIN_M
    wide, tall = max(width, height * _ASPECT[0]), max(height, width / _ASPECT[1])
    middle_east, middle_north = (west + east) / 2, (south + north) / 2
    return middle_east - wide / 2, middle_north - tall / 2, middle_east + wide / 2, middle_north + tall / 2


def _degrees(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{round(value) % 360}°"


def _filters(photos: Sequence[_Photo]) -> str:
    parts = []
    for kind, title in CLASSES.items():
        sure = "" if kind.startswith("unknown") else " sure"
        count = sum(photo.kind == kind for photo in photos)
        parts.append(
            f'<label class="{kind.removeprefix("unknown-")}{sure}"><input type="checkbox" value="{kind}" checked>'
            f"<span>{title}</span> <output>{count}</output></label>"
        )
    return "".join(parts)


# --- figures ---------------------------------------------------------------------------------------------------


def _figures(metrics: Mapping[str, Any]) -> str:
    """What a reader wants to know first."""
    error = metrics["answers"]["heading_error_deg_when_right"]["median_absolute"]
    away, latency = metrics["answers"]["median_error_m"], metrics["latency_ms"]["median"]
    tiles = [
        (_share(metrics.get("recall_at_1")), "nearest place right, within 25 m (R@1)"),
        (_share(metrics.get("recall_at_10")), "among the first ten (R@10)"),
        (_NONE if away is None else _metres(away), "median distance of the best guess"),
        (_NONE if error is None else f"{error:.1f}°", "median heading error when right"),
    ]
    sure = metrics.get("confidence")
    if sure is not None:
        tiles.append((_share(sure["coverage"]), "of photos answered; the others are “unknown”"))
        tiles.append((_share(sure["precision"]), "of the answers given are right"))
    tiles.append((_NONE if latency is None else f"{latency:.0f} ms", "for one photo (median)"))
    cells = "".join(f"<div><b>{value}</b><span>{text}</span></div>" for value, text in tiles)
    return f'<div class="figures">{cells}</div>'


def _stages(metrics: Mapping[str, Any]) -> str:
    stages = metrics["latency_ms"]["median_of_stages"]
    order = [name for name in ("decode", "encode", "search", "answer") if name in stages]
    return ", ".join(f"{name} {stages[name]:.1f} ms" for name in order)


def _table(metrics: Mapping[str, Mapping[str, Any]], chance: float) -> str:
    rows = []
    for name, part in metrics.items():
        error = part["answers"]["heading_error_deg_when_right"]
        away, p95 = part["answers"]["median_error_m"], part["latency_ms"]["p95"]
        others = (
            _NONE if error["mean"] is None else f"{error['mean']:+.1f} ± {error['std']:.1f}°",
            _NONE if away is None else _metres(away),
            _NONE if p95 is None else f"{p95:.0f} ms",
        )
        recall = "".join(f"<td>{_recall(part, key)}</td>" for key in ("1", "5", "10", "1_percent"))
        cells = recall + "".join(f"<td>{text}</td>" for text in others)
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    rows.append(f"<tr><td>chance</td><td>{_share(chance)}</td>{'<td></td>' * 6}</tr>")
    heads = ("", "R@1", "R@5", "R@10", "R@1%", "heading error when right", "median error", "95 % within")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _counts(metrics: Mapping[str, Any]) -> str:
    text = (
        f"{metrics['photos']} photos against {metrics['places']} places; {metrics['photos_with_no_place_in_range']} "
        f"have no place within {RIGHT_M:g} m and count as wrong."
    )
    sure = metrics.get("confidence")
    if sure is not None:
        auroc = "" if sure["auroc"] is None else f", AUROC of right above wrong {sure['auroc']:.2f}"
        text += f" Calibration error {sure['calibration_error']:.3f}{auroc}."
    return text


def _recall(part: Mapping[str, Any], key: str) -> str:
    name = f"recall_at_{key}"
    ends = part["interval"].get(name)
    between = "" if ends is None else f' title="95 % of resamples: {100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"'
    return f"<span{between}>{_share(part.get(name))}</span>"


# --- cards -------------------------------------------------------------------------------------------------------


def _cards_note(cards: Sequence[_Photo], photos: Sequence[_Photo]) -> str:
    if len(cards) == len(photos):
        return f"All {len(photos)} photos."
    return f"{len(cards)} of {len(photos)} photos, some of every kind and the rest spread over all."


def _card(photo: _Photo, index: Searchable, pictures: Pictures) -> str:
    first, fov_deg = photo.first, photo.fov_deg
    place = index.places([first.place])[0]
    tile, street, taken = pictures.tile(first.place), pictures.street(first.place), pictures.photo(photo.n)
    overlay = ""
    if tile is not None and tile.side_m is not None:
        truth = offset_m(place.lat, place.lon, photo.lat, photo.lon)
        found = offset_m(place.lat, place.lon, first.lat, first.lon)
        overlay = _wedge(truth, found, photo.found_deg, photo.heading_deg, fov_deg, tile.side_m)
    # Without a heading nobody knows what part of a panorama the photo would show.
    window = polar = None
    if first.heading_deg is not None:
        window = None if street is None else street_window(street, first.heading_deg, fov_deg, _WINDOW["street"])
        polar = None if tile is None else polar_window(tile.image, first.heading_deg, fov_deg, _WINDOW["polar"])
    error = "" if np.isnan(photo.error_deg) else f", off by {photo.error_deg:+.0f}°"
    radius = "" if photo.answer.radius_m is None else f", 68 % within {_metres(photo.answer.radius_m)}"
    shown = (
        _picture("taken", taken, "photo", 400),
        _picture("street", window, "synthetic street view" if pictures.synthetic(first.place) else "street view", 400),
        _picture("polar", polar, "satellite, polar", 400),
        _picture("above", None if tile is None else tile.image, "matched place", 260, overlay),
    )
    name = html.escape(f"{photo.name} → {_named(place.key, place.id)}")
    return (
        f'<article class="card" id="photo-{photo.n}" data-kind="{photo.kind}">'
        f'<div class="views">{"".join(shown[:3])}</div><div class="beside">{shown[3]}<div class="about">'
        f'<b class="{"right" if photo.right else "wrong"}">{photo.verdict}</b>'
        f"looked {_degrees(photo.heading_deg)}, found {_degrees(photo.found_deg)}{error}<br>"
        f"{html.escape(photo.sure)}{radius}"
        f'<bdi class="name">{name}</bdi></div></div></article>'
    )


def _named(key: str, number: int) -> str:
    return printable(key) if key else f"place {number}"


def _picture(kind: str, image: np.ndarray | None, caption: str, px: int, over: str = "") -> str:
    if image is None:
        return f'<figure class="{kind}"><div class="none">no {caption}</div></figure>'
    content = f'<img alt="{caption}" src="{data_uri(image, longer_px=px)}">{over}<figcaption>{caption}</figcaption>'
    return f'<figure class="{kind}">{content}</figure>'


def _wedge(
    truth: tuple[float, float],
    found: tuple[float, float],
    heading_deg: float,
    true_heading_deg: float,
    fov_deg: float,
    side_m: float,
) -> str:
    """The view that was found, and the true stand and heading where they lie on the tile; 100 units a side."""
    units, green = 100 / side_m, COLOURS["right"]

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return 50 + point[0] * units, 50 - point[1] * units

    def ahead(x: float, y: float, degrees: float, reach: float) -> str:
        return f"{x + reach * np.sin(np.radians(degrees)):.1f} {y - reach * np.cos(np.radians(degrees)):.1f}"

    x, y = at(found)
    parts = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="#ffd24d"/>'
    if not np.isnan(heading_deg):
        left, right = heading_deg - fov_deg / 2, heading_deg + fov_deg / 2
        parts += (
            f'<path d="M{x:.1f} {y:.1f}L{ahead(x, y, left, 38)}A38 38 0 0 1 {ahead(x, y, right, 38)}Z" fill="#ffd24d" '
            'fill-opacity=".28" stroke="#ffd24d" stroke-width="1"/>'
        )
    x, y = at(truth)
    if 0 <= x <= 100 and 0 <= y <= 100:
        if not np.isnan(true_heading_deg):
            for colour, width in (("#fff", 3.4), (green, 2)):
                end = ahead(x, y, true_heading_deg, 22)
                parts += f'<path d="M{x:.1f} {y:.1f}L{end}" stroke="{colour}" stroke-width="{width}"/>'
        parts += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" fill="{green}" stroke="#fff" stroke-width="1"/>'
    return f'<svg viewBox="0 0 100 100" aria-hidden="true">{parts}</svg>'


def _unreadable(answers: Sequence[Answer], names: Sequence[str]) -> str:
    bad = [(names[n], answer.problem or "") for n, answer in enumerate(answers) if answer.status == "unreadable"]
    if not bad:
        return ""
    rows = "".join(
        f"<li><bdi>{html.escape(printable(name))}</bdi>: <bdi>{html.escape(printable(problem))}</bdi></li>"
        for name, problem in bad[:20]
    )
    more = f"<li>and {len(bad) - 20} more</li>" if len(bad) > 20 else ""
    return f"<h2>Could not be read</h2><p>{len(bad)} photos, which count as wrong.</p><ul>{rows}{more}</ul>"
