"""configs/your_urls.yaml on somebody's own list: 100 pictures on a server, some dead, only path and columns set.

Besides these, the test sets steps alone: what is learned is not its subject, that every stage takes such a list is.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.paths import ROOT

COUNT = 100
FEW_STEPS = [
    f"{loop}.steps=2" for loop in ("encoder.pretrain", "clip.train", "train.base", "train.sr64", "train.sr256")
]
FEW_STEPS += [f"sample.stages.{stage}.steps=2" for stage in ("base", "sr64", "sr256")]
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def photo(index: int) -> Image.Image:
    """Smooth colours with grain, of a camera's or a web page's odd sizes."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    size = (int(rng.integers(200, 640)), int(rng.integers(200, 480)))
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class names it so
        """Nothing."""


@pytest.fixture(scope="module")
def own_list(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CSV of 100 rows: every 25th file is not there, one is cut short, one is a web page."""
    folder = tmp_path_factory.mktemp("site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image_link", "alt"])
        for index in range(COUNT):
            extension = list(KINDS)[index % 3]
            name = f"IMG {index:04d}.{extension}"
            buffer = io.BytesIO()
            photo(index).save(buffer, KINDS[extension])
            data = buffer.getvalue()
            if index == 7:
                data = data[: len(data) // 2]
            if index == 8:
                data = b"<html><body>Please log in</body></html>"
            if index % 25:
                (folder / name).write_bytes(data)
            link = f"http://127.0.0.1:{server.server_port}/{name.replace(' ', '%20')}"
            writer.writerow([index, link, f'a photograph, number {index}, of a "garden" in colours, été'])
    yield folder / "list.csv"
    server.shutdown()
    server.server_close()


def test_a_list_of_ones_own(own_list: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"listing.path={own_list}", "listing.url_column=image_link", "listing.caption_column=alt"]
    words = [sys.executable, "-m", "pipeline", "run", "configs/your_urls.yaml", f"run={run}", *overrides, *FEW_STEPS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    files = sorted((run / "stages" / "download").glob("*/*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == [str(index) for index in range(COUNT)]
    for index, row in enumerate(rows):
        dead, broken = index % 25 == 0, index in (7, 8)
        assert (row["status"] == "success") == (not dead and not broken), (index, row["error_message"])
        assert row["caption"] == f'a photograph, number {index}, of a "garden" in colours, été'
        if dead:
            assert "404" in row["error_message"]
    annotated = list((run / "stages" / "annotate").glob("*/*.parquet"))
    assert sum(pq.read_table(path)["ok"].to_pylist().count(True) for path in annotated) == COUNT - 4 - 2
    page = (run / "report.html").read_text()
    assert "a house by the sea" in page  # a prompt of the config
    assert "The composition checker needs prompts of the embedded corpus" in page
