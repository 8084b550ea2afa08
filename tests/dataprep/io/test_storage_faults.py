"""An object store that throttles, breaks connections, loses responses and lists late: nothing is lost or torn."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dataprep.io import storage
from dataprep.io.keys import shard_name
from pipeline.execution.executor import _list_outputs
from pipeline.store.artifact import Output
from pipeline.store.markers import Marker, MarkerBatches, read_markers, write_marker
from pipeline.store.run import Run
from tests.helpers.faulty_store import Faults, faulty, publish_from_elsewhere


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    """A healthy S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def faults(upstream: tuple[str, int]) -> Iterator[Faults]:
    """A bucket and its faults, none at first."""
    made = Faults()
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache
    with pytest.MonkeyPatch.context() as patch, faulty(upstream, made) as address:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget()
        made.bucket = f"s3://{uuid.uuid4().hex}"
        storage.filesystem(made.bucket)[0].mkdir(made.bucket)
        yield made
        forget()


@pytest.mark.parametrize("kind", ["throttled", "broken_reads", "torn_writes", "lost_answers"])
def test_every_file_arrives_whole(kind: str, faults: Faults, tmp_path: Path) -> None:
    setattr(faults, kind, 8 if kind == "throttled" else 4)
    data = {f"{number}.bin": os.urandom(1000 * number + 1) for number in range(12)}
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(3 << 20))
    sha256 = hashlib.sha256(large.read_bytes()).hexdigest()
    storage.publish(large, storage.join(faults.bucket, "large.bin"))
    for name, content in data.items():
        storage.write_bytes(storage.join(faults.bucket, "many", name), content)
    assert storage.list_files(storage.join(faults.bucket, "many")) == sorted(data)
    for name, content in data.items():
        assert storage.read_bytes(storage.join(faults.bucket, "many", name)) == content
        assert storage.size(storage.join(faults.bucket, "many", name)) == len(content)
    names = sorted(data)
    assert storage.read_many([storage.join(faults.bucket, "many", name) for name in names]) == [
        data[name] for name in names
    ]
    for _ in range(4):
        assert storage.sha256_file(storage.join(faults.bucket, "large.bin")) == (sha256, 3 << 20)
        with storage.local_copy(storage.join(faults.bucket, "large.bin")) as copy:
            assert hashlib.sha256(Path(copy).read_bytes()).hexdigest() == sha256
    assert faults.happened[kind] >= 3


def test_a_lease_is_won_once_though_answers_are_lost(faults: Faults) -> None:
    path = storage.join(faults.bucket, "lease")
    faults.lost_answers = 2  # the first answer comes, every other one is lost and asked for again
    assert [storage.create(f"{path}-{number}", b"mine") for number in range(4)] == [True] * 4
    assert [storage.create(f"{path}-{number}", b"yours") for number in range(4)] == [False] * 4
    assert storage.read_bytes(f"{path}-3") == b"mine"


def test_a_writer_killed_in_the_middle_leaves_nothing(faults: Faults, tmp_path: Path) -> None:
    faults.hold = threading.Event()
    local, path = tmp_path / "file.bin", storage.join(faults.bucket, "file.bin")
    local.write_bytes(os.urandom(1 << 20))
    writer = multiprocessing.get_context("spawn").Process(target=publish_from_elsewhere, args=(str(local), path))
    writer.start()
    assert faults.uploads.acquire(timeout=30)
    writer.kill()
    writer.join()
    assert not storage.exists(path) and local.exists()
    faults.hold.set()
    time.sleep(0.2)
    storage.publish(local, path)
    assert storage.size(path) == 1 << 20


def test_a_listing_that_lags_loses_no_output(faults: Faults) -> None:
    folder = storage.join(faults.bucket, "run", "stages", "clip", "f" * 20)
    storage.write_bytes(storage.join(folder, "early.bin"), b"1")
    time.sleep(1.2)
    faults.lag = 1.0
    for name in ("export/model.bin", "log.jsonl"):
        storage.write_bytes(storage.join(folder, name), b"22")
    assert storage.list_files(folder) == ["early.bin"]
    assert [output.path for output in _list_outputs(folder, [])] == ["early.bin", "export/model.bin", "log.jsonl"]
    assert faults.happened["lag"] > 0
    faults.lag = 0.0
    assert len(storage.list_files(folder)) == 3  # the probe is gone


def test_a_listing_that_never_catches_up_is_an_error(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LAG", 1.0)
    faults.lag = 60.0
    with pytest.raises(OSError, match="listing is more than 1 s behind"):
        storage.list_settled(storage.join(faults.bucket, "run"))


def test_the_event_log_and_the_run_record_survive_faults(faults: Faults) -> None:
    faults.throttled, faults.lost_answers, faults.torn_writes = 5, 4, 7
    run = Run(storage.join(faults.bucket, "run"))
    for number in range(6):
        run.event("shard", number=number)
    assert [event["number"] for event in run.events()] == list(range(6))


def test_markers_written_together_are_read_in_few_requests(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.markers.BATCH_SIZE", 5)
    folder = storage.join(faults.bucket, "run", "stages", "download", "f" * 20)
    markers = [Marker(n, "w", {}, [Output(shard_name(n, "tar"), 1, "0" * 64)], {"rows": 1}) for n in range(13)]
    index = MarkerBatches(folder, [])
    for marker in markers:
        write_marker(folder, marker)
        index.add(marker)
    faults.throttled = 10**9
    assert read_markers(folder) == {marker.id: marker for marker in markers}
    assert faults.seen["throttled"] == 1 + 2 + 3  # the listing, the batches, and those after the last one


def test_brackets_in_a_path_are_no_pattern(tmp_path: Path) -> None:
    folder = str(tmp_path / "exp[1]*")
    marker = Marker(3, "w", {}, [Output("00003.parquet", 1, "f" * 64, 2)], {"rows": 2})
    write_marker(folder, marker)
    assert read_markers(folder) == {3: marker}
