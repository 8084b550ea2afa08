"""PNG metadata: written, read back, and missing in other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.sampling.png_metadata import read_png_metadata, save_png


def test_metadata_round_trip(tmp_path: Path) -> None:
    info = {"prompt": "红色 circle", "seed": 7, "index": 1, "negative": None, "settings": {"base": {"steps": 3}}}
    save_png(tmp_path / "a.png", Image.new("RGB", (2, 2)), info | {"model": "0123456789abcdef"})
    found = read_png_metadata(tmp_path / "a.png")
    assert found.pop("software") == "imagen-ray"
    assert found == {key: value for key, value in info.items() if value is not None} | {"model": "0123456789abcdef"}
    assert json.loads(Image.open(tmp_path / "a.png").text["settings"]) == {"base": {"steps": 3}}  # type: ignore[attr-defined]
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="has no metadata of imagen-ray"):
        read_png_metadata(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no")
    with pytest.raises(UserError, match="not an image that can be read"):
        read_png_metadata(tmp_path / "c.png")
