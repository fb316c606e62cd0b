"""Image files from untrusted sources, decoded to uint8 RGB arrays.

JPEG, PNG, WebP and TIFF, nothing else. The size a header claims is checked before any pixel is decoded. A file
that is truncated, or is not what it says, is an ImageError with the file's name in it, never half an image. What
decoding can cost is bounded before it begins: `MAX_PIXELS`, `MAX_DECODED_BYTES` (16-bit colours count twice),
`MAX_SCANS` of a progressive JPEG, each of which goes over all of it; what follows the end of a JPEG is not read.

- EXIF orientation is applied: arrays are upright.
- Grey becomes RGB; 16-bit grey is scaled to 8 bits; CMYK, YCbCr and palettes are converted. Colour profiles are not
  applied.
- Transparent pixels are black, as what lies outside an image is everywhere else.
- Of an animation or a file with several pages, the first image counts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from geoloc_fast.errors import ImageError
from geoloc_fast.images.cylindrical import to_cylindrical
from geoloc_fast.images.exif import orientation_of

__all__ = [
    "FORMATS",
    "MAX_DECODED_BYTES",
    "MAX_PIXELS",
    "MAX_SCANS",
    "ImageHeader",
    "decode_image",
    "decode_rgba",
    "fit_panorama",
    "read_header",
    "require_panorama",
    "stitch_views",
]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow warns beyond this; here it is an error
MAX_DECODED_BYTES = 3 * MAX_PIXELS
MAX_SCANS = 64  # cameras and libraries write 1 to 12
_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "LA": 4, "PA": 4, "La": 4, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3}
_POLE_TO_POLE_DEG = 187.2  # 180, and what rounding to pixels and stitching add
_GEO_KEYS = 34735  # tag of a GeoTIFF: its georeference would be lost here without a word
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself before it is decoded. `height` and `width` are of the upright image."""

    format: str
    height: int
    width: int
    exif: bytes


