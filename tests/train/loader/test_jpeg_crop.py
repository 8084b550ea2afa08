"""Crops of a JPEG decoded from its restart intervals: the same pixels, of less of the file."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from train.loader.jpeg_crop import cut_jpeg, parse_jpeg
from train.loader.row_group import PixelColumn, decode_pixels

SAMPLING = {"4:4:4": 0x111111, "4:2:2": 0x211111, "4:2:0": 0x221111}


def make_noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns coloured noise, smooth and fine, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8), (width, height))
    image: np.ndarray = (smooth // 2 + rng.integers(0, 128, smooth.shape, np.uint8)).astype(np.uint8)
    return image


def encode(image: np.ndarray, sampling: str = "4:2:0", interval: int = 4, *flags: int) -> np.ndarray:
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[sampling], cv2.IMWRITE_JPEG_RST_INTERVAL, interval, *flags]
    done, data = cv2.imencode(".jpg", image, options)
    assert done
    found: np.ndarray = data
    return found


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("shape", [(256, 128), (141, 192)], ids=str)
def test_a_crop_has_the_pixels_of_the_whole_image(sampling: str, shape: tuple[int, int]) -> None:
    data, rng = encode(make_noise_image(*shape), sampling), np.random.default_rng(0)
    whole = decode_pixels(data, "jpeg", shape)
    least = len(data)
    for _ in range(60):
        height, width = (int(rng.integers(1, side + 1)) for side in shape)
        top, left = (int(rng.integers(0, side - size + 1)) for side, size in zip(shape, (height, width), strict=True))
        cut = cut_jpeg(data, shape, top, left, height, width)
        if cut is None:
            continue
        least = min(least, len(cut.data))
        part = decode_pixels(cut.data, "jpeg", (cut.height, cut.width))
        y, x = top - cut.top, left - cut.left
        assert np.array_equal(part[y : y + height, x : x + width], whole[top : top + height, left : left + width])
        image = cv2.imdecode(np.frombuffer(cut.data, np.uint8), cv2.IMREAD_COLOR_RGB)  # other decoders read it too
        assert image is not None and np.array_equal(image, part)
    assert least < len(data) / 5


def test_what_cannot_be_cut_is_decoded_whole() -> None:
    image, shape = make_noise_image(64, 128), (64, 128)
    crop = (shape, 8, 8, 16, 16)
    assert cut_jpeg(encode(image), *crop) is not None
    grey = cv2.imencode(".jpg", image[:, :, 0], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1]
    assert cut_jpeg(grey, *crop) is not None  # a scan of one component
    damaged = encode(image)
    damaged[np.flatnonzero((damaged[:-1] == 0xFF) & (damaged[1:] & 0xF8 == 0xD0))[2] + 1] = 0
    cases: dict[str, Any] = {
        "without restart markers": encode(image, interval=0),
        "intervals that do not divide a row": encode(image, interval=3),
        "progressive": encode(image, "4:2:0", 4, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "a lost marker": damaged,
        "cut off": encode(image)[:-2],
        "another size": encode(make_noise_image(64, 64)),
        "another format": cv2.imencode(".png", image)[1],
        "nothing": np.zeros(0, np.uint8),
    }
    for name, data in cases.items():
        assert cut_jpeg(data, *crop) is None, name
    assert cut_jpeg(encode(image), shape, 0, 0, 64, 100) is None  # touches every interval
    assert parse_jpeg(b"\xff\xd8\xff\xda\x00\x08") is None


@pytest.mark.parametrize("interval", [0, 4])
def test_a_column_reads_crops_in_place(interval: int) -> None:
    images = [make_noise_image(96, 128, seed) for seed in range(3)]
    files = [encode(image, interval=interval) for image in images]
    starts = np.cumsum([0, *(len(file) for file in files)])
    column = PixelColumn((96, 128), "jpeg", None, np.concatenate(files), starts)
    for row, file in enumerate(files):
        whole = decode_pixels(file, "jpeg", (96, 128))
        expected = cv2.imdecode(file, cv2.IMREAD_COLOR_RGB)
        assert expected is not None and np.array_equal(whole, expected)
        out = np.zeros((96, 128, 3), np.uint8)
        column.read(row, out)
        assert np.array_equal(out, whole)
        part = np.zeros((16, 32, 3), np.uint8)
        column.read(row, part, 40, 72)
        assert np.array_equal(part, whole[40:56, 72:104])


def test_damage_and_another_size_are_refused() -> None:
    data = encode(make_noise_image(64, 64))
    for damaged in (
        data[: len(data) // 2],
        data[:20],
        encode(make_noise_image(32, 32)),
        encode(make_noise_image(64, 32)),
    ):
        with pytest.raises(ValueError, match="do not hold a 64x64 jpeg image"):
            decode_pixels(damaged, "jpeg", (64, 64))
