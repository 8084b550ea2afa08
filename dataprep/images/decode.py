"""Decodes untrusted image files to RGB pixels, and reads the images of a download shard's tar.

Legend: H height, W width, C=3 channels (red, green, blue). Pixels are uint8 in 0..255, laid out HWC.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from dataprep.images.colour import convert_pixels, convert_to_srgb, find_conversion
from dataprep.images.formats import FORMATS, IMAGE_EXTENSIONS, JPEG_START, MAX_PIXELS, PNG_START
from dataprep.io.failure_reasons import FailedError

ORIENTATION = 0x0112  # EXIF tag of the orientation
TURNED = (5, 6, 7, 8)  # values of it that swap width and height
JPEG_MARKS = (b"Exif\0\0", b"ICC_PROFILE\0")  # how segments of orientation and colour profile begin
MAX_SEGMENTS = 300  # of a JPEG before its pixels; most have ten
JPEG_SCAN = b"\xff\xda"
PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT")
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
MAX_SCANS = 100  # a progressive JPEG has about ten; each is decoded over all pixels, so thousands are an attack
STRIP = 1 << 20  # pixels per step of conversions that need more memory than their result


class ImageError(FailedError, ValueError):
    """Why bytes cannot be decoded; ``reason`` is a pure function of the bytes and the pixel limit."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads the header only; the result is of a supported format and has at most ``max_pixels``.

    Raises ImageError otherwise.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("not_image", "not an image of a supported format") from error
    except Image.DecompressionBombError as error:
        raise ImageError("pixels", f"more than max_pixels={max_pixels} pixels") from error
    except Exception as error:  # Pillow raises many types on hostile headers (struct.error, SyntaxError, ...)
        raise ImageError("damaged", f"unreadable header: {type(error).__name__}: {error}") from error
    check_pixels(*image.size, max_pixels)
    return image


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError for more than ``max_pixels`` pixels, or none."""
    if width * height > max_pixels:
        raise ImageError("pixels", f"{width}x{height} is more than max_pixels={max_pixels} pixels")
    if width * height == 0:
        raise ImageError("damaged", "no pixels")


class OpenImage:
    """An image file whose header has been read; decodes its pixels on request.

    ``width`` and ``height`` are in pixels, after EXIF orientation. Raises ImageError: not an image, too large.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data, self._plain_png, self._has_profile = data, False, False
        self._image: Image.Image | None = None
        if data.startswith(JPEG_START) and data.count(JPEG_SCAN) > MAX_SCANS:
            raise ImageError("damaged", f"a JPEG of more than {MAX_SCANS} scans")
        jpeg = _read_jpeg_header(data)
        if jpeg is not None:
            width, height = jpeg
            check_pixels(width, height, max_pixels)
            marks = find_marks(data)
            self._has_profile = b"ICC_PROFILE\0" in marks
            header = _open_quietly(data) if b"Exif\0\0" in marks else None
            self._orientation = 1 if header is None else _read_orientation(header)
        else:
            self._image = open_image(data, max_pixels)
            self._plain_png = _check_png(data) and find_conversion(self._image.info, self._image.mode) is None
            width, height = self._image.size
            # Pillow would decode a whole PNG to look for EXIF.
            self._orientation = 1 if self._plain_png else _read_orientation(self._image)
        turned = self._orientation in TURNED
        self.width, self.height = (height, width) if turned else (width, height)

    def decode(self, width: int = 0, height: int = 0) -> np.ndarray:
        """Decodes to uint8 HWC RGB: EXIF orientation and colour profile applied, alpha over white, 16 bits scaled to 8,
        first frame.

        With ``width`` and ``height`` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but no side below these: the
        decoder drops high frequencies of 8x8 blocks, which further shrinking would remove anyway.
        Raises ImageError: truncated, damaged, a mode without an RGB interpretation.
        """
        if self._image is None:
            if self._orientation in TURNED:
                width, height = height, width
            try:
                pixels = simplejpeg.decode_jpeg(self._data, "RGB", min_width=width, min_height=height, min_factor=2)
            except (ValueError, KeyError) as error:
                _check_jpeg(str(error))
                self._image = open_image(self._data, self.width * self.height)
            else:
                if self._has_profile and (header := _open_quietly(self._data)) is not None:
                    pixels = convert_pixels(pixels, header.info, header.mode)
                return np.ascontiguousarray(_apply_orientation(pixels, self._orientation))
        if self._plain_png and (plain := _decode_plain_png(self._data)) is not None:
            return plain
        try:
            self._image.load()
            return convert_image(self._image)
        except ImageError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error, zlib.error, ...
            raise _describe_damage(error) from error