def read_header(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format, size and EXIF block, without decoding. ImageError as `decode_image` has it, except for broken pixels."""
    image, header = _open(data, name, max_pixels)
    image.close()
    return header


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> np.ndarray:
    """uint8 [height, width, 3], RGB, upright.

    Args:
        data: the file.
        name: of the file, for the error.
        max_pixels: an image that claims more is refused undecoded.
        at_least: (height, width) that are enough. A JPEG may come at a half, quarter or eighth of its size then, if
            that is still as large: much faster for large photos.

    Raises:
        ImageError: not one of FORMATS, too large, empty, truncated, or of a kind that is no picture.
    """
    image, header = _open(data, name, max_pixels)
    try:
        # Pillow turns a TIFF itself, and nothing else.
        orientation = 1 if header.format == "TIFF" else orientation_of(header.exif)
        if at_least is not None and image.mode in ("RGB", "L"):
            height, width = at_least if orientation < 5 else at_least[::-1]
            image.draft(None, (width, height))  # of JPEG only
        image.load()
        image = _to_rgb(image, name)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        return np.array(image)  # a copy: Pillow's own buffer is read-only
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything at hostile files: SyntaxError, struct.error, KeyError, ...
        raise ImageError(name, f"cannot be decoded: {error or type(error).__name__}") from error
    finally:
        image.close()


def decode_rgba(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [height, width, 4] of a map tile: as `decode_image`, with its transparency, and never turned."""
    image, _ = _open(data, name, max_pixels)
    try:
        image.load()
        return np.array(image.convert("RGBA"))
    except Exception as error:
        raise ImageError(name, f"cannot be decoded: {error or type(error).__name__}") from error
    finally:
        image.close()


def _open(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, ImageHeader]:
    if not data:
        raise ImageError(name, "is empty")
    if data[:3] == b"\xff\xd8\xff":
        end = data.rfind(b"\xff\xd9")
        data = data[: end + 2] if end > 0 else data  # without what follows the last end of image
        # In coded data a marker's first byte is followed by 0: these are scans, or those of a preview.
        if (scans := data.count(b"\xff\xda")) > MAX_SCANS:
            raise ImageError(name, f"has {scans} scans; at most {MAX_SCANS} of a JPEG are decoded")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, f"claims more than the {max_pixels} pixels that are decoded") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(name, "is not a JPEG, PNG, WebP or TIFF image") from error
    except Exception as error:
        raise ImageError(name, f"cannot be opened as an image: {error or type(error).__name__}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(name, f"claims a size of {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(name, f"claims {width} x {height} pixels; at most {max_pixels} are decoded")
    wide = 2 if image.format == "PNG" and data[24:25] == b"\x10" else 1  # bits a colour, in the header of every PNG
    if (needed := width * height * wide * _BYTES_A_PIXEL.get(image.mode, 4)) > MAX_DECODED_BYTES:
        image.close()
        raise ImageError(name, f"needs {needed} bytes when it is decoded; at most {MAX_DECODED_BYTES} are given")
    if image.format == "TIFF" and _GEO_KEYS in image.tag_v2:  # type: ignore[attr-defined]
        image.close()
        raise ImageError(name, "is a map (GeoTIFF); crop places from it with `geoloc-fast read raster`")
    exif = data if image.format == "TIFF" else image.info.get("exif", b"")
    exif = exif if isinstance(exif, bytes) else b""
    # Recent versions of Pillow give the upright size of a TIFF before loading it, others not.
    upright = image.format == "TIFF" and image.size != (image.tag_v2.get(256), image.tag_v2.get(257))  # type: ignore[attr-defined]
    if orientation_of(exif) >= 5 and not upright:
        width, height = height, width
    return image, ImageHeader(image.format or "", height, width, exif)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(name, f"holds {image.mode} values of 32 bits, which are no picture")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(image, mask=image.getchannel("A"))
        return black
    return image.convert("RGB")


def require_panorama(header: ImageHeader, name: str, fov_deg: float = 360.0) -> None:
    """ImageError unless an image of this size can be a panorama: 64 x 16 pixels or more, and over `fov_deg` all the
    way across no more than pole to pole."""
    upright_deg = header.height / header.width * fov_deg
    if upright_deg > _POLE_TO_POLE_DEG or header.width < 64 or header.height < 16:
        what = "the whole circle" if fov_deg == 360 else f"{fov_deg:g} degrees"
        raise ImageError(name, f"{header.width} x {header.height} pixels are no panorama of {what}")


def fit_panorama(image: np.ndarray, size: tuple[int, int] = (128, 512)) -> np.ndarray:
    """A street panorama of any height at `size`, with the horizon in the middle of both.

    The columns go all the way round, so their angle is known; rows that a taller panorama has beyond the angle
    of `size` are cut off, as far above as below (of a full sphere at 128 x 512, what is more than 45 degrees from the
    horizon). A panorama that shows less than that is stretched to the height, as the published systems do.

    Args:
        image: uint8 [h, w, 3]
        size: (rows, columns) of the result.
    """
    height, width = image.shape[:2]
    rows = min(height, max(1, round(width * size[0] / size[1])))
    top = (height - rows) // 2
    return np.asarray(cv2.resize(image[top : top + rows], (size[1], size[0]), interpolation=cv2.INTER_AREA))


def stitch_views(views: list[np.ndarray], size: tuple[int, int] = (128, 512)) -> np.ndarray:
    """One panorama of four views at headings 0, 90, 180, 270 with a field of view of 90 degrees each.

    Each is reprojected to azimuth columns first. The first begins half a view before north: `column0_deg` is 315.

    Args:
        views: four uint8 [h, w, 3]
        size: (rows, columns) of the result; columns a multiple of 4.
    """
    if len(views) != 4 or size[1] % 4:
        raise ValueError(
            "views, size: expected four views and columns a multiple of 4, "
            f"got {len(views)} views and {size[1]} columns"
        )
    return np.concatenate([to_cylindrical(view, 90.0, size=size) for view in views], axis=1)
