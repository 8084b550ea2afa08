"""Tables, folders, tars and a run's files on s3://, against an S3 server on loopback."""

from __future__ import annotations

import gzip
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_schema, read_table, write_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, find_source_files, list_rows
from dataprep.listing.tar_source import MEMBER_COLUMN
from dataprep.listing.writer import write_listing
from pipeline.store.artifact import Manifest, Output, describe_file
from pipeline.store.run import Run, verify_outputs
from tests.helpers.images import encoded, picture

BUCKET = "s3://pictures"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on an S3 server in this process; clients find it by AWS_ENDPOINT_URL."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        storage.filesystem(BUCKET)[0].mkdir(BUCKET)
        yield BUCKET
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_files_are_read_back_unchanged(s3: str, tmp_path: Path) -> None:
    path = storage.join(s3, "run", "a.json")
    assert not storage.exists(path)
    storage.write_json(path, {"a": [1, "图"]})
    assert storage.exists(path) and storage.read_json(path) == {"a": [1, "图"]}
    local = tmp_path / "file.bin"
    local.write_bytes(b"0123456789")
    storage.publish(local, storage.join(s3, "run", "deep", "file.bin"))
    assert not local.exists()
    assert storage.list_files(storage.join(s3, "run")) == ["a.json", "deep/file.bin"]
    assert storage.sha256_file(storage.join(s3, "run", "deep", "file.bin"))[1] == 10
    with storage.local_copy(storage.join(s3, "run", "deep", "file.bin")) as copy:
        assert Path(copy).read_bytes() == b"0123456789"
    assert (Path(storage.local_folder(storage.join(s3, "run"))) / "deep" / "file.bin").exists()
    storage.remove(storage.join(s3, "run"))
    assert storage.list_files(storage.join(s3, "run")) == []


def write_from_elsewhere(path: str) -> None:
    storage.write_bytes(path, b"x")


def test_writes_of_another_process_are_visible(s3: str) -> None:
    folder = storage.join(s3, "markers")
    storage.write_bytes(storage.join(folder, "0.json"), b"x")
    assert storage.list_files(folder) == ["0.json"] and not storage.exists(storage.join(folder, "1.json"))
    other = multiprocessing.get_context("spawn").Process(
        target=write_from_elsewhere, args=(storage.join(folder, "1.json"),)
    )
    other.start()
    other.join()
    assert storage.list_files(folder) == ["0.json", "1.json"] and storage.exists(storage.join(folder, "1.json"))


def test_one_of_many_concurrent_creates_succeeds(s3: str) -> None:
    path = storage.join(s3, "lease", "1.json")
    assert storage.read_or_none(path) is None
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create(path, b"%d" % number), range(8)))
    assert sum(won) == 1
    assert storage.read_or_none(path) == b"%d" % won.index(True)
    assert storage.create(path, b"%d" % won.index(True))  # the same request once more, its answer lost


