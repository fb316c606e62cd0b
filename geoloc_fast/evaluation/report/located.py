"""The page of answers to photos of unknown place: each photo with its candidates, drawn as numbered fans on a plan.

It needs no script at all: its Content-Security-Policy allows its own style and images in `data:` addresses. Names of
others are text everywhere, and nothing a photo says of itself is on it.
"""

from __future__ import annotations

import datetime
import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np

from geoloc_fast.evaluation.report.pictures import Pictures
from geoloc_fast.evaluation.report.views import data_uri, mosaic, own_file, street_window
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.sphere import offset_m
from geoloc_fast.locate.answers import fan, percent, printable
from geoloc_fast.locate.locator import Answer, Candidate

__all__ = ["WITH_PICTURES", "write_located"]

WITH_PICTURES = 200  # photos shown with pictures, about 60 KB each; the others are listed
_PLACES = 3  # candidates a photo whose street view and satellite image are shown
_STREET = (120, 400)  # rows, columns
_PLAN_PX = 420
_TICKS_M = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 200_000, 1_000_000, 5_000_000)
_STATUS = {
    "located": "located",
    "unknown": "unknown: not sure enough; these are its candidates",
    "unverified": "unverified: nothing says how sure this model is; these are its candidates",
    "unreadable": "",
}


def write_located(
    path: str | os.PathLike[str],
    answers: Sequence[Answer],
    *,
    title: str = "Where may these photos have been taken?",
    about: Mapping[str, str],
    pictures: Pictures,
    notes: Sequence[str] = (),
) -> None:
    """Writes the page.

    Args:
        answers: of photos, in the order of `pictures.photo`.
        title: of the page.
        about: what was searched with what: names and values, in this order.
        pictures: images of photos, and, where there are any, of places.
        notes: of a person, one per photo or none at all.
    """
    counts = {status: sum(answer.status == status for answer in answers) for status in _STATUS}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in {**about, "written": today}.items()
    )
    cards = "".join(
        _card(n, answer, pictures, notes[n] if notes else "") for n, answer in enumerate(answers[:WITH_PICTURES])
    )
    rest = "".join(_row(answer) for answer in answers[WITH_PICTURES:])
    page = Template(own_file("located.html")).substitute(
        title=html.escape(title),
        style=own_file("page.css") + own_file("located.css"),
        counts=f"{len(answers)} photo{'s' * (len(answers) != 1)}: {said}.",
        about=rows,
        cards=cards,
        rest=f"<h2>Further photos</h2><ul>{rest}</ul>" if rest else "",
    )
    write_atomically(Path(path), page)


def _text(text: str) -> str:
    return html.escape(printable(text))


def _card(n: int, answer: Answer, pictures: Pictures, note: str) -> str:
    name = f'<h2><bdi>{_text(os.path.basename(answer.image))}</bdi> <span class="{answer.status}">{answer.status}'
    name += "</span></h2>"
    if answer.problem is not None:
        return f'<article class="photo">{name}<p><bdi>{_text(answer.problem)}</bdi></p></article>'
    photo = pictures.photo(n)
    taken = '<p class="soft">no picture</p>'
    if photo is not None:
        taken = f'<img alt="the photo" src="{data_uri(photo, longer_px=560)}">'
    seen = "" if answer.fov_deg is None else f"seen with a field of view of {answer.fov_deg:.0f}° ({answer.fov_from})"
    words = "" if not note else f'<p class="note"><bdi>{_text(note)}</bdi></p>'
    return (
        f'<article class="photo">{name}<div class="pair"><figure>{taken}<figcaption>{seen}</figcaption></figure>'
        f"<figure>{_plan(answer, pictures)}</figure></div>{words}{_table(answer)}{_places(answer, pictures)}</article>"
    )


def _row(answer: Answer) -> str:
    best = answer.candidates[0] if answer.candidates else None
    where = f": {_text(answer.problem or '')}" if best is None else f": {' '.join(_position(best))}"
    return f"<li><bdi>{_text(answer.image)}</bdi> {answer.status}{where}</li>"


def _position(candidate: Candidate) -> tuple[str, str]:
    if candidate.lat is None or candidate.lon is None:
        return _text(candidate.key or f"place {candidate.place}"), ""
    return f"{candidate.lat:.6f}", f"{candidate.lon:.6f}"


def _table(answer: Answer) -> str:
    rows = []
    for rank, candidate in enumerate(answer.candidates, start=1):
        heading = "unknown" if candidate.heading_deg is None else f"{candidate.heading_deg:.0f}°"
        sure = "" if candidate.probability is None else _text(f"{percent(candidate.probability)} %")  # <1
        within = "" if rank > 1 or answer.radius_m is None else f"{answer.radius_m:.0f} m"
        cells = (
            f"{rank}", *_position(candidate), heading, sure, within, f"{candidate.score:.3f}"
        )  # fmt: skip
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("", "lat", "lon", "heading", "sure", "68 % within", "score")
    head = "".join(f"<th>{text}</th>" for text in heads)
    told = _STATUS[answer.status]
    return (
        f'<div class="scroll"><table><caption>{told}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div>"
    )


