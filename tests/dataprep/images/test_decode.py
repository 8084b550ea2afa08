"""Decoding of every format and mode."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataprep.images import decode
from dataprep.images.decode import decode_rgb, read_shard_images, read_shard_rgb
from tests.helpers.images import encoded, picture


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    image = picture()
    assert np.array_equal(decode_rgb(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))), image)


def test_exif_orientation_is_applied() -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    decoded = decode_rgb(encoded(image, "PNG", exif=exif))
    assert np.array_equal(decoded, np.rot90(image, -1))


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    decoded = decode_rgb(encoded(Image.fromarray(rgba)))
    assert decoded[0, 0].tolist() == [10, 20, 30] and (decoded[1, 1] == 255).all()


def test_palette_with_transparency_and_grey_and_cmyk() -> None:
    palette = Image.new("P", (3, 3), 0)
    palette.putpalette([200, 0, 0] * 256)
    assert (decode_rgb(encoded(palette)) == (200, 0, 0)).all()
    assert (decode_rgb(encoded(palette, transparency=0)) == 255).all()
    assert (decode_rgb(encoded(Image.new("L", (3, 3), 77))) == 77).all()
    assert (decode_rgb(encoded(Image.new("1", (3, 3), 1))) == 255).all()
    assert decode_rgb(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).min() > 250


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert (decode_rgb(encoded(grey)) == 128).all()
    assert (decode_rgb(encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)))) == 255).all()


def huge_png() -> bytes:
    """A valid PNG header of 60000 x 60000 pixels without pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<!DOCTYPE html><html></html>", "not an image"),
        (encoded(picture(), "JPEG")[:-300], "truncated"),
        (encoded(picture(), "JPEG")[:-300] + bytes(200) + b"\xff\xd9", "corrupt"),
        (
            encoded(picture(), "PNG").replace(b"IDAT" + encoded(picture(), "PNG")[41:60], b"IDAT" + bytes(19)),
            "checksum",
        ),
        (encoded(picture(), "PNG")[:-200], "truncated"),
        (encoded(picture(), "WEBP")[:200], "unreadable header"),
        (huge_png(), "max_pixels"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
    ],
)
def test_bad_files_raise_a_reason_without_addresses(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        decode_rgb(data)
    assert "0x" not in str(caught.value)


def test_pixel_limit_is_inclusive() -> None:
    data = encoded(picture(width=10, height=10))
    assert decode_rgb(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ValueError, match="max_pixels=99"):
        decode_rgb(data, max_pixels=99)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=12))
def test_damaged_bytes_give_pixels_or_a_value_error(kind: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(picture(), ("JPEG", "PNG", "WEBP")[kind]))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        image = decode_rgb(bytes(data), max_pixels=1_000_000)
    except ValueError:
        return
    assert image.dtype == np.uint8 and image.shape[2] == 3


def test_shard_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for key in ("b", "a"):
            for name, data in ((f"{key}.png", encoded(picture(ord(key)))), (f"{key}.txt", b"words")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert [key for key, _ in read_shard_images(path)] == ["b", "a"]
    assert np.array_equal(dict(read_shard_rgb(path))["a"], picture(ord("a")))


def test_jpegs_decode_to_the_pixels_of_pillow() -> None:
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 40}):
        data = encoded(picture(7), "JPEG", **options)
        assert np.array_equal(decode_rgb(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), options
    grey = encoded(Image.fromarray(picture(7)).convert("L"), "JPEG")
    assert np.array_equal(decode_rgb(grey)[..., 0], np.asarray(Image.open(io.BytesIO(grey))))


def test_a_jpeg_with_stray_bytes_is_decoded() -> None:
    data = encoded(picture(7), "JPEG")
    with_dirt = data[:-2] + b"\x00\x01\x02" + data[-2:]
    assert np.array_equal(decode_rgb(with_dirt), decode_rgb(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation(kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(picture(), kind, exif=exif)
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(decode_rgb(data), np.asarray(shown)), orientation


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    red, _, blue = decode_rgb(buffer.getvalue())[10, 10]
    assert red > 250 and blue < 5


def test_sixteen_bits_of_colour() -> None:
    rgb16 = np.full((4, 4, 3), 0x80FF, np.uint16)
    data = cv2.imencode(".png", rgb16)[1].tobytes()
    assert set(np.unique(decode_rgb(data))) <= {128, 129}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("extra", [b"", png_chunk(b"tEXt", b"a\0b"), png_chunk(b"tRNS", b"\0\1" * 3), b"eXIf"])
def test_pngs_decode_to_the_same_pixels_by_either_decoder(
    mode: str, extra: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = picture(3).copy()
    colours[:40] = 255
    image = Image.fromarray(np.dstack([colours, colours[..., 0]])).convert(mode.replace("I;16", "L"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image, exif=exif) if extra == b"eXIf" else encoded(image)
    if extra != b"eXIf":
        data = data[:33] + extra + data[33:]
    fast: np.ndarray | None
    slow: np.ndarray | None
    try:
        fast = decode_rgb(data)
    except ValueError:
        fast = None  # a transparency of the wrong length for the mode
    monkeypatch.setattr(decode, "_decode_plain_png", lambda data: None)
    try:
        slow = decode_rgb(data)
    except ValueError:
        slow = None
    assert np.array_equal(fast, slow) if fast is not None and slow is not None else fast is slow


def test_a_png_with_too_few_pixels_and_valid_checksums() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(300)))
    with pytest.raises(ValueError, match="truncated"):
        decode_rgb(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b""))
