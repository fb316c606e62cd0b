"""A contact sheet of a manifest, for checking it by eye: `geoloc-fast show`.

One row per place: a photo of it, the satellite image with the photo's heading and field of view drawn in, and, column
over column, the panorama as it is stored, the polar image, and the panorama turned into the polar image's frame. If
streets and houses of the last two do not stand over each other, the calibration is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from geoloc_fast.data.manifest import Manifest
from geoloc_fast.errors import ImageError
from geoloc_fast.files import write_atomically
from geoloc_fast.geo.sphere import offset_m
from geoloc_fast.images.calibration import calibrate, roll_panorama
from geoloc_fast.images.decode import decode_image
from geoloc_fast.images.storage import Storage
from geoloc_fast.polar import polar_resample
from geoloc_fast.region.prepare import POLAR_COLUMN0_DEG, PlaceImages, Settings, load_place, street_polar

__all__ = ["SUFFIXES", "contact_sheet", "show"]

SUFFIXES = (".png", ".jpg", ".jpeg")
_STRIP = (512, 128)  # width, height
_PHOTO = (400, 420)  # at most
_SATELLITE = 420
_GAP, _LABEL, _TITLE = 14, 20, 34
_PAPER, _INK, _FAINT, _BLANK = (250, 250, 247), (25, 25, 25), (110, 110, 110), (226, 226, 222)
_HEADING, _EDGE = (255, 60, 0), (255, 170, 0)
_MADE = (150, 0, 150)  # what a generator made is said in this colour
_STATUS = {"known": (0, 110, 40), "measured": (0, 110, 40), "low quality": (190, 90, 0), "none": (190, 0, 0)}
_COMPASS = {"N": 0, "NE": 45, "E": 90, "SE": 135, "S": 180, "SW": 225, "W": 270, "NW": 315}


def show(
    manifest: Manifest | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    places: int | Sequence[str] = 6,
    settings: Settings | None = None,
) -> list[str]:
    """Writes the contact sheet, PNG or JPEG; returns the problems met, also written where the image would be."""
    kind = Path(out).suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"out: expected a .png or .jpg file, got {str(out)!r}")
    if not isinstance(manifest, Manifest):
        manifest = Manifest.load(manifest)
    sheet, problems = contact_sheet(manifest, places=places, settings=settings)
    options = [] if kind == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
    done, content = cv2.imencode(kind, sheet[:, :, ::-1], options)
    if not done:
        raise ValueError(
            f"places: a sheet of {sheet.shape[1]} x {sheet.shape[0]} pixels cannot be written; ask for fewer"
        )
    write_atomically(out, content.tobytes())
    return problems


def contact_sheet(
    manifest: Manifest, *, places: int | Sequence[str] = 6, settings: Settings | None = None
) -> tuple[np.ndarray, list[str]]:
    """The sheet as uint8 [height, width, 3], and the problems met.

    Args:
        manifest: a prepared one, or any other; what is not prepared is, on the way, and what is not calibrated is
            measured.
        places: how many, spread evenly over the manifest, those with photos first; or the ids of the places.
        settings: of preparation; default as `prepare` has them.
    """
    settings = Settings() if settings is None else settings
    photos: dict[str, dict[str, Any]] = {}
    for photo in manifest.photos.to_pylist():
        if photo["place"] is not None:
            photos.setdefault(photo["place"], photo)
    rows = _choose(manifest, places, photos)
    storage, problems = Storage(manifest.root), []
    tiles = []
    for row in rows:
        tile, trouble = _tile(row, photos.get(row["id"]), storage, settings)
        tiles.append(tile)
        problems += [f"{row['id']}: {text}" for text in trouble]
    line = np.full((2, tiles[0].shape[1], 3), 200, np.uint8)
    stacked = [part for tile in tiles for part in (tile, line)]
    return np.concatenate(stacked[:-1]), problems


def _choose(manifest: Manifest, places: int | Sequence[str], photos: dict[str, Any]) -> list[dict[str, Any]]:
    ids = manifest.places["id"].to_pylist()
    if not ids:
        raise ValueError(f"{manifest.root}: the manifest has no places to show")
    if not isinstance(places, int):
        row_of = {name: n for n, name in enumerate(ids)}
        absent = [name for name in places if name not in row_of]
        if absent or not places:
            raise ValueError(
                f"places: expected ids of the manifest, got {absent[0]!r}" if absent else "places: got none"
            )
        return [manifest.place(row_of[name]) for name in places]
    if not 1 <= places <= 100:
        raise ValueError(f"places: expected 1 to 100, got {places}")
    seen = [n for n, name in enumerate(ids) if name in photos]
    chosen = _spread(seen, places)
    chosen += _spread([n for n, name in enumerate(ids) if name not in photos], places - len(chosen))
    return [manifest.place(n) for n in sorted(chosen)]


def _spread(rows: list[int], count: int) -> list[int]:
    count = min(count, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def _tile(
    row: dict[str, Any], photo: dict[str, Any] | None, storage: Storage, settings: Settings
) -> tuple[np.ndarray, list[str]]:
    found = load_place(row, storage, settings)
    problems = [f"{column}: {text}" for column, text in found.problems]
    picture, heading_deg, fov_deg, about_photo = _photo(photo, storage, settings, problems)
    polar = None
    if found.satellite is not None:
        above = torch.from_numpy(found.satellite).permute(2, 0, 1)[None]
        polar = polar_resample(above, settings.size, column0_deg=POLAR_COLUMN0_DEG)
    column0_deg, status, about_street = _calibration(row, found, settings)

    made = row["street_synthetic"] is not None
    view = "synthetic street view" if made else "street view"
    about_street = about_street.replace("street view", view, 1)

    width = _PHOTO[0] + _SATELLITE + _STRIP[0] + 4 * _GAP
    height = _TITLE + 3 * (_STRIP[1] + _LABEL) + 2 * _GAP
    tile = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(tile)
    at = "position unknown" if row["lat"] is None else f"{row['lat']:.5f}, {row['lon']:.5f}"
    title = f"{row['id']}   {at}   {row['city']}" + ("" if photo is None else f"   photo {photo['id']}")
    _text(draw, (_GAP, 8), title, 18, _INK, width - 2 * _GAP)

    left, top = _GAP, _TITLE
    _text(draw, (left, top), about_photo, 13, _FAINT, _PHOTO[0])
    _paste(
        tile,
        draw,
        picture,
        (left, top + _LABEL),
        _PHOTO,
        _why(problems, "photo"),
    )

    left += _PHOTO[0] + _GAP
    _text(draw, (left, top), f"satellite, north up, {settings.side_m:g} m", 13, _FAINT, _SATELLITE)
    text = _why(problems, "satellite")
    size = (_SATELLITE, _SATELLITE)
    if _paste(tile, draw, found.satellite, (left, top + _LABEL), size, text) and heading_deg is not None:
        _wedge(tile, (left, top + _LABEL), _standing(row, photo, settings), heading_deg, fov_deg)

    left += _SATELLITE + _GAP
    turned = None
    if found.street is not None and column0_deg is not None:
        turned = roll_panorama(found.street, column0_deg, to_deg=POLAR_COLUMN0_DEG)
    frame = None if polar is None else polar[0].permute(1, 2, 0).numpy()
    strips = (
        (
            f"{view}, as stored"
            + (f", made by model {row['street_synthetic'][:12]}" if made else "")
            + ("" if row["street_date"] is None else f", {row['street_date']}"),
            _MADE if made else _FAINT,
            found.street,
            column0_deg if status == "known" else None,
            _why(problems, "street"),
        ),
        ("satellite in polar form", _FAINT, frame, POLAR_COLUMN0_DEG, text),
        (
            about_street,
            _FAINT if found.street is None else _STATUS[status],
            turned,
            POLAR_COLUMN0_DEG,
            "no street view" if found.street is None else "its heading is not known",
        ),
    )
    for label, colour, image, frame_deg, missing in strips:
        _text(draw, (left, top), label, 13, colour, _STRIP[0])
        if _paste(tile, draw, image, (left, top + _LABEL), _STRIP, missing) and frame_deg is not None:
            if heading_deg is not None:
                _window(draw, (left, top + _LABEL), frame_deg, heading_deg, fov_deg)
            _compass(draw, (left, top + _LABEL), frame_deg)
        top += _LABEL + _STRIP[1] + _GAP // 2
    return np.asarray(tile), problems


def _why(problems: list[str], name: str) -> str:
    """What to write where an image would be."""
    return next((text for text in problems if text.startswith(name)), f"no {name} image")


def _photo(
    photo: dict[str, Any] | None, storage: Storage, settings: Settings, problems: list[str]
) -> tuple[np.ndarray | None, float | None, float, str]:
    """The picture, its heading if known, its field of view (assumed where unknown), and what to write over it."""
    if photo is None:
        return None, None, settings.assumed_fov_deg, "photo"
    prepared = photo.get("strip_fov_deg")
    fov_deg = photo["fov_deg"] if photo["fov_deg"] is not None else prepared or settings.assumed_fov_deg
    heading = "heading unknown" if photo["heading_deg"] is None else f"heading {photo['heading_deg']:.1f}°"
    view = f"field of view {fov_deg:.0f}°{' (assumed)' if photo['fov_deg'] is None else ''}"
    about = f"photo{'' if prepared is None else ', in azimuth columns'}: {heading}, {view}"
    try:
        image = decode_image(storage.read(photo["image"]), photo["image"], at_least=(_PHOTO[1], _PHOTO[0]))
    except ImageError as error:
        problems.append(f"photo: {error}")
        return None, photo["heading_deg"], fov_deg, about
    if prepared is not None and image.any():  # black above and below is what the photo does not show
        seen = np.flatnonzero(image.max(axis=(1, 2)) > 16)
        image = image[seen[0] : seen[-1] + 1] if len(seen) else image
    return image, photo["heading_deg"], fov_deg, about


def _calibration(row: dict[str, Any], found: PlaceImages, settings: Settings) -> tuple[float | None, str, str]:
    """Heading of the panorama's column 0, status, and what to write over it. Measured here if nobody has."""
    if found.street is None:
        return None, "none", "street view, turned to the compass"
    if found.street_column0_deg is not None:
        return (
            found.street_column0_deg,
            "known",
            f"street view, turned to the compass: column 0 was at {found.street_column0_deg:.1f}° (known)",
        )
    column0_deg, status = row["calibration_column0_deg"], row["calibration_status"]
    quality, when = row["calibration_quality"], ""
    if column0_deg is None and found.satellite is not None:
        street = torch.from_numpy(found.street).permute(2, 0, 1)[None]
        measured = calibrate(street, street_polar([found], settings), polar_column0_deg=POLAR_COLUMN0_DEG)
        status, when = measured.status[0], ", now"
        if status != "none":
            column0_deg, quality = float(measured.column0_deg[0]), float(measured.quality[0])
    if column0_deg is None:
        return None, "none", "street view: nothing could be measured"
    text = "" if quality is None else f", quality {quality:.2f}"
    about = f"street view, turned to the compass: column 0 was at {column0_deg:.1f}° ({status}{text}{when})"
    return column0_deg, status, about


