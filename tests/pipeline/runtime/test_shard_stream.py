"""Handing committed shards from a running stage to its readers, and joining shards of several inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.errors import InputFailedError
from pipeline.runtime.shard_stream import RunningArtifact, ShardFeed, ShardStream, StageStreams
from pipeline.store.artifact import Artifact, Manifest, Shard
from pipeline.store.markers import Marker, Output
from tests.helpers.contexts import make_context


def make_shard(number: int, content: str = "one") -> Shard:
    return Shard(number, {"txt": f"/made/{number:05d}.txt"}, {"txt": f"{content} {number}"})


def make_artifact(stage: str, *numbers: int, content: str = "one") -> Artifact:
    outputs = [Output(f"{number:05d}.txt", 1, f"{content} {number}") for number in numbers]
    return Artifact("/made", Manifest(stage, "f", {}, {}, outputs, {}, 0.0, {}))


def read_ids(shards: list[Shard]) -> list[int]:
    return [shard.id for shard in shards]


def test_each_reader_gets_every_shard_once_however_late_it_comes() -> None:
    stream = ShardStream("first")
    early = stream.open_reader()
    stream.offer(make_shard(1))
    assert read_ids(early.take()) == [1]
    stream.offer(make_shard(0))
    late = stream.open_reader()
    stream.close(make_artifact("first", 0, 1, 2))
    assert read_ids(early.take()) == [0, 2] and read_ids(late.take()) == [1, 0, 2]
    assert early.take() == []


def test_a_shard_that_changed_after_it_was_handed_over_is_an_error() -> None:
    stream = ShardStream("first")
    stream.offer(make_shard(0))
    with pytest.raises(RuntimeError, match="stage first: shard 0 changed after the next stages had read it"):
        stream.close(make_artifact("first", 0, content="other"))
    with pytest.raises(AssertionError, match="first: shard 0 is handed over twice"):
        stream.offer(make_shard(0))


def test_the_lag_is_that_of_the_slowest_reader_that_still_reads() -> None:
    stream = ShardStream("first")
    for number in range(5):
        stream.offer(make_shard(number))
    assert stream.lag() == 0  # nobody reads
    slow, quick = stream.open_reader(), stream.open_reader()
    assert stream.lag() == 5
    quick.take()
    slow.take()
    slow.waiting = 3
    assert stream.lag() == 3
    stream.offer(make_shard(5))
    assert stream.lag() == 4
    slow.closed = True  # it failed, or ended
    assert stream.lag() == 1


def test_shards_of_several_inputs_are_joined_once_all_have_them() -> None:
    stream = ShardStream("left")
    stream.expected = 4
    feed = ShardFeed(["left", "right"], [stream.open_reader()])
    feed.add("right", [make_shard(number) for number in (0, 1, 2)])
    assert feed.take() == [] and not feed.readers_ended and feed.total == 4
    for number in (2, 0):
        stream.offer(make_shard(number))
    found = feed.take()
    assert read_ids(found) == [0, 2]
    assert found[0].files == {"left.txt": "/made/00000.txt", "right.txt": "/made/00000.txt"}
    assert found[0].sha256 == {"left.txt": "one 0", "right.txt": "one 0"}
    stream.close(make_artifact("left", 0, 2, 3))
    assert feed.readers_ended and feed.take() == []
    assert read_ids(feed.list_complete()) == [0, 2] and set(feed.partial) == {1, 3}
    feed.check_inputs()
    stream.fail()
    with pytest.raises(InputFailedError, match="its input left failed"):
        feed.check_inputs()


def test_a_feed_of_finished_inputs_gives_what_join_shards_gives(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, "reader")
    inputs = (make_artifact("left", 0, 1, 3), make_artifact("right", 3, 1, 2))
    joined = ctx.join_shards(*inputs)
    assert read_ids(joined) == [1, 3] and ctx.counters == {"shards_left_out": 2}
    feed = ctx.feed_shards(*inputs)
    assert feed.readers_ended and feed.take() == joined


def test_a_running_input_is_read_by_its_feed_alone(tmp_path: Path) -> None:
    ctx, stream, running = make_context(tmp_path, "reader"), ShardStream("left"), RunningArtifact("left", "f" * 20)
    ctx.streams = StageStreams({"left": stream})
    stream.offer(make_shard(1))
    feed = ctx.feed_shards(running, make_artifact("right", 1))
    assert read_ids(feed.take()) == [1]
    with pytest.raises(RuntimeError, match="stage left is still running; read it with feed_shards"):
        ctx.join_shards(running)
    with pytest.raises(RuntimeError, match="it has no content yet"):
        _ = running.content
    stream.offer(make_shard(2))
    assert stream.lag() == 1
    ctx.close_feeds()
    assert stream.lag() == 0


def test_a_marker_gives_the_shard_that_the_artifact_will_have() -> None:
    outputs = [Output("00007.txt", 1, "t"), Output("00007.tar", 2, "a"), Output("notes.json", 3, "n")]
    named = [Output(f"pass-001/{output.path}", output.bytes, output.sha256) for output in outputs]
    manifest = Manifest("first", "f", {}, {}, named, {}, 0.0, {})
    marker = Marker(7, "w", {}, outputs, {}, "pass-001")
    assert [Shard.from_marker("/made", marker)] == Artifact("/made", manifest).shards