def _describe_damage(error: Exception) -> ImageError:
    text = str(error) if isinstance(error, OSError) else ""
    if "truncated" in text:
        return ImageError("truncated", f"damaged image: {text}")
    return ImageError("damaged", f"damaged image: {text}" if text else "damaged image")


def _read_jpeg_header(data: bytes) -> tuple[int, int] | None:
    """Returns (width, height) of a JPEG that simplejpeg decodes (not CMYK); None for files left to Pillow."""
    if not data.startswith(JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: a subsampling or colour space unknown to it
        return None
    return (int(width), int(height)) if str(colours).upper() in ("YCBCR", "RGB", "GRAY") else None


def _check_jpeg(warning: str) -> None:
    """Raises ImageError if the decoder's warning means lost pixels; other files are left to Pillow.

    "Corrupt JPEG data: 3 extraneous bytes before marker" is common and harmless.
    """
    if "Premature end of JPEG" in warning:
        raise ImageError("truncated", "damaged image: the JPEG is truncated")
    if "Corrupt JPEG data" in warning and "extraneous bytes" not in warning:
        raise ImageError("damaged", "damaged image: corrupt JPEG data")


def _check_png(data: bytes) -> bool:
    """Returns whether ``data`` is a plain PNG: complete, 8 bits, grey, RGB or RGBA, not interlaced, one frame, no EXIF.

    Raises ImageError for a wrong checksum of header, palette or pixels, which Pillow would decode to noise. Truncated
    files are left to Pillow, which knows whether pixels are missing.
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
        plain &= kind in PNG_PLAIN and not data.startswith(b"Raw profile", place + 8)  # EXIF as ImageMagick stores it
        place = end
    return plain and kind == b"IEND"


def _decode_plain_png(data: bytes) -> np.ndarray | None:
    """Decodes a plain PNG to uint8 HWC RGB, alpha over white, faster than Pillow; None if OpenCV cannot."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return _to_rgb(Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def find_marks(data: bytes) -> set[bytes]:
    """Returns which of `JPEG_MARKS` begin a segment before the pixels of a JPEG; far cheaper than Pillow's header.

    All of them for a file with stray bytes or hundreds of segments, which is left to Pillow.
    """
    found: set[bytes] = set()
    place = 2
    for _ in range(MAX_SEGMENTS):
        marker = data[place + 1 : place + 2]
        if data[place : place + 1] != b"\xff" or not marker:
            break
        if marker == b"\xda":
            return found
        found.update(mark for mark in JPEG_MARKS if data.startswith(mark, place + 4))
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return set(JPEG_MARKS)


def _open_quietly(data: bytes) -> Image.Image | None:
    """Reads the header of a JPEG that has been decoded; None where Pillow cannot."""
    try:
        return open_image(data, MAX_PIXELS * 1000)
    except ImageError:
        return None


def _read_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # hostile EXIF breaks its parser in many ways; unreadable means not rotated
        return 1
    return value if value in range(1, 9) else 1


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    """Applies the EXIF orientation (1 to 8) to HWC pixels."""
    if orientation in TURNED:
        image = image.transpose(1, 0, 2)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:: -1 if vertical else 1, :: -1 if horizontal else 1]


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file to uint8 HWC RGB, see `OpenImage.decode`; the pixel limit is checked on the header.

    Raises ImageError: not an image, truncated, too large, a mode without an RGB interpretation.
    """
    return OpenImage(data, max_pixels).decode()


def convert_image(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image whose pixels are loaded to uint8 HWC RGB, see `OpenImage.decode`.

    Raises ImageError: a mode without an RGB interpretation.
    """
    return np.ascontiguousarray(_to_rgb(convert_to_srgb(ImageOps.exif_transpose(image))))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Converts any Pillow mode to uint8 HWC RGB."""
    if image.mode == "F":
        raise ImageError("mode", "floating-point pixels have no defined range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's conversion clips at 255, so mid-grey would become white
        return _grey16_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return np.asarray(white)
    return np.asarray(image.convert("RGB"))


def _grey16_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    """Converts grey of 0..65535 to uint8 HWC RGB, in strips to bound the memory of wide integers."""
    rgb = np.empty((*grey_HW.shape, 3), np.uint8)
    rows = max(1, STRIP // grey_HW.shape[1])
    for top in range(0, len(grey_HW), rows):
        strip_HW = grey_HW[top : top + rows].astype(np.int64)
        rgb[top : top + rows] = np.clip((strip_HW + 128) // 257, 0, 255).astype(np.uint8)[..., None]
    return rgb


def read_shard_images(tar_path: str | Path) -> Iterator[tuple[str, bytes]]:
    """Yields (key, encoded image) of a download shard's tar, in its order, one image in memory at a time."""
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
