"""Images of a user are decoded as those of the training data, and refused as those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.images.decode import decode_rgb
from dataprep.io.errors import UserError
from eval.sampling.user_images import read_image, read_mask_image


def save_deep(path: Path) -> None:
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(path)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_the_decoder_is_that_of_the_download(tmp_path: Path, name: str) -> None:
    save_deep(tmp_path / name)
    image, mask = read_image("--image", tmp_path / name), read_mask_image("--mask", tmp_path / name)
    assert image is not None and mask is not None
    wanted = decode_rgb((tmp_path / name).read_bytes())
    assert wanted.max() == 214 and (np.asarray(image) == wanted).all()
    assert mask.size == image.size == (4, 3)


def test_alpha_of_a_mask_is_kept(tmp_path: Path) -> None:
    Image.new("LA", (2, 2), (255, 0)).save(tmp_path / "m.png")
    mask = read_mask_image("--mask", tmp_path / "m.png")
    assert mask is not None and mask.has_transparency_data
    image = read_image("--image", tmp_path / "m.png")
    assert image is not None and (np.asarray(image) == 255).all()
    assert read_image("--image", None) is None is read_mask_image("--mask", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "No such file"),
        ("", "Is a directory"),
        ("text.png", "not an image of a supported format"),
        ("float.tif", "floating-point pixels have no defined range"),
        ("cut.png", "damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tif")
    save_deep(tmp_path / "deep.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:50])
    for read in (read_image, read_mask_image):
        with pytest.raises(UserError, match=message):
            read("--image", tmp_path / name)
