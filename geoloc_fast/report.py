"""`report.html`: one self-contained page that opens with the network off."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoloc_fast.files import write_atomically
from geoloc_fast.geo import great_circle_m, offset_m
from geoloc_fast.metrics import heading_error_deg

if TYPE_CHECKING:
    from geoloc_fast.data.city import CityViews
    from geoloc_fast.locate import Answer

_SHOWN = 24
_MAP_PX = 720
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .25rem .8rem; text-align: right } th { font-weight: 600 }
td:first-child, th:first-child { text-align: left } tr + tr td { border-top: 1px solid #ddd }
.map { background: #f6f5f1; border: 1px solid #ccc; width: 100%; max-width: 720px; height: auto }
.card { display: grid; grid-template-columns: 200px 150px 1fr; gap: .8rem; align-items: center;
        border-top: 1px solid #ddd; padding: .7rem 0 }
.card img { width: 100%; display: block; image-rendering: auto } .card figure { margin: 0 }
figcaption { font-size: .8rem; color: #555 } .right { color: #19713a } .wrong { color: #b3261e }
.pano { position: relative }
.pano i { position: absolute; top: 0; bottom: 0; border: 2px solid #ffb000; box-sizing: border-box }
"""


def write_report(
    path: Path, city: CityViews, answers: list[Answer], metrics: dict[str, Any], *, threshold_m: float
) -> None:
    """Map, figures, and the first photos beside the places they were matched to."""
    photos = len(answers)
    lat, lon = _positions(answers)
    away_m = great_circle_m(city.photo_lat[:photos], city.photo_lon[:photos], lat, lon)
    right = away_m <= threshold_m
    cards = "".join(_card(city, answers, i, float(away_m[i]), bool(right[i])) for i in range(min(_SHOWN, photos)))
    write_atomically(
        path,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>geoloc_fast demonstration</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
<h1>Where were these photos taken, and which way were they looking?</h1>
<p>Synthetic city {html.escape(str(city.seed))}, never seen in training: {photos} photos of unknown heading and unknown
field of view against {len(city.lat)} places. The figures say nothing about real cities.</p>
{_table(metrics)}
<h2>Map</h2>
<p>Grey: places. A photo stands where it was taken, <span class="right">green</span> if its first answer lies within
{threshold_m:g} m, <span class="wrong">red</span> if not, with a line to that answer and a tick in the true direction of
view.</p>
{_map(city, answers, right)}
<h2>The first {min(_SHOWN, photos)} photos and the places they were matched to</h2>
<p>Photo; satellite image of the answer, north up; its street panorama, north in the middle, with the stretch of azimuth
the photo was found to look at.</p>
{cards}
</body></html>
""",
    )


def _positions(answers: list[Answer]) -> np.ndarray:
    """[2, N]: lat and lon of the first candidates."""
    return np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers]).T


def _table(metrics: dict[str, Any]) -> str:
    rows = []
    for key, title in (
        ("field_of_view_assumed", "field of view assumed"),
        ("field_of_view_known", "field of view known"),
    ):
        part = metrics[key]
        error = part["heading_error_deg_when_right"]
        heading = "none right" if error["mean"] is None else f"{error['mean']:+.1f} ± {error['std']:.1f}°"
        recall = "".join(f"<td>{100 * value:.1f} %</td>" for value in list(part["recall"].values())[:3])
        rows.append(
            f"<tr><td>{title}</td>{recall}<td>{heading}</td><td>{part['median_error_m']:.0f} m</td>"
            f"<td>{part['latency_ms']['median']:.1f} ms</td></tr>"
        )
    chance = f"<tr><td>chance</td><td>{100 * metrics['chance_recall_at_1']:.1f} %</td></tr>"
    return (
        "<table><tr><th></th><th>R@1</th><th>R@5</th><th>R@10</th><th>heading error when right</th>"
        f"<th>median error</th><th>one photo</th></tr>{''.join(rows)}{chance}</table>"
    )


def _map(city: CityViews, answers: list[Answer], right: np.ndarray) -> str:
    east, north = offset_m(city.lat[0], city.lon[0], city.lat, city.lon)
    low = np.array([east.min(), north.min()]) - 30
    scale = _MAP_PX / (np.array([east.max(), north.max()]) + 30 - low).max()

    def pixel(lat: Any, lon: Any) -> tuple[np.ndarray, np.ndarray]:
        e, n = offset_m(city.lat[0], city.lon[0], np.asarray(lat), np.asarray(lon))
        return (e - low[0]) * scale, _MAP_PX - (n - low[1]) * scale

    parts = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="#bbb"/>'
        for x, y in zip(*pixel(city.lat, city.lon), strict=True)
    ]
    photos = len(answers)
    x0, y0 = pixel(city.photo_lat[:photos], city.photo_lon[:photos])
    x1, y1 = pixel(*_positions(answers))
    for i in range(photos):
        colour = "#19713a" if right[i] else "#b3261e"
        angle = np.radians(city.heading_deg[i])
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><title>photo {i}: score {answers[i].candidates[0].score:.3f}</title>'
            f'<line x1="{x0[i]:.1f}" y1="{y0[i]:.1f}" x2="{x1[i]:.1f}" y2="{y1[i]:.1f}" '
            f'stroke-width=".6" opacity=".45"/>'
            f'<line x1="{x0[i]:.1f}" y1="{y0[i]:.1f}" x2="{x0[i] + 9 * np.sin(angle):.1f}" '
            f'y2="{y0[i] - 9 * np.cos(angle):.1f}" stroke-width="1.5"/>'
            f'<circle cx="{x0[i]:.1f}" cy="{y0[i]:.1f}" r="3.2" stroke="none"/></g>'
        )
    return f'<svg class="map" viewBox="0 0 {_MAP_PX} {_MAP_PX}" role="img" aria-label="map">{"".join(parts)}</svg>'


def _card(city: CityViews, answers: list[Answer], i: int, away_m: float, right: bool) -> str:
    found = answers[i].candidates[0]
    place = found.place
    error = float(heading_error_deg(found.heading_deg, city.heading_deg[i]))
    verdict = f"right, {away_m:.0f} m away, heading off by {error:+.0f}°" if right else f"wrong, {away_m:.0f} m away"
    # The window drawn is the photo's true field of view about the heading that was found.
    centre = ((found.heading_deg - city.column0_deg) % 360) / 3.6
    half = city.fov_deg[i] / 7.2
    windows = "".join(
        f'<i style="left:{max(left, 0):.2f}%;width:{min(left + 2 * half, 100) - max(left, 0):.2f}%"></i>'
        for left in (centre - half - 100, centre - half, centre - half + 100)
        if left < 100 and left + 2 * half > 0
    )
    said = f'score {found.score:.3f}, <b class="{"right" if right else "wrong"}">{verdict}</b>'
    return (
        f'<div class="card"><figure>{_image(city.photo[i], "photo")}<figcaption>photo {i}, {said}</figcaption></figure>'
        f"<figure>{_image(city.satellite[place], 'satellite image')}<figcaption>place {place}</figcaption></figure>"
        f'<figure class="pano">{_image(city.panorama[place], "street panorama")}{windows}</figure></div>'
    )


def _image(pixels: np.ndarray, title: str) -> str:
    import cv2

    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise RuntimeError(f"report: the {title} could not be encoded as JPEG")
    return f'<img alt="{html.escape(title)}" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'
