"""Colour profiles, gamma and primaries are converted to sRGB; files without them are left alone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dataprep.images import colour
from dataprep.images.decode import JPEG_MARKS, decode_rgb, find_marks
from tests.helpers.icc import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, rgb_profile
from tests.helpers.images import encoded, picture

P3, ADOBE = rgb_profile(DISPLAY_P3, None), rgb_profile(ADOBE_RGB, 2.19921875)
# The same colours in Display P3, Adobe RGB and sRGB.
KNOWN = {
    "red": ((234, 51, 35), (219, 0, 0), (255, 0, 0)),
    "green": ((117, 251, 76), (144, 255, 60), (0, 255, 0)),
    "blue": ((0, 0, 245), (0, 0, 250), (0, 0, 255)),
    "white": ((255, 255, 255), (255, 255, 255), (255, 255, 255)),
    "grey": ((128, 128, 128), (127, 127, 127), (128, 128, 128)),
    "black": ((0, 0, 0), (0, 0, 0), (0, 0, 0)),
}


def filled(value: Any, mode: str = "RGB", side: int = 64) -> Image.Image:
    return Image.new(mode, (side, side), value)


def centre(data: bytes) -> tuple[int, ...]:
    return tuple(int(value) for value in decode_rgb(data)[32, 32])


def near(found: tuple[int, ...], expected: tuple[int, ...], levels: int = 3) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= levels


FILES: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", KNOWN)
def test_known_colours(name: str, kind: str) -> None:
    in_p3, in_adobe, in_srgb = KNOWN[name]
    for profile, value in ((P3, in_p3), (ADOBE, in_adobe)):
        data = encoded(filled(value), kind, icc_profile=profile, **FILES[kind])
        assert near(centre(data), in_srgb), (name, centre(data))
        assert near(centre(encoded(filled(value), kind, **FILES[kind])), value, 1)  # and without the profile


def test_srgb_profiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(3)
    for profile in (rgb_profile(SRGB, None), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        data = encoded(image, icc_profile=profile)
        assert np.array_equal(decode_rgb(data), image)


def test_a_reduced_jpeg_is_converted_too() -> None:
    from dataprep.images.config import StoreConfig
    from dataprep.images.store import store_image

    data = encoded(filled((234, 51, 35), side=512), "JPEG", quality=100, icc_profile=P3)
    stored = store_image(data, StoreConfig(image_size=64, encode_format="png", encode_quality=1))
    assert near(centre(stored.data), (255, 0, 0))
    assert "icc_profile" not in Image.open(io.BytesIO(stored.data)).info


def test_transparency_and_palettes() -> None:
    red, half = (234, 51, 35), (234, 51, 35, 128)
    assert near(centre(encoded(filled(half, "RGBA"), icc_profile=P3)), (255, 127, 127), 4)
    palette = filled(red).quantize(4)
    assert near(centre(encoded(palette, icc_profile=P3)), (255, 0, 0))
    palette = filled(red).quantize(4)
    clear = encoded(palette, icc_profile=P3, transparency=palette.getpixel((0, 0)))
    assert centre(clear) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_profiles(kind: str) -> None:
    for value in (20, 128, 240):
        expected = round(255 * colour._encode_srgb(np.array((value / 255) ** 1.8)).item())
        found = centre(
            encoded(
                filled(value, "L"), kind, icc_profile=grey_profile(1.8), **({"quality": 100} if kind == "JPEG" else {})
            )
        )
        assert near(found, (expected,) * 3), (value, found)
        assert near(centre(encoded(filled(value, "L"), kind, icc_profile=P3)), (value,) * 3)  # grey is grey in P3 too
    with_alpha = encoded(filled((128, 255), "LA"), icc_profile=grey_profile(1.8))
    assert near(centre(with_alpha), (147,) * 3, 2)


def test_cmyk_by_its_profile() -> None:
    inks = {(0, 0, 0, 0): (100.0, 0.0, 0.0), (1, 0, 0, 0): (55.0, -37.0, -50.0), (0, 1, 0, 0): (48.0, 74.0, -3.0)}
    profile = cmyk_profile(inks)
    for ink, place in (("cyan", 0), ("magenta", 1)):
        value = tuple(255 * (index == place) for index in range(4))
        for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {})):
            found = centre(encoded(filled(value, "CMYK"), kind, icc_profile=profile, **options))
            expected = {"cyan": (0, 149, 219), "magenta": (214, 0, 120)}[ink]  # of these L*a*b* colours under D50
            assert near(found, expected, 12), (ink, kind, found)
            plain = centre(encoded(filled(value, "CMYK"), kind, **options))
            assert near(
                plain, {"cyan": (0, 255, 255), "magenta": (255, 0, 255)}[ink], 4
            )  # without a profile, as before


def png_with(image: Image.Image, **chunks: bytes) -> bytes:
    data = encoded(image)
    at = 8 + 25  # after the header
    more = b"".join(
        struct.pack(">I", len(body)) + name.encode() + body + struct.pack(">I", zlib.crc32(name.encode() + body))
        for name, body in chunks.items()
    )
    return data[:at] + more + data[at:]


P3_PRIMARIES = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def gamma(value: float) -> bytes:
    return struct.pack(">I", round(value * 100_000))


@pytest.mark.parametrize(
    ("chunks", "value", "expected"),
    [
        ({"gAMA": gamma(1.0)}, (55, 55, 55), (128, 128, 128)),  # linear light
        ({"gAMA": gamma(1 / 1.8)}, (128, 128, 128), (147, 147, 147)),  # old Macs
        ({"gAMA": gamma(1 / 2.2)}, (90, 128, 200), (90, 128, 200)),
        ({"gAMA": gamma(1 / 2.2), "cHRM": SRGB_PRIMARIES}, (90, 128, 200), (90, 128, 200)),
        ({"gAMA": gamma(1 / 2.2), "cHRM": P3_PRIMARIES}, (234, 51, 35), (255, 0, 0)),
        ({"cHRM": P3_PRIMARIES}, (117, 251, 76), (0, 255, 0)),
        ({"sRGB": b"\0", "gAMA": gamma(1.0), "cHRM": P3_PRIMARIES}, (90, 128, 200), (90, 128, 200)),
        ({"gAMA": gamma(0)}, (90, 128, 200), (90, 128, 200)),
        ({"gAMA": b"\xff\xff\xff\xff"}, (90, 128, 200), (90, 128, 200)),
        ({"cHRM": bytes(32)}, (90, 128, 200), (90, 128, 200)),
        ({"cHRM": struct.pack(">8I", *[30000] * 8)}, (90, 128, 200), (90, 128, 200)),
    ],
)
def test_gamma_and_primaries_of_png(chunks: Any, value: Any, expected: Any) -> None:
    assert near(centre(png_with(filled(value), **chunks)), expected)
    if len(set(value)) == 1:
        assert near(centre(png_with(filled(value[0], "L"), **chunks)), expected, 2)
    with_alpha = png_with(filled((*value, 255), "RGBA"), **chunks)
    assert near(centre(with_alpha), expected)


@pytest.mark.parametrize(
    "profile",
    [
        b"x",
        bytes(200),
        P3[:200],
        P3[:-40],
        b"\0" * 16 + b"CMYK" + P3[20:],
        P3 + bytes(5 << 20),
        P3[:200] + b"\xff" * 300,
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    data = encoded(filled((234, 51, 35)), "JPEG", quality=100, subsampling=0, icc_profile=profile)
    assert near(centre(data), (234, 51, 35), 1)


def test_files_without_a_profile_are_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture())
    monkeypatch.setattr("dataprep.images.decode.open_image", None)
    assert decode_rgb(jpeg).shape == (80, 96, 3)
    monkeypatch.undo()
    monkeypatch.setattr(Image.Image, "load", None)
    assert decode_rgb(png).shape == (80, 96, 3)  # by OpenCV


def test_marks_of_a_jpeg() -> None:
    plain = encoded(picture(), "JPEG")
    assert find_marks(plain) == set()
    exif = Image.Exif()
    exif[0x0112] = 6
    both = encoded(picture(), "JPEG", exif=exif, icc_profile=P3, comment=b"Exif\0\0")
    assert find_marks(both) == set(JPEG_MARKS)
    assert find_marks(encoded(picture(), "JPEG", icc_profile=P3)) == {b"ICC_PROFILE\0"}
    assert find_marks(plain[:2] + b"noise" + plain[2:]) == set(JPEG_MARKS) == find_marks(plain[:30])
    assert find_marks(plain[:2] + b"\xff\xfe\x00\x02" * 500 + plain[2:]) == set(JPEG_MARKS)