# --- drawing -----------------------------------------------------------------------------------------------


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    font = ImageFont.load_default(size)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "...", font) > width:
            text = text[:-1]
        text += "..."
    draw.text(at, text, fill=colour, font=font)


def _paste(
    tile: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: np.ndarray | None,
    at: tuple[int, int],
    size: tuple[int, int],
    missing: str,
) -> bool:
    """Puts an image into a box, as large as fits, or says there is none."""
    if image is None:
        draw.rectangle((*at, at[0] + size[0] - 1, at[1] + min(size[1], 300) - 1), fill=_BLANK)
        _text(draw, (at[0] + 10, at[1] + 10), missing, 13, _FAINT, size[0] - 20)
        return False
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    to = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    resized = cv2.resize(image, to, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    tile.paste(Image.fromarray(resized), at)
    return True


def _standing(row: dict[str, Any], photo: dict[str, Any] | None, settings: Settings) -> tuple[float, float]:
    """Where on the satellite image the photo was taken, in pixels across and down; its middle if that is not known."""
    middle = _SATELLITE / 2
    if photo is None or photo["lat"] is None or row["lat"] is None:
        return middle, middle
    east_m, north_m = offset_m(row["lat"], row["lon"], photo["lat"], photo["lon"])
    pixels = _SATELLITE / settings.side_m
    return middle + float(east_m) * pixels, middle - float(north_m) * pixels


def _wedge(
    tile: Image.Image, at: tuple[int, int], standing: tuple[float, float], heading_deg: float, fov_deg: float
) -> None:
    """The field of view on the north-up satellite image, and an arrow along the heading."""
    over = Image.new("RGBA", (_SATELLITE, _SATELLITE))
    draw = ImageDraw.Draw(over)
    reach = _SATELLITE * 0.42
    x, y = standing
    box = (x - reach, y - reach, x + reach, y + reach)
    start = heading_deg - fov_deg / 2 - 90  # Pillow counts clockwise from three o'clock
    draw.pieslice(box, start, start + fov_deg, fill=(*_EDGE, 50), outline=(*_EDGE, 255), width=2)
    turn = np.radians(heading_deg)
    tip = x + reach * np.sin(turn), y - reach * np.cos(turn)
    draw.line((x, y, *tip), fill=(*_HEADING, 255), width=3)
    for side in (-1, 1):
        barb = turn + np.pi + side * 0.4
        draw.line((*tip, tip[0] + 14 * np.sin(barb), tip[1] - 14 * np.cos(barb)), fill=(*_HEADING, 255), width=3)
    tile.paste(over, at, over)


def _across(heading_deg: float, frame_deg: float) -> float:
    return (heading_deg - frame_deg) % 360 / 360 * _STRIP[0]


def _compass(draw: ImageDraw.ImageDraw, at: tuple[int, int], frame_deg: float) -> None:
    font = ImageFont.load_default(12)
    for name, degrees in _COMPASS.items():
        x = at[0] + _across(degrees, frame_deg)
        draw.line((x, at[1], x, at[1] + 6), fill=(255, 255, 255), width=2)
        wide = draw.textlength(name, font)
        where = min(max(x - wide / 2, at[0]), at[0] + _STRIP[0] - wide), at[1] + 6
        draw.text(where, name, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))


def _window(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], frame_deg: float, heading_deg: float, fov_deg: float
) -> None:
    """The photo's heading and the edges of its field of view, in the frame of a strip."""
    for degrees, colour in (
        (heading_deg - fov_deg / 2, _EDGE),
        (heading_deg + fov_deg / 2, _EDGE),
        (heading_deg, _HEADING),
    ):
        x = at[0] + _across(degrees, frame_deg)
        draw.line((x, at[1], x, at[1] + _STRIP[1] - 1), fill=colour, width=2)
