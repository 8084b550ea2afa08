"""From encoded image bytes to RGB pixels, safely, and from a download shard's tar to its images.

Legend: H height, W width, C=3 channels (red, green, blue), N images. Pixels are uint8 in 0..255, laid out HWC.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from dataprep.reasons import FailedError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
CROPS = ("centre", "squash")
ORIENTATION = 0x0112  # the EXIF tag that says how the picture has to be turned
TURNED = (5, 6, 7, 8)  # its values that swap width and height
JPEG_START, JPEG_SCAN = b"\xff\xd8\xff", re.compile(b"\xff\xda")
PNG_START, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"IDAT")
PNG_PLAIN = (
    *PNG_PIXELS,
    b"IEND",
    b"pHYs",
    b"tIME",
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"iCCP",
    b"bKGD",
    b"tEXt",
    b"iTXt",
    b"sBIT",
)
PNG_PLAIN_COLOURS = (b"\0", b"\2", b"\6")  # grey, RGB, RGBA
MAX_SCANS = 100  # a progressive JPEG has about ten; each takes time for all the pixels, so thousands are an attack
STRIP = 1 << 20  # pixels converted at a time, where a conversion needs more memory than its result


class ImageError(FailedError, ValueError):
    """Why bytes are no picture: ``reason`` as in `dataprep.reasons`, a pure function of the bytes and the limit."""


def is_image(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (16 bytes, or all it has) is of a supported format."""
    return head.startswith((JPEG_START, PNG_START, b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads the header alone: the undecoded image, known to be of a supported format and within ``max_pixels``.

    Raises ImageError, a ValueError with the reason, which is a pure function of ``data`` and ``max_pixels``.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not_image", "not an image of a supported format") from error
    except Image.DecompressionBombError as error:
        raise ImageError("pixels", f"more than max_pixels={max_pixels} pixels") from error
    except Exception as error:  # Pillow's parsers raise many types on hostile headers (struct.error, SyntaxError, ...)
        raise ImageError("damaged", f"unreadable header: {type(error).__name__}: {error}") from error
    check_pixels(*image.size, max_pixels)
    return image


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError for an image of more than ``max_pixels`` pixels, or none."""
    if width * height > max_pixels:
        raise ImageError("pixels", f"{width}x{height} is more than max_pixels={max_pixels} pixels")
    if width * height == 0:
        raise ImageError("damaged", "no pixels")


class Picture:
    """An image file whose header was read: its size as it is to be shown, and its pixels on request.

    ``width`` and ``height`` are in pixels, turned as EXIF says. Raises ImageError: not an image, too large.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data, self._plain_png = data, False
        self._image: Image.Image | None = None
        if data.startswith(JPEG_START) and len(JPEG_SCAN.findall(data)) > MAX_SCANS:
            raise ImageError("damaged", f"a JPEG of more than {MAX_SCANS} scans")
        jpeg = _jpeg_header(data)
        if jpeg is not None:
            width, height = jpeg
            check_pixels(width, height, max_pixels)
            self._orientation = _jpeg_orientation(data)
        else:
            self._image = open_image(data, max_pixels)
            self._plain_png = _check_png(data)
            width, height = self._image.size
            # Pillow decodes a whole PNG to be sure that it has no EXIF.
            self._orientation = 1 if self._plain_png else _orientation(self._image)
        turned = self._orientation in TURNED
        self.width, self.height = (height, width) if turned else (width, height)

    def rgb(self, width: int = 0, height: int = 0) -> np.ndarray:
        """The pixels: uint8 HWC RGB, turned as EXIF says, alpha laid over white, 16 bits scaled to 8.

        With ``width`` and ``height``, a JPEG may come out smaller by 2, 4 or 8, but no side below these: the decoder
        averages 8x8 blocks' frequencies to fewer pixels, which is exact for what a further shrinking keeps.
        Of an animation the first frame. Raises ImageError: truncated, damaged, a mode without a meaning as RGB.
        """
        if self._image is None:
            if self._orientation in TURNED:
                width, height = height, width
            try:
                pixels = simplejpeg.decode_jpeg(self._data, "RGB", min_width=width, min_height=height, min_factor=2)
                return np.ascontiguousarray(_turn(pixels, self._orientation))
            except (ValueError, KeyError) as error:
                _check_jpeg(str(error))
                self._image = open_image(self._data, self.width * self.height)
        if self._plain_png and (plain := _decode_plain_png(self._data)) is not None:
            return plain
        try:
            self._image.load()
            image = ImageOps.exif_transpose(self._image)
            return np.ascontiguousarray(_to_rgb(image))
        except ImageError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error, zlib.error, ...
            raise _damaged(error) from error


def _damaged(error: Exception) -> ImageError:
    text = str(error) if isinstance(error, OSError) else ""
    if "truncated" in text:
        return ImageError("truncated", f"damaged image: {text}")
    return ImageError("damaged", f"damaged image: {text}" if text else "damaged image")


def _jpeg_header(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that simplejpeg decodes (not CMYK); None for what Pillow has to look at."""
    if not data.startswith(JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a subsampling or a colour space that it has no name for
        return None
    return (int(width), int(height)) if str(colours).upper() in ("YCBCR", "RGB", "GRAY") else None


def _check_jpeg(warning: str) -> None:
    """Raises ImageError where the decoder's warning means lost pixels; with the others Pillow may still manage.

    "Corrupt JPEG data: 3 extraneous bytes before marker" is common and harmless.
    """
    if "Premature end of JPEG" in warning:
        raise ImageError("truncated", "damaged image: the JPEG is truncated")
    if "Corrupt JPEG data" in warning and "extraneous bytes" not in warning:
        raise ImageError("damaged", "damaged image: corrupt JPEG data")


def _check_png(data: bytes) -> bool:
    """Whether ``data`` is a plain PNG: whole, of 8 bits, grey, RGB or RGBA, not interlaced, of one frame, without EXIF.

    Raises ImageError for a wrong checksum over header, palette or pixels: Pillow would show noise there. What ends
    early is left to it, since it knows whether pixels are missing.
    """
    if not data.startswith(PNG_START):
        return False
    plain = data[24:25] == b"\x08" and data[25:26] in PNG_PLAIN_COLOURS and data[28:29] == b"\0"
    place, kind = len(PNG_START), b""
    while place + 12 <= len(data) and kind != b"IEND":
        end, kind = place + 12 + int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if end > len(data):
            return False
        if kind in PNG_PIXELS and zlib.crc32(memoryview(data)[place + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            raise ImageError("damaged", "damaged image: wrong checksum")
        plain &= kind in PNG_PLAIN and not data.startswith(b"Raw profile", place + 8)  # EXIF as ImageMagick hides it
        place = end
    return plain and kind == b"IEND"


def _decode_plain_png(data: bytes) -> np.ndarray | None:
    """uint8 HWC RGB of a plain PNG, alpha laid over white, by a faster decoder than Pillow's; None where it cannot."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return _to_rgb(Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_orientation(data: bytes) -> int:
    # Most files have no EXIF; for those the search is far cheaper than another reading of the header.
    if b"Exif\0\0" not in data[: 1 << 17]:
        return 1
    try:
        return _orientation(open_image(data, MAX_PIXELS * 1000))
    except ImageError:
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # hostile EXIF breaks its parser in many ways; a picture without a readable one is not turned
        return 1
    return value if value in range(1, 9) else 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns HWC pixels as the EXIF orientation (1 to 8) says."""
    if orientation in TURNED:
        image = image.transpose(1, 0, 2)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file to uint8 HWC RGB, as `Picture.rgb` does; the pixel limit is checked on the header.

    Raises ImageError, a ValueError with the reason: not an image, truncated, too large, a mode without a meaning.
    """
    return Picture(data, max_pixels).rgb()


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode to uint8 HWC RGB."""
    if image.mode == "F":
        raise ImageError("mode", "floating-point pixels have no defined range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255, a mid-grey would come out white
        return _grey16_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return np.asarray(white)
    return np.asarray(image.convert("RGB"))


def _grey16_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    """Grey of 0..65535 to uint8 HWC RGB, in strips: a whole image of wide integers would need many times its size."""
    rgb = np.empty((*grey_HW.shape, 3), np.uint8)
    rows = max(1, STRIP // grey_HW.shape[1])
    for top in range(0, len(grey_HW), rows):
        strip_HW = grey_HW[top : top + rows].astype(np.int64)
        rgb[top : top + rows] = np.clip((strip_HW + 128) // 257, 0, 255).astype(np.uint8)[..., None]
    return rgb


def resize_square(image: np.ndarray, size: int, crop: str = "centre") -> np.ndarray:
    """`resize_to` a square of ``size``."""
    return resize_to(image, (size, size), crop)


def resize_to(image: np.ndarray, shape: tuple[int, int], crop: str = "centre") -> np.ndarray:
    """Resizes uint8 HWC to ``shape`` (height, width): area averaging where it shrinks (antialiased), else cubic.

    ``crop`` is "centre" (the largest centred window of that aspect) or "squash" (the whole image, aspect lost).
    """
    if crop not in CROPS:
        raise ValueError(f"crop {crop!r} is not one of {', '.join(CROPS)}")
    height, width = image.shape[:2]
    if crop == "centre" and height * shape[1] != width * shape[0]:
        inner = (
            min(height, max(1, round(width * shape[0] / shape[1]))),
            min(width, max(1, round(height * shape[1] / shape[0]))),
        )
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        image = image[top : top + inner[0], left : left + inner[1]]
    if image.shape[:2] == shape:
        return np.ascontiguousarray(image)
    shrinks = image.shape[0] >= shape[0] and image.shape[1] >= shape[1]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def read_shard_images(tar_path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yields (key, encoded image bytes) of a download shard's tar, in its order, one image in memory at a time."""
    with tarfile.open(tar_path, "r|") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension in IMAGE_EXTENSIONS:
                file = tar.extractfile(member)
                assert file is not None, member.name
                yield key, file.read()


def read_shard_rgb(tar_path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, uint8 HWC RGB) of a download shard's tar, in its order."""
    for key, data in read_shard_images(tar_path):
        yield key, decode_rgb(data, max_pixels)
