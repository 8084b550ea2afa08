"""How packed JPEGs are written: full colour resolution when small, restart markers when large."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataprep.images.pixel_encodings import choose_restart_interval, jpeg_options
from dataprep.pack_config import PackConfig
from train.loader.jpeg_crop import parse_jpeg

CONFIG = PackConfig(encoding="jpeg")


def encode(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpeg", image, jpeg_options(CONFIG, (image.shape[0], image.shape[1])))
    assert done
    return data.tobytes()


@pytest.mark.parametrize(("size", "full"), [(64, True), (504, True), (512, False)])
def test_small_images_keep_the_colours_of_single_columns(size: int, full: bool) -> None:
    stripes = np.zeros((size, size, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255  # blue and red
    found = cv2.imdecode(np.frombuffer(encode(stripes), np.uint8), cv2.IMREAD_COLOR)
    assert found is not None and bool(np.abs(found.astype(int) - stripes).max() < 25) is full


def test_large_images_have_a_grid_of_restart_intervals() -> None:
    assert parse_jpeg(encode(np.zeros((64, 64, 3), np.uint8))) is None
    for shape, mcu, columns in (((256, 256), 8, 4), ((1024, 1024), 16, 8), ((1024, 1368), 16, 43)):
        grid = parse_jpeg(encode(np.zeros((*shape, 3), np.uint8)))
        assert grid is not None and (grid.height, grid.width, grid.mcu_height) == (*shape, mcu)
        assert (grid.rows, grid.columns) == (-(-shape[0] // mcu), columns)


@pytest.mark.parametrize(("row", "interval"), [(64, 8), (16, 8), (10, 10), (6, 6), (86, 2), (43, 43), (22, 11), (1, 1)])
def test_the_interval_divides_a_row(row: int, interval: int) -> None:
    assert choose_restart_interval(16 * row - 5, 16) == interval
