"""Stored images: img2dataset's policy and pixels, and where ours differ."""

from __future__ import annotations

import io
import os
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dataprep.images import decode
from dataprep.images.config import StoreConfig
from dataprep.images.decode import OpenImage, decode_rgb
from dataprep.images.store import store_image
from dataprep.io.failure_reasons import FailedError
from tests.helpers.images import encoded, picture

MODES = ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest")
SIZES = ((96, 80), (40, 97), (61, 61), (13, 200), (33, 20), (1, 50))


def theirs(data: bytes, config: StoreConfig) -> bytes:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    resize = Resizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=config.resize_only_if_bigger,
        encode_quality=config.encode_quality,
        encode_format=config.encode_format,
    )
    stored, *_, error = resize(io.BytesIO(data))
    assert error is None, error
    return stored


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_pixels_are_those_of_img2dataset(mode: Any, only_if_bigger: bool) -> None:
    for index, (width, height) in enumerate(SIZES):
        data = encoded(picture(index, width, height))
        config = StoreConfig(
            image_size=48, resize_mode=mode, resize_only_if_bigger=only_if_bigger, encode_format="png", encode_quality=1
        )
        stored = store_image(data, config)
        assert np.array_equal(decode_rgb(stored.data), decode_rgb(theirs(data, config))), (width, height)
        assert (stored.original_width, stored.original_height) == (width, height)
        assert decode_rgb(stored.data).shape[:2] == (stored.height, stored.width)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_the_files_are_those_of_img2dataset(kind: Any) -> None:
    data = encoded(picture(3, 200, 150), "JPEG", quality=90)
    config = StoreConfig(image_size=96, encode_format=kind)
    assert store_image(data, config).data == theirs(data, config)


def test_a_large_jpeg_is_decoded_smaller_and_never_below_twice_its_final_side() -> None:
    image = picture(5, 1200, 900)
    data = encoded(image, "JPEG", quality=95, subsampling=0)
    shapes = {
        size: OpenImage(data).decode(size, size * 3 // 4).shape[:2] for size in (1200, 601, 600, 300, 151, 100, 1)
    }
    whole, half, quarter, eighth = (900, 1200), (450, 600), (225, 300), (113, 150)
    assert list(shapes.values()) == [whole, whole, half, quarter, quarter, eighth, eighth]
    for side, least in ((450, 900), (300, 900), (225, 450), (112, 225), (56, 113)):
        seen: list[np.ndarray] = []
        real = OpenImage.decode

        def decode(self: OpenImage, *size: int, seen: list[np.ndarray] = seen, real: Any = real) -> np.ndarray:
            seen.append(real(self, *size))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OpenImage, "decode", decode)
            stored = store_image(data, StoreConfig(image_size=side, encode_format="png", encode_quality=1))
        assert min(seen[0].shape[:2]) == least and least >= min(900, 2 * side)
        exact = cv2.resize(image, (stored.width, stored.height), interpolation=cv2.INTER_AREA)
        assert np.abs(decode_rgb(stored.data).astype(int) - exact).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_keeps_its_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}  # GPS
    data = encoded(picture(1, 400, 240), "JPEG", quality=95, exif=exif)
    stored = store_image(data, StoreConfig(image_size=48, encode_format="png", encode_quality=1))
    expected = Image.fromarray(decode_rgb(data)).resize((stored.width, stored.height), Image.Resampling.BOX)
    assert (stored.original_width > stored.original_height) == (orientation < 5)
    assert np.abs(decode_rgb(stored.data).astype(int) - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("kind", ["jpg", "webp", "png"])
def test_no_metadata_is_stored(kind: Any) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "Camera GmbH", {1: "N", 2: (52.0, 30.0, 0.0)}
    data = encoded(picture(), "JPEG", exif=exif, comment=b"my house")
    assert b"Exif" in data and b"Camera" in data
    for size in (32, 4000):  # resized, and stored as large as it is
        config = StoreConfig(image_size=size, encode_format=kind, encode_quality=9 if kind == "png" else 95)
        stored = store_image(data, config).data
        assert not any(word in stored for word in (b"Exif", b"Camera", b"my house"))
        assert dict(Image.open(io.BytesIO(stored)).getexif()) == {}


def reason(data: bytes, **config: Any) -> str:
    with pytest.raises(FailedError) as caught:
        store_image(data, StoreConfig(**config))
    return caught.value.reason


def test_limits_are_read_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenImage, "decode", None)  # nothing is decoded
    wide = encoded(picture(0, 200, 40))
    assert reason(wide, min_side=41) == "min_side"
    assert reason(wide, max_aspect=4.9) == "max_aspect"
    assert reason(wide, max_pixels=7999, image_size=64) == "pixels"
    assert reason(encoded(picture(0, 200, 40), "JPEG"), max_pixels=7999, image_size=64) == "pixels"


def test_a_strip_that_would_exceed_max_pixels_is_refused() -> None:
    assert reason(encoded(picture(0, 3000, 1)), image_size=256, resize_only_if_bigger=False) == "pixels"


@pytest.mark.parametrize(("kind", "side"), [("jpg", 65_501), ("webp", 16_384)])
def test_a_side_that_a_format_cannot_hold(kind: Any, side: int) -> None:
    assert reason(encoded(picture(0, side, 1)), resize_mode="no", encode_format=kind) == "encode"


def test_what_a_format_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise cv2.error("no")

    monkeypatch.setattr(cv2, "imencode", fail)
    assert reason(encoded(picture())) == "encode"


def test_a_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    assert 1 < data.count(decode.JPEG_SCAN) <= 20
    assert decode_rgb(data).shape == (80, 96, 3)
    scan = data[data.index(decode.JPEG_SCAN) : -2]
    assert reason(data[:-2] + scan * 200 + data[-2:]) == "damaged"
