"""PNG metadata: written, read back, and missing in other files."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.sampling.png_metadata import is_ours, read_png_metadata, save_png


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


def write_png(path: Path, side: int, *more: tuple[bytes, bytes]) -> None:
    """Writes a grey PNG whose head says ``side``, with further chunks."""
    head = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in (head, *more, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("side", "chunks"),
    [
        (1, [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))]),
        (100_000, []),
        (1, [(b"tEXt", b"software\0imagen-ray"), (b"tEXt", b"settings\0" + b"[" * 100_000)]),
    ],
    ids=["text of 2 MB", "100000 pixels wide", "nested JSON"],
)
def test_images_that_cannot_be_read_are_not_ours(tmp_path: Path, side: int, chunks: list[tuple[bytes, bytes]]) -> None:
    write_png(tmp_path / "cat-001.png", side, *chunks)
    assert not is_ours(tmp_path / "cat-001.png")
    with pytest.raises(UserError, match=r"cat-001\.png: not an image that can be read .*; name a PNG that imagen-ray"):
        read_png_metadata(tmp_path / "cat-001.png")