def _plan(answer: Answer, pictures: Pictures) -> str:
    """All candidates as numbered fans, north up, on the satellite images of their places where there are any."""
    spots = [(c, c.lat, c.lon) for c in answer.candidates if c.lat is not None and c.lon is not None]
    if not spots:
        return '<p class="soft">no position</p>'
    found = [candidate for candidate, _, _ in spots]
    _, first_lat, first_lon = spots[0]
    at = np.array([offset_m(first_lat, first_lon, lat, lon) for _, lat, lon in spots]).reshape(-1, 2)
    middle = (at.min(0) + at.max(0)) / 2
    side = max(float((at.max(0) - at.min(0)).max()) * 1.25, 120.0)
    half = side / 2
    tiles = (
        (float(east), float(north), lambda place=candidate.place: pictures.tile(place))
        for (east, north), candidate in zip(at, found, strict=True)
    )
    box = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    picture = mosaic(tiles, box, longer_px=_PLAN_PX)
    ground = ""
    if picture is not None:
        ground = f'<image href="{data_uri(picture, longer_px=_PLAN_PX, quality=72)}" width="100" height="100"/>'
    unit = 100 / side
    reach = max(40.0, side / 9)

    marks = []
    for rank, (candidate, lat, lon), (east_m, north_m) in reversed(
        list(zip(range(1, 1 + len(spots)), spots, at, strict=True))
    ):
        x, y = 50 + (east_m - middle[0]) * unit, 50 - (north_m - middle[1]) * unit
        if candidate.heading_deg is not None:
            corners = fan(lat, lon, candidate.heading_deg, answer.fov_deg or 90.0, reach)
            moved = [offset_m(lat, lon, *corner) for corner in corners]
            path = " ".join(f"{x + east * unit:.1f},{y - north * unit:.1f}" for east, north in moved)
            marks.append(f'<polygon class="fan" points="{path}"/>')
        if rank == 1 and answer.radius_m is not None:
            marks.append(f'<circle class="radius" cx="{x:.1f}" cy="{y:.1f}" r="{answer.radius_m * unit:.1f}"/>')
        marks.append(f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
        marks.append(f'<text x="{x:.1f}" y="{y + 1.2:.1f}">{rank}</text>')
    tick = max((metres for metres in _TICKS_M if metres * unit <= 40), default=_TICKS_M[0])
    length = min(tick * unit, 90)
    bar = (
        f'<path class="bar" d="M5 95h{length:.1f}"/><text class="bar" x="{5 + length / 2:.1f}" y="92.5">'
        f"{f'{tick} m' if tick < 1000 else f'{tick // 1000} km'}</text>"
    )
    what = f"plan of {len(found)} candidates, north up"
    return (
        f'<svg class="plan" viewBox="0 0 100 100" role="img" aria-label="{what}"><rect width="100" height="100"/>'
        f"{ground}{''.join(marks)}{bar}</svg><figcaption>{what}</figcaption>"
    )


def _places(answer: Answer, pictures: Pictures) -> str:
    """Street view cut at the heading and satellite image with the view, of the first candidates that have any."""
    shown = []
    for rank, candidate in enumerate(answer.candidates[:_PLACES], start=1):
        tile, street = pictures.tile(candidate.place), pictures.street(candidate.place)
        images = ""
        if street is not None and candidate.heading_deg is not None:
            window = street_window(street, candidate.heading_deg, answer.fov_deg or 90.0, _STREET)
            kind = "synthetic street view" if pictures.synthetic(candidate.place) else "street view"
            images += f'<img class="wide" alt="{kind} of candidate {rank}" src="{data_uri(window, longer_px=400)}">'
        if tile is not None:
            view = ""
            if candidate.heading_deg is not None:
                half = (answer.fov_deg or 90.0) / 2
                (x0, y0), (x1, y1) = (_rim(candidate.heading_deg + turn) for turn in (-half, half))
                view = (
                    f'<svg viewBox="0 0 100 100" aria-hidden="true"><path class="fan" d="M50 50L{x0:.1f} {y0:.1f}'
                    f'A36 36 0 0 1 {x1:.1f} {y1:.1f}Z"/></svg>'
                )
            source = data_uri(tile.image, longer_px=220)
            images += f'<span class="above"><img alt="satellite image of candidate {rank}" src="{source}">{view}</span>'
        if images:
            shown.append(f"<figure>{images}<figcaption>place of candidate {rank}</figcaption></figure>")
    return f'<div class="places">{"".join(shown)}</div>' if shown else ""


def _rim(degrees: float) -> tuple[float, float]:
    return 50 + 36 * math.sin(math.radians(degrees)), 50 - 36 * math.cos(math.radians(degrees))
