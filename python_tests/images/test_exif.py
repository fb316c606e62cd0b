"""EXIF is read where it is sound and never raises where it is not."""

import datetime
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geoloc_fast.images.decode import decode_image, read_header
from geoloc_fast.images.exif import PhotoExif, orientation_of, parse_exif

GEOTAGGED = Path(__file__).resolve().parents[3] / "shared" / "data" / "geotagged"
SIZE = (3000, 4000)
LUND: dict[int, Any] = {
    1: "N", 2: (55.0, 42.0, 18.0), 3: "E", 4: (13.0, 11.0, 24.0), 16: "T", 17: 123.5, 29: "2020:06:01",
}  # fmt: skip
CAMERA: dict[int, Any] = {0x9003: "2021:05:04 10:11:12", 0xA405: 26}


def block(gps: dict[int, Any] | None = None, camera: dict[int, Any] | None = None, **main: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = main.get("orientation", 1)
    for tag, value in (gps or {}).items():
        exif.get_ifd(0x8825)[tag] = value
    for tag, value in (camera or {}).items():
        exif.get_ifd(0x8769)[tag] = value
    return exif.tobytes()


def test_all_fields() -> None:
    for data in (block(LUND, CAMERA), block(LUND, CAMERA).removeprefix(b"Exif\0\0")):
        got = parse_exif(data, SIZE)
        assert (got.lat, got.lon) == pytest.approx((55.705, 13.19))
        assert got.heading_deg == pytest.approx(123.5)
        assert got.heading_magnetic_deg is None
        assert got.date == datetime.date(2021, 5, 4)
        # 26 mm on a 4:3 sensor of the film's diagonal: 34.6 mm wide.
        assert got.fov_deg == pytest.approx(67.3, abs=0.1)
        assert got.reasons == ()


def test_southern_and_western() -> None:
    got = parse_exif(block({**LUND, 1: "S", 3: "W"}))
    assert (got.lat, got.lon) == pytest.approx((-55.705, -13.19))


def test_portrait_sees_less() -> None:
    assert parse_exif(block({}, CAMERA), (4000, 3000)).fov_deg == pytest.approx(53.1, abs=0.1)


def test_magnetic_is_never_true() -> None:
    got = parse_exif(block({**LUND, 16: "M"}))
    assert got.heading_deg is None and got.heading_magnetic_deg == pytest.approx(123.5)
    assert any("magnetic" in reason for reason in got.reasons)
    without = {tag: value for tag, value in LUND.items() if tag != 16}
    for gps in (without, {**LUND, 16: "?"}, {**LUND, 16: ""}):
        got = parse_exif(block(gps))
        assert got.heading_deg is None and got.heading_magnetic_deg is None
        assert any("expected T or M" in reason for reason in got.reasons)


@pytest.mark.parametrize(
    ("gps", "reason"),
    [
        ({2: (91.0, 0.0, 0.0)}, "more than 90"),
        ({4: (180.0, 0.0, 1.0)}, "more than 180"),
        ({2: (10.0, 60.0, 0.0)}, "degrees, minutes, seconds"),
        ({1: "X"}, "expected N or S as reference"),
        ({1: ""}, "expected N or S as reference"),
        ({3: "N"}, "expected E or W as reference"),
        ({2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)}, "without a fix"),
        ({9: "V"}, "no fix"),
        ({18: "TOKYO"}, "not WGS84"),
    ],
)
def test_positions_that_are_none(gps: dict[int, Any], reason: str) -> None:
    got = parse_exif(block({**LUND, **gps}))
    assert got.lat is None and got.lon is None
    assert any(reason in text for text in got.reasons), got.reasons
    assert got.heading_deg is not None  # the rest is still read


def test_half_a_position() -> None:
    got = parse_exif(block({tag: value for tag, value in LUND.items() if tag not in (3, 4)}))
    assert got.lat is None and "only one of" in got.reasons[0]


def rational_block(numerator: int, denominator: int) -> bytes:
    """Latitude as three equal fractions, hand-made: Pillow would not write a zero denominator."""
    gps_at, value_at = 26, 26 + 2 + 12 * 2 + 4
    main = struct.pack("<H", 1) + struct.pack("<HHII", 0x8825, 4, 1, gps_at) + b"\0\0\0\0"
    gps = struct.pack("<H", 2) + struct.pack("<HHI4s", 1, 2, 2, b"N\0\0\0") + struct.pack("<HHII", 2, 5, 3, value_at)
    gps += b"\0\0\0\0"
    return b"II*\0\x08\0\0\0" + main + gps + struct.pack("<6I", *[numerator, denominator] * 3)


def test_zero_denominators() -> None:
    data = bytearray(block(LUND, CAMERA))
    found = False
    for at in range(0, len(data) - 8):  # every rational of 42/1 gets the denominator 0
        if data[at : at + 8] in (struct.pack("<II", 42, 1), struct.pack(">II", 42, 1)):
            data[at + 4 : at + 8] = b"\0\0\0\0"
            found = True
    assert found
    got = parse_exif(bytes(data), SIZE)
    assert got.lat is None and got.lon is None
    assert any("denominator 0" in reason for reason in got.reasons)
    assert parse_exif(rational_block(5, 0)).lat is None


