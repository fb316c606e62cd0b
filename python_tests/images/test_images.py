"""Untrusted image files: decoded whole and upright, or a typed error that names the file."""

import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geoloc_fast.errors import ImageError
from geoloc_fast.images.decode import decode_image, fit_panorama, read_header, stitch_views

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_claiming(width: int, height: int, content: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.fromarray(PICTURE), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_claiming(width: int, height: int) -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height)]
    body = b"".join(struct.pack("<HHI", *entry[:3]) + struct.pack("<I", min(entry[3], 2**32 - 1)) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + b"\0\0\0\0"


def webp_claiming(width: int, height: int) -> bytes:
    """A VP8X header: canvas sizes are 24 bits."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def test_a_jpeg_of_many_scans_is_refused() -> None:
    data = encode(Image.fromarray(PICTURE), "JPEG", progressive=True)
    assert decode_image(data, "a").shape == (20, 30, 3)
    first = data.index(b"\xff\xda")
    scan = data[first : data.index(b"\xff\xda", first + 2)]
    with pytest.raises(ImageError, match=r"a: has [0-9]+ scans; at most 64"):
        read_header(data[:first] + 70 * scan + data[first:], "a")


def test_what_follows_a_jpeg_is_not_decoded() -> None:
    data = encode(Image.fromarray(PICTURE), "JPEG")
    assert (decode_image(data + bytes(1 << 20), "a") == decode_image(data, "a")).all()
    with pytest.raises(ImageError, match=r"cannot be decoded|truncated|is not a JPEG"):
        decode_image(data[:300] + bytes(1 << 20), "a")


def test_colours_of_16_bits_count_twice() -> None:
    header = struct.pack(">IIBBBBB", 7000, 7000, 16, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="a: needs 392000000 bytes when it is decoded"):
        read_header(data, "a")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_lossless_formats(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(Image.fromarray(PICTURE), format, **options)
    got = decode_image(data, "a")
    assert got.dtype == np.uint8 and got.flags.writeable
    np.testing.assert_array_equal(got, PICTURE)
    header = read_header(data, "a")
    assert (header.format, header.height, header.width) == (format, 20, 30)


def test_jpeg() -> None:
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 1, 3))
    got = decode_image(encode(Image.fromarray(smooth), "JPEG", quality=95), "a.jpg")
    assert np.abs(got.astype(int) - smooth).max() < 8


def test_modes() -> None:
    grey = PICTURE[..., 0]
    for mode, image in (("L", Image.fromarray(grey)), ("1", Image.fromarray(grey > 127))):
        got = decode_image(encode(image, "PNG"), mode)
        assert got.shape == (20, 30, 3) and (got == got[..., :1]).all()
    wide = grey.astype(np.uint16) * 257
    for format in ("PNG", "TIFF"):
        got = decode_image(encode(Image.fromarray(wide), format), "16 bit")
        np.testing.assert_array_equal(got[..., 0], grey)
    palette = Image.fromarray(PICTURE).quantize(16)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG"), "P"), np.asarray(palette.convert("RGB")))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode_image(encode(cmyk, "JPEG", quality=95), "CMYK")[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)
    with pytest.raises(ImageError, match="32 bits"):
        decode_image(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "heights.tif")


def test_transparency_is_black() -> None:
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:5] = 0
    image = Image.fromarray(np.dstack([PICTURE, alpha]))
    got = decode_image(encode(image, "PNG"), "a")
    assert (got[:5] == 0).all()
    np.testing.assert_array_equal(got[5:], PICTURE[5:])
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.putpalette([255, 255, 255] * 256)
    assert (decode_image(encode(palette, "PNG", transparency=0), "a") == 0).all()


def test_first_of_several() -> None:
    frames = [Image.fromarray(np.full((6, 6, 3), value, np.uint8)) for value in (10, 200)]
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(data, format) == 10).all(), format


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    flips = {2: (1, -1), 3: (-1, -1), 4: (-1, 1)}
    stored = PICTURE
    if orientation >= 5:
        stored = PICTURE.transpose(1, 0, 2)
    if orientation in flips:
        rows, columns = flips[orientation]
        stored = PICTURE[::rows, ::columns]
    elif orientation == 6:  # shown by turning it clockwise
        stored = np.rot90(PICTURE, 1)
    elif orientation == 7:
        stored = stored[::-1, ::-1]
    elif orientation == 8:
        stored = np.rot90(PICTURE, -1)
    for format in ("PNG", "TIFF"):
        data = encode(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif)
        header = read_header(data, "a")
        assert (header.height, header.width) == (20, 30), format
        np.testing.assert_array_equal(decode_image(data, "a"), PICTURE, err_msg=format)


def test_at_least_saves_work_and_never_goes_below() -> None:
    large = Image.fromarray(np.kron(PICTURE[:, :, :1], np.ones((40, 40, 3), np.uint8)))  # 800 x 1200
    data = encode(large, "JPEG", quality=90)
    for at_least, expected in (((100, 150), (100, 150)), ((101, 150), (200, 300)), ((900, 100), (800, 1200))):
        assert decode_image(data, "a", at_least=at_least).shape[:2] == expected
    exif = Image.Exif()
    exif[0x0112] = 6
    got = decode_image(encode(large, "JPEG", exif=exif), "a", at_least=(150, 100))
    assert got.shape[:2] == (150, 100)


BOMBS = {
    "png": png_claiming(50_000, 50_000, zlib.compress(b"\0" * 100_000)),
    "png beyond any limit": png_claiming(2**31 - 1, 2**31 - 1),
    "png a little too large": png_claiming(10_000, 9_000),
    "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6 + b",\0\0\0\0",
    "jpeg": jpeg_claiming(65_500, 65_500),
    "tiff": tiff_claiming(60_000, 60_000),
    "webp": webp_claiming(16_384, 16_383),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused(name: str) -> None:
    for read in (decode_image, read_header):
        with pytest.raises(ImageError, match=rf"^{name}: (claims|is not a|cannot be)") as caught:
            read(BOMBS[name], name)
        assert caught.value.path == name
    if name not in ("gif", "bmp"):
        # Older versions of Pillow refuse the header of a WebP before they say its size.
        early = "claims" in caught.value.reason or "could not create decoder" in caught.value.reason
        assert early or "beyond" in name, caught.value


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    """In a process of its own, so that the peak is that of the refusals."""
    (tmp_path / "bombs.pickle").write_bytes(pickle.dumps(BOMBS))
    code = """
import pickle, resource, sys, warnings
from geoloc_fast.images.decode import ImageError, decode_image
warnings.simplefilter("ignore")
bombs = pickle.load(open(sys.argv[1], "rb"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in bombs.items():
    try:
        decode_image(data, name)
        sys.exit(f"{name} was decoded")
    except ImageError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bombs.pickle")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000, "KiB"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_and_altered_files(format: str) -> None:
    picture = np.tile(RNG.integers(0, 256, (60, 1, 3), dtype=np.uint8), (1, 60, 1))
    data = encode(Image.fromarray(picture), format)
    whole = decode_image(data, "whole")
    ends = np.unique(np.linspace(0, len(data) - 24, 60).astype(int))
    for end in ends:
        with pytest.raises(ImageError, match=r"^cut: "):
            decode_image(data[:end], "cut")
    for trial in range(200):
        bad = bytearray(data)
        rng = np.random.default_rng(trial)
        for at in rng.integers(len(bad), size=3):
            bad[at] = int(rng.integers(256))
        try:
            got = decode_image(bytes(bad), "altered", max_pixels=1_000_000)
            assert got.dtype == np.uint8 and got.ndim == 3
        except ImageError as error:
            assert error.path == "altered"  # noqa: PT017
    assert whole.shape == (60, 60, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"<svg/>", b"%!PS-Adobe", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"II*\0"]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^photos/x\.jpg: "):
        decode_image(data, "photos/x.jpg")


def test_error_survives_a_process_boundary() -> None:
    again = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert str(again) == "a.jpg: is empty" and again.reason == "is empty"


@pytest.mark.parametrize(("height", "width"), [(1024, 2048), (224, 1232), (416, 1664), (300, 1200), (512, 512), (1, 7)])
def test_panoramas_of_any_aspect(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 2 :] = 255
    image[:, : width // 2, 0] = 100
    got = fit_panorama(image)
    assert got.shape == (128, 512, 3)
    if height > 1:
        assert (got[:63, :, 1] == 0).all() and (got[65:, :, 1] == 255).all()  # the horizon stays in the middle
        assert (got[:, :255, 0] == 100).all() and (got[65:, 257:, 0] == 255).all()


def test_full_sphere_is_cut_to_square_degrees() -> None:
    """A dot 30 degrees below the horizon of a 2:1 panorama lies 30 / 360 * 512 rows below the middle."""
    image = np.zeros((1024, 2048, 3), np.uint8)
    image[512 + round(30 / 180 * 1024) - 4 : 512 + round(30 / 180 * 1024) + 4] = 255
    rows = np.flatnonzero(fit_panorama(image)[:, 0, 0] > 100)
    assert rows.mean() + 0.5 == pytest.approx(64 + 30 / 360 * 512, abs=0.6)


def test_stitched_views_look_where_they_should() -> None:
    """A dot in the middle of the view to the east lies at heading 90 of a panorama whose column 0 is at 315."""
    views = [np.full((90, 90, 3), 20, np.uint8) for _ in range(4)]
    views[1][40:50, 43:47] = 250
    got = stitch_views(views)
    assert got.shape == (128, 512, 3)
    columns = np.flatnonzero(got[64, :, 0] > 100)
    assert (315 + 360 / 512 * columns.mean()) % 360 == pytest.approx(90, abs=1)
    with pytest.raises(ValueError, match="expected four views"):
        stitch_views(views[:3])
