"""Download shards."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import PreviousPass, count_transient_failures, download_shard
from dataprep.images.decode import decode_rgb, read_shard_images
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table, write_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture, read_member
from tests.helpers.web import Web

FETCH = FetchConfig(timeout=2.0, retries=0, concurrency=8)


CONFIG = DownloadConfig(fetch=FETCH, image_size=48)


def listing(path: Path, urls: list[str], **columns: Any) -> Path:
    table = pa.table({"url": urls, "caption": [f"caption {index}" for index in range(len(urls))], **columns})
    write_table(table, path, "listing")
    return path


@pytest.fixture
def shard(web: Web, tmp_path: Path) -> Path:
    jpeg = encoded(picture(1), "JPEG")
    urls = [
        web.put("/good.png", encoded(picture(0, 100, 60))),
        web.url("/missing.jpg"),
        web.put("/page.jpg", b"<html>gone</html>", Content_Type="image/jpeg"),
        web.put("/cut.jpg", jpeg[:-300]),
        web.put("/small.webp", encoded(picture(2, 20, 30), "WEBP")),
        web.put("/large.png", encoded(np.zeros((300, 300, 3), np.uint8))),
        web.put("/good.jpg", jpeg),
    ]
    return listing(tmp_path / "listing.parquet", urls, truth=[None, "x", None, None, None, None, "y"])


def run(
    shard: Path, out: Path, web: Web, config: DownloadConfig = CONFIG, index: int = 3
) -> tuple[dict[str, int], pa.Table]:
    out.mkdir()
    counters = download_shard(shard, index, out, config, web.hosts)
    return counters, read_table(out / shard_name(index, "parquet"), "download")


def test_every_row_has_a_status_and_a_reason(shard: Path, web: Web, tmp_path: Path) -> None:
    counters, table = run(shard, tmp_path / "out", web, DownloadConfig(fetch=FETCH, image_size=48, max_pixels=80_000))
    assert table["status"].to_pylist() == [
        *("success", "failed_to_download", "failed_to_resize", "failed_to_resize"),
        *("success", "failed_to_resize", "success"),
    ]
    errors = table["error_message"].to_pylist()
    assert errors[0] is None and errors[1] == "HTTP 404" and "not an image" in errors[2]
    assert "truncated" in errors[3] and "max_pixels=80000" in errors[5]
    assert counters.pop("bytes") > 0
    reasons = {"http_404": 1, "not_image": 1, "truncated": 1, "pixels": 1}
    assert counters == {"rows": 7, "success": 3, "failed_to_download": 1, "failed_to_resize": 3} | reasons
    assert table["reason"].to_pylist() == [None, "http_404", "not_image", "truncated", None, "pixels", None]
    assert table["truth"].to_pylist()[1] == "x" and table["key"].to_pylist()[6] == "000030006"
    first = table.to_pylist()[0]
    assert (first["width"], first["height"], first["original_width"], first["original_height"]) == (80, 48, 100, 60)
    small = table.to_pylist()[4]
    assert (small["width"], small["height"]) == (20, 30)  # not enlarged


def test_tar_holds_image_text_and_json_of_the_successes(shard: Path, web: Web, tmp_path: Path) -> None:
    _, table = run(shard, tmp_path / "out", web)
    rows = {row["key"]: row for row in table.to_pylist() if row["status"] == "success"}
    with tarfile.open(tmp_path / "out" / "00003.tar") as tar:
        assert tar.getnames() == [f"{key}.{extension}" for key in rows for extension in ("jpg", "txt", "json")]
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
        described = json.loads(read_member(tar, "000030000.json"))
        assert read_member(tar, "000030000.txt") == b"caption 0"
    assert described["caption"] == "caption 0" and described["original_width"] == 100 and "truth" in described
    for key, data in read_shard_images(tmp_path / "out" / "00003.tar"):
        assert hashlib.sha256(data).hexdigest() == rows[key]["sha256"]
        assert decode_rgb(data).shape == (rows[key]["height"], rows[key]["width"], 3)


def test_a_rerun_writes_the_same_bytes(shard: Path, web: Web, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(shard, tmp_path / name, web)
    for file in ("00003.tar", "00003.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_png_store_keeps_pixels_and_turns_by_exif(web: Web, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = picture(0, 48, 48)
    grey16 = Image.fromarray(np.full((48, 48), 32768, np.uint16))
    urls = [web.put("/turned.png", encoded(image, exif=exif)), web.put("/grey.png", encoded(grey16))]
    config = DownloadConfig(fetch=FETCH, image_size=48, encode_format="png", encode_quality=3)
    run(listing(tmp_path / "l.parquet", urls), tmp_path / "out", web, config)
    stored = [decode_rgb(data) for _, data in read_shard_images(tmp_path / "out" / "00003.tar")]
    assert np.array_equal(stored[0], np.rot90(image, 2)) and (stored[1] == 128).all()


def test_center_crop_and_limits_on_the_original(web: Web, tmp_path: Path) -> None:
    urls = [web.put("/wide.png", encoded(picture(0, 200, 40))), web.put("/ok.png", encoded(picture(0, 90, 60)))]
    config = DownloadConfig(fetch=FETCH, image_size=32, resize_mode="center_crop", min_side=20, max_aspect=3.0)
    _, table = run(listing(tmp_path / "l.parquet", urls), tmp_path / "out", web, config)
    assert table["error_message"].to_pylist() == ["aspect ratio too large", None]
    assert (table["width"].to_pylist()[1], table["height"].to_pylist()[1]) == (32, 32)
    _, table = run(
        listing(tmp_path / "l.parquet", urls), tmp_path / "more", web, DownloadConfig(fetch=FETCH, min_side=61)
    )
    assert table["error_message"].to_pylist() == ["image too small"] * 2


def test_a_table_cannot_name_local_files(web: Web, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    urls = [f"file://{tmp_path}/secret.png", f"{tmp_path}/secret.png", "secret.png"]
    counters, _ = run(listing(tmp_path / "l.parquet", urls), tmp_path / "out", web)
    assert counters["failed_to_download"] == 3


def test_a_folder_is_read_from_disk(web: Web, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        (images / name).write_bytes(encoded(picture(index)))
        (images / name).with_suffix(".txt").write_text(f"picture {name}")
    write_listing(ListingConfig(source="folder", path=str(images)), 0, tmp_path)
    (images / "b.png").unlink()
    (images / "c.png").write_bytes(b"x" * 2000)
    config = DownloadConfig(fetch=FetchConfig(max_bytes=100_000))
    _, table = run(tmp_path / "00000.parquet", tmp_path / "out", web, config)
    assert table["status"].to_pylist() == ["success", "failed_to_download", "failed_to_resize"]
    assert table["error_message"].to_pylist()[1] == "file not readable: FileNotFoundError"
    _, table = run(tmp_path / "00000.parquet", tmp_path / "tight", web, DownloadConfig(fetch=FetchConfig(max_bytes=10)))
    assert table["error_message"].to_pylist()[0] == "body above 10 bytes"
    assert web.asked == []


def test_a_folder_listing_cannot_leave_its_folder(tmp_path: Path, web: Web) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    table = pa.table({"url": ["../secret.png", str(tmp_path / "secret.png")], "caption": ["a", "b"]})
    table = table.replace_schema_metadata({"imagen_ray.root": str(tmp_path / "in")})
    write_table(table, tmp_path / "l.parquet", "listing")
    _, table = run(tmp_path / "l.parquet", tmp_path / "out", web)
    assert table["error_message"].to_pylist() == ["path leads out of the folder"] * 2


def test_webdataset_reads_the_shard(shard: Path, web: Web, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    run(shard, tmp_path / "out", web)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "00003.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000030000", "000030004", "000030005", "000030006"]
    assert Image.open(io.BytesIO(samples[0]["jpg"])).size == (80, 48)


def flaky(web: Web, path: str, body: bytes, failures: int, status: int = 503) -> str:
    """Answers with ``status`` for the first ``failures`` times, then with ``body``."""
    url = web.put(path, body)
    good, asked = web.pages[path], []

    def handle(request: BaseHTTPRequestHandler) -> None:
        asked.append(path)
        if len(asked) <= failures:
            web.put("/broken", b"", status)
            web.pages["/broken"](request)
        else:
            good(request)

    web.pages[path] = handle
    return url


def test_only_transient_failures_are_tried_again(web: Web, tmp_path: Path) -> None:
    urls = [
        web.put("/good.png", encoded(picture(0))),
        flaky(web, "/late.png", encoded(picture(1)), 1),
        web.url("/missing.png"),
        flaky(web, "/later.png", encoded(picture(2)), 2, 429),
        web.put("/noai.png", encoded(picture(3)), X_Robots_Tag="noai"),
        "http://127.0.0.1/x.png",
        web.put("/page.png", b"<html>"),
        web.put("/last.png", encoded(picture(4))),
    ]
    shard = listing(tmp_path / "l.parquet", urls, extra=list(range(8)))
    counters, _ = run(shard, tmp_path / "a", web)
    assert counters["success"] == 2 and count_transient_failures(tmp_path / "a" / "00003.parquet") == 2
    passes = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for before, after in pairwise(passes):
        web.asked.clear()
        after.mkdir()
        previous = PreviousPass(before / "00003.tar", before / "00003.parquet")
        changed = download_shard(shard, 3, after, CONFIG, web.hosts, previous=previous)
        assert sorted(web.asked) == (["/late.png", "/later.png"] if before.name == "a" else ["/later.png"])
        assert changed["success"] == 1 and changed["failed_to_download"] == -1
        counters = {name: counters.get(name, 0) + changed.get(name, 0) for name in {**counters, **changed}}
    assert count_transient_failures(tmp_path / "c" / "00003.parquet") == 0
    # What came of it is what one pass over a web without trouble gives, to the byte.
    for path, seed in (("/late.png", 1), ("/later.png", 2)):
        web.put(path, encoded(picture(seed)))
    whole, _ = run(shard, tmp_path / "whole", web)
    for file in ("00003.tar", "00003.parquet"):
        assert (tmp_path / "c" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert {name: count for name, count in counters.items() if count and name != "retried"} == whole
    assert counters["retried"] == 3


def test_an_earlier_pass_has_to_be_of_the_same_listing(web: Web, tmp_path: Path) -> None:
    url = web.put("/good.png", encoded(picture(0)))
    run(listing(tmp_path / "a.parquet", [url]), tmp_path / "a", web)
    other = listing(tmp_path / "b.parquet", [url + "?"])
    previous = PreviousPass(tmp_path / "a" / "00003.tar", tmp_path / "a" / "00003.parquet")
    with pytest.raises(ValueError, match="not of this listing shard"):
        download_shard(other, 3, tmp_path / "a", CONFIG, web.hosts, previous=previous)
    torn = tmp_path / "torn.tar"
    torn.write_bytes(bytes(10240))
    with pytest.raises(ValueError, match="no complete sample 000030000"):
        download_shard(
            tmp_path / "a.parquet", 3, tmp_path / "a", CONFIG, web.hosts, previous=PreviousPass(torn, previous.parquet)
        )


def test_forgotten_images_are_left_out(web: Web, tmp_path: Path) -> None:
    urls = [web.put("/a.png", encoded(picture(0))), "", web.put("/same.png", encoded(picture(0)))]
    urls.append(web.put("/b.png", encoded(picture(1))))
    shard = listing(tmp_path / "l.parquet", urls)
    _, table = run(shard, tmp_path / "a", web)
    assert table["reason"].to_pylist() == [None, "forgotten", None, None]
    web.asked.clear()
    (tmp_path / "b").mkdir()
    forgotten = frozenset(table["sha256"].to_pylist()[:1])
    counters = download_shard(shard, 3, tmp_path / "b", CONFIG, web.hosts, forgotten=forgotten)
    table = read_table(tmp_path / "b" / "00003.parquet", "download")
    assert table["reason"].to_pylist() == ["forgotten"] * 3 + [None]
    assert table["status"].to_pylist() == ["failed_to_download"] * 3 + ["success"]
    assert counters["forgotten"] == 3 and table["sha256"].to_pylist()[:3] == [None] * 3
    assert sorted(web.asked) == ["/a.png", "/b.png", "/same.png"]


def test_a_row_without_a_caption_has_an_empty_one(web: Web, tmp_path: Path) -> None:
    table = pa.table({"url": [web.put("/a.png", encoded(picture(0)))], "caption": pa.array([None], pa.string())})
    write_table(table, tmp_path / "l.parquet", "listing")
    _, table = run(tmp_path / "l.parquet", tmp_path / "a", web)
    with tarfile.open(tmp_path / "a" / "00003.tar") as tar:
        assert read_member(tar, "000030000.txt") == b""