@pytest.mark.parametrize("heading", [360.5, 1e6, 4e9])
def test_headings_out_of_range(heading: float) -> None:
    got = parse_exif(block({**LUND, 17: heading}))
    assert got.heading_deg is None and any("heading" in reason for reason in got.reasons)


def test_heading_of_360_is_north() -> None:
    assert parse_exif(block({**LUND, 17: 360.0})).heading_deg == 0.0


@pytest.mark.parametrize(
    "text", ["0000:00:00 00:00:00", "2021:13:01 00:00:00", "yesterday", "9999:01:01", "    :  :  "]
)
def test_dates_that_are_none(text: str) -> None:
    got = parse_exif(block({}, {0x9003: text}))
    assert got.date is None and "date" in got.reasons[0]
    assert parse_exif(block({29: "2020:06:01"}, {0x9003: text})).date == datetime.date(2020, 6, 1)


@pytest.mark.parametrize(
    ("camera", "size", "reason"),
    [
        ({0xA404: 2.0}, SIZE, "digital zoom"),
        ({0xA002: 4000, 0xA003: 3000}, (2000, 2000), "cropped"),
        ({}, (1000, 4000), "stitched"),
        ({0xA405: 60000}, SIZE, "would be"),
    ],
)
def test_fields_of_view_that_are_none(camera: dict[int, Any], size: tuple[int, int], reason: str) -> None:
    got = parse_exif(block({}, {**CAMERA, **camera}), size)
    assert got.fov_deg is None and any(reason in text for text in got.reasons), got.reasons
    assert parse_exif(block({}, {0xA405: 0}), SIZE) == PhotoExif()
    assert parse_exif(block({}, {**CAMERA, 0xA002: 4000, 0xA003: 3000}), (300, 400)).fov_deg is not None


def test_loops_end() -> None:
    for target in (8, 0, 4):
        entry = struct.pack("<HHII", 0x8825, 4, 1, target)
        data = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8)
        assert parse_exif(data).lat is None
    assert parse_exif(b"II*\0\x08\0\0\0" + b"\xff\xff" + b"\0" * 100).reasons == ("EXIF: 65535 entries",)
    assert parse_exif(b"II*\0\xff\xff\xff\xff").reasons == ("EXIF: points beyond the end of the block",)


@pytest.mark.parametrize("seed", range(500))
def test_malformed_blocks(seed: int) -> None:
    """Truncated, with flipped bytes, with pointers and counts set to extremes, or noise."""
    rng = np.random.default_rng(seed)
    data = bytearray(block(LUND, CAMERA) if seed % 5 else rational_block(55, 1))
    kind = seed % 4
    if kind == 0:
        data = data[: int(rng.integers(len(data)))]
    elif kind == 1:
        for at in rng.integers(6, len(data), size=rng.integers(1, 30)):
            data[at] = int(rng.integers(256))
    elif kind == 2:
        at = int(rng.integers(6, len(data) - 4))
        data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 8, 2**31, 2**32 - 1, len(data)])))
    else:
        start = int(rng.integers(6, len(data)))
        data[start:] = rng.integers(0, 256, len(data) - start, dtype=np.uint8).tobytes()
    got = parse_exif(bytes(data), SIZE)
    check(got)
    assert orientation_of(bytes(data)) in range(1, 9)
    # The photo itself decodes, whatever its block says.
    if seed % 10 == 0 and len(data) > 6:
        out = io.BytesIO()
        Image.new("RGB", (8, 6), (1, 2, 3)).save(out, "JPEG", exif=bytes(data))
        header = read_header(out.getvalue(), "a.jpg")
        check(parse_exif(header.exif, (header.height, header.width)))
        assert decode_image(out.getvalue(), "a.jpg").shape[:2] == (header.height, header.width)


def check(got: PhotoExif) -> None:
    assert (got.lat is None) == (got.lon is None)
    assert got.lat is None or (-90 <= got.lat <= 90 and -180 <= got.lon <= 180)  # type: ignore[operator]
    for heading in (got.heading_deg, got.heading_magnetic_deg):
        assert heading is None or 0 <= heading < 360
    assert got.fov_deg is None or 1 <= got.fov_deg <= 170
    assert all(isinstance(reason, str) and len(reason) < 200 for reason in got.reasons)


@pytest.mark.skipif(not GEOTAGGED.is_dir(), reason=f"no geotagged photos at {GEOTAGGED}: they cannot be shipped")
def test_real_photos() -> None:
    for path in sorted(GEOTAGGED.glob("*.jpg")):
        header = read_header(path.read_bytes(), path.name)
        got = parse_exif(header.exif, (header.height, header.width))
        assert got.lat == pytest.approx(55.7, abs=0.1) and got.lon == pytest.approx(13.19, abs=0.1), got
        assert decode_image(path.read_bytes(), path.name).shape[:2] == (header.height, header.width)
