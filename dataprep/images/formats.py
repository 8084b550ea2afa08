"""Supported image file formats: names, extensions and magic bytes."""

from __future__ import annotations

# Best first, where one sample has several.
IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif", "jpe", "jfi", "pjpeg", "pjp"),
    *("avif", "apng", "dib", "jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm"),
)
# Images that are listed and not read: their rows carry a reason, unless the file is in another format in truth.
UNREAD_EXTENSIONS = (
    *("heic", "heif", "hif", "jxl", "psd", "svg", "tga", "ico", "exr", "hdr", "jxr", "bpg", "xcf"),
    *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"),  # their TIFF header leads to a thumbnail
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # Pillow's names
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
JPEG2000_START = b"\0\0\0\x0cjP  \r\n\x87\n"
PPM_STARTS = (b"P4", b"P5", b"P6")  # the binary kinds; Pillow reads the others in Python, slowly
MAX_PIXELS = 50_000_000  # default limit of an image that is decoded


def is_photo(head: bytes) -> bool:
    """Returns whether a file under any name begins as one in a format whose first bytes nothing else has."""
    return head.startswith((JPEG_START, PNG_START, b"GIF87a", b"GIF89a")) or (
        (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")
    )


def is_image(head: bytes) -> bool:
    """Returns whether a file that begins with ``head`` (16 bytes, or the whole file) is in a supported format."""
    others = (b"BM", b"II*\0", b"MM\0*", JPEG2000_START, b"\xff\x4f\xff\x51")
    return is_photo(head) or head.startswith(others) or (head[:2] in PPM_STARTS and head[2:3].isspace())


def has_image_extension(name: str) -> bool:
    """Returns whether a file name ends with the extension of a supported format, in any case."""
    return name.lower().endswith(tuple(f".{extension}" for extension in IMAGE_EXTENSIONS))


def describe_unread(extension: str, head: bytes) -> str | None:
    """Returns why an image file with this lower-case extension is not read; None if its first bytes say that it is."""
    if extension not in UNREAD_EXTENSIONS or is_photo(head):
        return None
    return f"{extension} images are not read; convert them to jpg or png"
