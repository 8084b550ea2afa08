"""The compiled area averaging: OpenCV's bytes, and OpenCV itself where it cannot be compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataprep.images import area_kernel
from dataprep.images.area_kernel import load_kernel, shrink_by_area

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_kernel.cache_clear()
    yield tmp_path / "imagen-ray"
    load_kernel.cache_clear()


def shrink_with_opencv(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)


@needs_compiler
def test_the_bytes_are_those_of_opencv() -> None:
    kernel, rng = load_kernel(), np.random.default_rng(1)
    assert kernel is not None
    sizes = [(384, 512, 256, 341), (1, 9, 1, 4), (9, 1, 4, 1), (50, 50, 49, 50), (7, 300, 3, 11), (400, 3, 1, 2)]
    sizes += [
        (int(h), int(w), int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1)))
        for h, w in rng.integers(1, 300, (150, 2))
    ]
    for height, width, out_height, out_width in sizes:
        image = rng.choice(np.array([0, 127, 128, 255], np.uint8), (height, width, 3))  # many sums halfway
        image = np.maximum(image, rng.integers(0, 256, image.shape, dtype=np.uint8)) if height % 2 else image
        expected = shrink_with_opencv(image, (out_width, out_height))
        assert np.array_equal(shrink_by_area(image, (out_width, out_height)), expected), (image.shape, expected.shape)
        if height % out_height or width % out_width:
            assert np.array_equal(kernel(image, (out_width, out_height)), expected), (image.shape, expected.shape)


@needs_compiler
def test_views_and_other_types_give_the_bytes_of_opencv() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for view in (image[5:70, 9:100], image[::-1], image[:, ::-1], image.transpose(1, 0, 2), image[..., :1], image[::2]):
        expected = shrink_with_opencv(np.ascontiguousarray(view), (17, 13))
        assert np.array_equal(shrink_by_area(view, (17, 13)).reshape(expected.shape), expected)
    wide = image.astype(np.float32)
    assert np.array_equal(shrink_by_area(wide, (17, 13)), shrink_with_opencv(wide, (17, 13)))
    assert np.array_equal(shrink_by_area(image, (130, 80)), shrink_with_opencv(image, (130, 80)))  # wider, lower


@needs_compiler
def test_it_is_compiled_once(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_kernel() is not None
    (library,) = cache_folder.iterdir()
    load_kernel.cache_clear()
    monkeypatch.setattr(area_kernel.subprocess, "run", None)
    assert load_kernel() is not None and list(cache_folder.iterdir()) == [library]


@pytest.mark.parametrize("trouble", ["no compiler", "does not compile", "other bytes", "no folder", "no home"])
def test_opencv_is_used_otherwise(
    trouble: str, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "no compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif trouble == "no folder":
        cache_folder.write_bytes(b"")
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pathlib.Path.home", lambda: Path("~").expanduser() / Path("~nobody-at-all").expanduser())
    else:
        source = area_kernel.SOURCE.read_text()
        other = source.replace("source - begin", "source - begin + 1") if trouble == "other bytes" else source[:-9]
        (tmp_path / "other.c").write_text(other.replace("sum += pixel", "sum += 1.01f * pixel"))
        monkeypatch.setattr(area_kernel, "SOURCE", tmp_path / "other.c")
    assert load_kernel() is None
    image = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    assert np.array_equal(shrink_by_area(image, (50, 40)), shrink_with_opencv(image, (50, 40)))
    assert not list(tmp_path.rglob("*.tmp"))
