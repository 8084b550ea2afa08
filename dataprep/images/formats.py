"""Supported image file formats: names, extensions and magic bytes."""

from __future__ import annotations

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's names
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 50_000_000  # default limit of an image that is decoded


def is_image(head: bytes) -> bool:
    """Returns whether a file that begins with ``head`` (16 bytes, or the whole file) is in a supported format."""
    return head.startswith((JPEG_START, PNG_START, b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )


def has_image_extension(name: str) -> bool:
    """Returns whether a file name ends with the extension of a supported format, in any case."""
    return name.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))