def test_a_table_on_s3_is_listed_as_a_local_one(s3: str, tmp_path: Path) -> None:
    table = pa.table({"URL": [f"http://a/{index}" for index in range(5)], "TEXT": list("abcde"), "punsafe": [0.1] * 5})
    for part in range(2):
        pq.write_table(table, tmp_path / f"{part}.parquet")
        storage.publish(tmp_path / f"{part}.parquet", storage.join(s3, "list", f"{part}.parquet"))
    storage.write_bytes(storage.join(s3, "list", "more.csv"), b"url,caption\nhttp://a/9,nine\n")
    for path, rows in (("list", 11), ("list/*.parquet", 10), ("list/more.csv", 1)):
        config = ListingConfig(source="table", path=storage.join(s3, path))
        assert all(file.startswith("s3://pictures/list/") for file in find_source_files(config))
        assert sum(part.num_rows for part in list_rows(config, 0)) == rows
    with pytest.raises(UserError, match="no such file"):
        check_source(ListingConfig(source="table", path=storage.join(s3, "nothing.csv")))
    with pytest.raises(UserError, match="no file matches"):
        check_source(ListingConfig(source="table", path=storage.join(s3, "*.tsv")))


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_images_on_s3_need_no_download(source: Any, s3: str, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    for index in range(3):
        (tmp_path / "local" / f"{index}.png").write_bytes(encoded(picture(index)))
        (tmp_path / "local" / f"{index}.txt").write_text(f"caption {index}")
    where = storage.join(s3, source)
    if source == "folder":
        for file in sorted((tmp_path / "local").iterdir()):
            storage.write_bytes(storage.join(where, "some", file.name), file.read_bytes())
    else:
        import tarfile

        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for file in sorted((tmp_path / "local").iterdir()):
                tar.add(file, file.name)
        storage.publish(tmp_path / "0.tar", storage.join(where, "some", "0.tar"))
    counters = write_listing(ListingConfig(source=source, path=where), 0, tmp_path)
    assert counters == {"records": 3, "rows": 3, "shards": 1, "usable": 3}
    (tmp_path / "d").mkdir()
    counters = download_shard(tmp_path / "00000.parquet", 0, tmp_path / "d", DownloadConfig(image_size=32))
    assert counters["success"] == 3
    rows = read_table(tmp_path / "d" / "00000.parquet", "download")
    assert rows["caption"].to_pylist() == ["caption 0", "caption 1", "caption 2"]
    assert (MEMBER_COLUMN in rows.column_names) == (source == "webdataset")


def test_a_runs_artifacts_on_s3(s3: str, tmp_path: Path) -> None:
    run = Run(storage.join(s3, "runs", "one"))
    folder = run.stage_folder("listing", "f" * 20)
    write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "0.parquet", "listing")
    storage.publish(tmp_path / "0.parquet", storage.join(folder, "00000.parquet"))
    output = describe_file(folder, "00000.parquet")
    assert (output.rows, output.bytes > 0) == (1, True)
    run.commit(Manifest("listing", "f" * 20, {}, {}, [output], {"rows": 1}, 0.1, {}))
    storage.write_json(run.path("run.json"), {"stages": {"listing": {"fingerprint": "f" * 20}}})
    run.event("started", stage="listing")
    run.event("finished", stage="listing")
    assert [event["event"] for event in run.events()] == ["started", "finished"]
    artifact = run.artifacts()["listing"]
    assert artifact.manifest.outputs == [Output("00000.parquet", output.bytes, output.sha256, 1)]
    assert read_table(artifact.files()[0], "listing").num_rows == 1
    assert read_schema(artifact.files()[0], "listing").names == ["url", "caption"]
    assert list(verify_outputs(run)) == [("listing", 1, [])]
    storage.write_bytes(artifact.files()[0], b"changed")
    assert "differs" in next(verify_outputs(run))[2][0]


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match=r"nothere://a/b: cannot be reached .*check the URL's scheme"):
        storage.exists("nothere://a/b")


def test_google_storage_goes_to_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    gcsfs = pytest.importorskip("gcsfs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # no credentials are looked for
    fs, inner = storage.filesystem("gs://bucket/folder/file.parquet")
    assert isinstance(fs, gcsfs.GCSFileSystem) and inner == "bucket/folder/file.parquet"


def test_lists_on_s3_and_images_inside_parquet(s3: str, tmp_path: Path) -> None:
    text = "url,caption\n" + "".join(f'http://a/{row},"caption {row}"\n' for row in range(50_000))
    storage.write_bytes(storage.join(s3, "lists", "1.csv"), text.encode())
    storage.write_bytes(storage.join(s3, "lists", "2.csv.gz"), gzip.compress(text.encode()))
    config = ListingConfig(source="table", path=storage.join(s3, "lists", "{1.csv,2.csv.gz}"))
    assert sum(table.num_rows for table in list_rows(config, 0)) == 100_000
    cells = [{"bytes": encoded(picture(row)), "path": f"{row}.png"} for row in range(5)]
    pq.write_table(pa.table({"image": cells, "text": list("abcde")}), tmp_path / "0.parquet")
    storage.publish(tmp_path / "0.parquet", storage.join(s3, "images", "0.parquet"))
    write_listing(ListingConfig(source="table", path=storage.join(s3, "images")), 0, tmp_path)
    assert download_shard(tmp_path / "00000.parquet", 0, tmp_path, DownloadConfig(image_size=32))["success"] == 5
