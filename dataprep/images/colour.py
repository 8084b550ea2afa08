"""Converts images with a colour profile, and PNGs that state their gamma and primaries, to sRGB.

An image without either is sRGB already and costs nothing here. Profiles are untrusted: one that cannot be used is
ignored, as browsers do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4 << 20  # bytes; those of printing presses have 0.5 to 3 MB
SAME = 2  # levels that a profile may differ from sRGB and still be taken for it: there are dozens of versions
# What a profile is for, by bytes 16 to 20 of it: the mode that it converts, and the modes of images that it fits.
SPACES = {
    b"RGB ": ("RGB", ("RGB", "RGBA", "P", "PA", "L", "LA")),
    b"GRAY": ("L", ("L", "LA")),
    b"CMYK": ("CMYK", ("CMYK",)),
}
SRGB_GAMMA = (0.43, 0.48)  # a gAMA of about 1/2.2 is how programs said sRGB before there was a word for it
GAMMAS = (0.1, 3.0)  # plausible ones
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x and y of white, red, green and blue
SAME_PRIMARIES = 0.01
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
STRIP = 1 << 20  # pixels per step of a conversion in floating point
LEVELS = 1 << 14  # of linear light, from which sRGB's 256 are read


class Conversion(NamedTuple):
    """``apply`` converts an image of ``mode`` (RGB, L or CMYK) to RGB."""

    mode: str
    apply: Callable[[Image.Image], Image.Image]


def convert_to_srgb(image: Image.Image) -> Image.Image:
    """Returns ``image`` in sRGB: itself if there is nothing to convert, else of mode RGB or RGBA."""
    conversion = find_conversion(image.info, image.mode)
    if conversion is None:
        return image
    if image.mode == conversion.mode and "transparency" not in image.info:
        return conversion.apply(image)
    whole = image.convert("RGBA")
    result = conversion.apply(whole.getchannel("R") if conversion.mode == "L" else whole.convert("RGB"))
    if image.mode.endswith("A") or "transparency" in image.info:
        result.putalpha(whole.getchannel("A"))
    return result


def convert_pixels(pixels_HWC: np.ndarray, info: Mapping[Any, Any], mode: str) -> np.ndarray:
    """Converts uint8 HWC RGB pixels of a file with Pillow's ``info`` and ``mode`` (RGB or L) to sRGB."""
    conversion = find_conversion(info, mode)
    if conversion is None:
        return pixels_HWC
    channels = pixels_HWC[..., 0] if conversion.mode == "L" else pixels_HWC
    return np.asarray(conversion.apply(Image.fromarray(np.ascontiguousarray(channels))))


def find_conversion(info: Mapping[Any, Any], mode: str) -> Conversion | None:
    """Returns the conversion to sRGB that an image of Pillow's ``mode`` needs by its ``info``; None if none.

    As in the PNG specification (section 4.3), a profile goes before sRGB, and that before gamma and primaries.
    """
    profile = info.get("icc_profile")
    if profile:
        space, modes = SPACES.get(bytes(profile[16:20]), ("", ()))
        return _from_profile(bytes(profile), space) if mode in modes and len(profile) <= MAX_PROFILE else None
    if "srgb" in info or not (info.get("gamma") or info.get("chromaticity")):
        return None
    if mode not in SPACES[b"RGB "][1]:
        return None
    return _from_primaries(info.get("gamma"), tuple(info.get("chromaticity") or SRGB_PRIMARIES))


@lru_cache(maxsize=8)
def _from_profile(profile: bytes, space: str) -> Conversion | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            space,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None

    def apply(image: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted

    conversion = Conversion(space, apply)
    return None if space != "CMYK" and _changes_nothing(conversion) else conversion


def _changes_nothing(conversion: Conversion) -> bool:
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid_HWC = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    grey_HW = np.arange(256, dtype=np.uint8)[None]
    before = grey_HW if conversion.mode == "L" else grid_HWC
    after_HWC = np.asarray(conversion.apply(Image.fromarray(before))).astype(int)
    expected_HWC = np.repeat(grey_HW[..., None], 3, 2) if conversion.mode == "L" else grid_HWC
    return bool(np.abs(after_HWC - expected_HWC).max() <= SAME)


@lru_cache(maxsize=64)
def _from_primaries(gamma: float | None, primaries: tuple[float, ...]) -> Conversion | None:
    """``gamma`` is PNG's gAMA: samples are light to this power; None: sRGB's curve."""
    if gamma is not None and not GAMMAS[0] <= gamma <= GAMMAS[1]:
        return None
    as_srgb = gamma is None or SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1]
    levels = np.arange(256) / 255
    light = _decode_srgb(levels) if as_srgb or gamma is None else levels ** (1 / gamma)
    if np.allclose(primaries, SRGB_PRIMARIES, atol=SAME_PRIMARIES):
        table = [*(_encode_srgb(light) * 255).round().astype(int)] * 3
        return None if as_srgb else Conversion("RGB", lambda image: image.point(table))
    try:
        matrix = np.linalg.inv(_light_matrix(SRGB_PRIMARIES)) @ _light_matrix(primaries)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    if not np.isfinite(matrix).all():
        return None
    encoded = (_encode_srgb(np.arange(LEVELS) / (LEVELS - 1)) * 255).round().astype(np.uint8)

    def apply(image: Image.Image) -> Image.Image:
        pixels_NC = np.asarray(image).reshape(-1, 3)
        out_NC = np.empty_like(pixels_NC)
        for start in range(0, len(pixels_NC), STRIP):
            mixed = light.astype(np.float32)[pixels_NC[start : start + STRIP]] @ matrix.T.astype(np.float32)
            out_NC[start : start + STRIP] = encoded[(mixed.clip(0, 1) * (LEVELS - 1) + 0.5).astype(np.int32)]
        return Image.fromarray(out_NC.reshape(image.height, image.width, 3))

    return Conversion("RGB", apply)


def _light_matrix(primaries: tuple[float, ...]) -> np.ndarray:
    """Returns the matrix from linear RGB to XYZ relative to sRGB's white, adapted by Bradford."""
    white, *colours = (
        np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    )
    columns = np.stack(colours, 1)
    columns = columns * np.linalg.solve(columns, white)
    x, y = SRGB_PRIMARIES[:2]
    cones = (BRADFORD @ np.array([x / y, 1, (1 - x - y) / y])) / (BRADFORD @ white)
    adapted: np.ndarray = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ columns
    return adapted


def _decode_srgb(levels: np.ndarray) -> np.ndarray:
    """Returns linear light of sRGB values, both 0 to 1 (IEC 61966-2-1)."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _encode_srgb(light: np.ndarray) -> np.ndarray:
    """Returns sRGB values of linear light, both 0 to 1."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
