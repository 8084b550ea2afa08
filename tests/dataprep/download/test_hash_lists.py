"""Images on a list of hashes leave nothing behind."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dataprep.download.config import DownloadConfig, FetchConfig, HashListConfig
from dataprep.download.hash_lists import HashLists
from dataprep.download.shard import download_shard
from dataprep.images.perceptual_hash import compute_perceptual_hash
from dataprep.io.errors import UserError
from dataprep.io.failure_reasons import FailedError
from dataprep.io.parquet import read_table, write_table
from tests.helpers.images import encoded, picture
from tests.helpers.web import Web

FETCH = FetchConfig(timeout=2.0, retries=0, concurrency=8)


def hash_list(path: Path, text: str, kind: str, **keys: Any) -> HashListConfig:
    path.write_text(text)
    return HashListConfig.model_validate({"path": str(path), "kind": kind} | keys)


def test_listed_images_are_refused_before_anything_is_stored(web: Web, tmp_path: Path) -> None:
    bodies = [encoded(picture(number, 90, 60)) for number in range(5)]
    bodies.append(encoded(picture(3, 45, 30), "JPEG"))  # another file of the same picture
    urls = [web.put(f"/{number}.png", body) for number, body in enumerate(bodies)]
    table = pa.table({"url": urls, "caption": [f"caption {number}" for number in range(6)]})
    write_table(table, tmp_path / "listing.parquet", "listing")
    phash = compute_perceptual_hash(picture(3, 90, 60)) ^ 0b101
    pq.write_table(pa.table({"md5": [None, hashlib.md5(bodies[2]).hexdigest()]}), tmp_path / "illegal.parquet")
    illegal = {"path": str(tmp_path / "illegal.parquet"), "column": "md5", "reason": "hash_illegal"}
    sha256 = hashlib.sha256(bodies[1]).hexdigest()
    lists = (
        hash_list(tmp_path / "out.txt", f"# ours\n\n{sha256.upper()}  1.png\n", "sha256"),
        HashListConfig.model_validate(illegal | {"kind": "md5"}),
        hash_list(tmp_path / "looks.txt", f"{phash:016x}\n", "phash", distance=8),
    )
    config = DownloadConfig(fetch=FETCH, image_size=48, resize_mode="center_crop", hash_lists=lists)
    (tmp_path / "out").mkdir()
    counters = download_shard(tmp_path / "listing.parquet", 0, tmp_path / "out", config, web.hosts)
    rows = read_table(tmp_path / "out" / "00000.parquet", "download").to_pylist()
    refused = {row["key"][-1]: (row["reason"], row["error_message"]) for row in rows if row["reason"]}
    assert refused == {
        "1": ("hash_opt_out", "on the list out.txt"),
        "2": ("hash_illegal", "on the list illegal.parquet"),
        "3": ("hash_opt_out", "on the list looks.txt"),
        "5": ("hash_opt_out", "on the list looks.txt"),
    }
    assert (counters["success"], counters["hash_opt_out"], counters["hash_illegal"]) == (2, 3, 1)
    measured = ("width", "height", "original_width", "original_height", "original_bytes", "sha256")
    assert all(row[name] is None for row in rows if row["reason"] for name in measured)
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert {name.partition(".")[0][-1] for name in tar.getnames()} == {"0", "4"}


def test_a_distance_counts_bits(tmp_path: Path) -> None:
    image = picture(1, 64, 64)
    phash = compute_perceptual_hash(image) ^ 0b111
    for distance, refused in ((2, False), (3, True)):
        lists = HashLists.read([hash_list(tmp_path / "l.txt", f"{phash:016x}", "phash", distance=distance)])
        if refused:
            with pytest.raises(FailedError, match=r"on the list l\.txt"):
                lists.check_pixels(image)
        else:
            lists.check_pixels(image)


def test_without_lists_everything_passes() -> None:
    lists = HashLists.read(())
    lists.check_file(b"anything")
    lists.check_pixels(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("text", "kind", "keys", "message"),
    [
        ("0" * 64 + "\nxyz\n", "sha256", {}, "line 2: 'xyz' is no sha256 .64 hexadecimal digits.; correct the line"),
        ("0" * 32, "sha256", {}, "line 1: .* is no sha256"),
        ("g" * 32, "md5", {}, "line 1: .* is no md5 .32 "),
        ("# nothing\n", "md5", {}, "has no hash; give a list"),
        ("0" * 32, "md5", {"column": "md5"}, "is no Parquet file; a text file has no column"),
    ],
)
def test_what_is_no_hash_is_refused(tmp_path: Path, text: str, kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HashLists.read([hash_list(tmp_path / "l.txt", text, kind, **keys)])


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.txt")
    for keys in ({}, {"column": "md5"}):
        with pytest.raises(UserError, match=r"missing\.txt: no such file; correct the path"):
            HashLists.read([HashListConfig.model_validate({"path": missing, "kind": "md5"} | keys)])
    pq.write_table(pa.table({"digest": ["0" * 32]}), tmp_path / "l.parquet")
    parquet = {"path": str(tmp_path / "l.parquet"), "kind": "md5"}
    with pytest.raises(UserError, match="has no column md5; it has digest"):
        HashLists.read([HashListConfig.model_validate(parquet | {"column": "md5"})])
    with pytest.raises(UserError, match="is not a text file; name the column"):
        HashLists.read([HashListConfig.model_validate(parquet)])


def test_a_distance_needs_a_perceptual_hash() -> None:
    with pytest.raises(ValidationError, match="distance 3 needs kind phash"):
        HashListConfig.model_validate({"path": "l.txt", "kind": "md5", "distance": 3})
