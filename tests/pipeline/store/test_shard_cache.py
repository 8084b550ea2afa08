"""Reuse of shards from earlier artifacts: when they are reused, and when not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from ray import cloudpickle

from dataprep.annotate_config import AnnotateConfig
from dataprep.io import storage
from dataprep.io.keys import shard_name
from pipeline.execution.executor import _list_outputs
from pipeline.runtime.shard_worker import ShardTask
from pipeline.store.artifact import Artifact, Manifest, ShardRecord, describe_file
from pipeline.store.run import Run
from pipeline.store.shard_cache import worker_fingerprint
from tests.helpers.contexts import make_context

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class CopyWorker:
    """Writes ``word`` and its input; records its calls in ``notes``."""

    def __init__(self, word: str, notes: str) -> None:
        self.word, self.notes = word, Path(notes)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        with open(self.notes, "a") as file:
            file.write(f"{task.id} ")
        text = Path(task.files["listing.txt"]).read_text()
        (task.out / shard_name(task.id, "txt")).write_text(self.word + text)
        return {"letters": len(text)}


class NamedPair(NamedTuple):
    one: str
    two: int


def commit_listing(run: Run, fingerprint: str, texts: list[str]) -> Artifact:
    folder = run.stage_folder("listing", fingerprint)
    for index, text in enumerate(texts):
        storage.write_bytes(storage.join(folder, f"{index:05d}.txt"), text.encode())
    outputs = [describe_file(folder, f"{index:05d}.txt") for index in range(len(texts))]
    return run.commit(Manifest("listing", fingerprint, {}, {}, outputs, {}, 0.0, {}))


def run_copy_stage(
    run: Run, fingerprint: str, source: Artifact, word: str = "x", commit: bool = True
) -> tuple[dict[str, str], str]:
    """Runs a stage of `CopyWorker` over ``source``; returns its files and the ids of the shards it processed."""
    folder = run.stage_folder("copy", fingerprint)
    notes = Path(run.root) / "notes"  # the same in all stages of a run: it is an argument of the worker
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("")
    context = make_context(run.root, "copy", {"listing": source}, fingerprint, cpus=2)
    context.map_shards(CopyWorker, {"word": word, "notes": str(notes)}, context.join_shards(source))
    if commit:
        outputs = _list_outputs(folder, context.finished)
        shards = [ShardRecord.from_marker(marker) for marker in context.finished]
        run.commit(Manifest("copy", fingerprint, {}, {}, outputs, context.counters, 0.0, {}, shards=shards))
    names = [name for name in storage.list_files(folder) if name.endswith(".txt")]
    return {name: (Path(folder) / name).read_text() for name in names}, " ".join(sorted(notes.read_text().split()))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("finished", [True, False])
def test_a_grown_list_processes_only_new_and_changed_shards(tmp_path: Path, finished: bool) -> None:
    run = Run(str(tmp_path))
    texts = [f"row {index}" for index in range(6)]
    first, processed = run_copy_stage(run, "a", commit_listing(run, "l1", texts), commit=finished)
    assert processed == "0 1 2 3 4 5"
    grown = [*texts[:2], "changed", *texts[3:], "new"]
    second, processed = run_copy_stage(run, "b", commit_listing(run, "l2", grown))
    assert processed == "2 6"
    nothing, processed = run_copy_stage(Run(str(tmp_path / "other")), "c", commit_listing(run, "l3", grown))
    assert processed == "0 1 2 3 4 5 6"
    assert second == nothing
    assert second["00000.txt"] == first["00000.txt"]
    manifest = run.artifact("copy", "b").manifest  # type: ignore[union-attr]
    assert [output.path for output in manifest.outputs] == [f"{index:05d}.txt" for index in range(7)]
    assert manifest.counters == {"letters": 5 * 5 + 7 + 3}


@pytest.mark.usefixtures("local_ray")
def test_other_arguments_or_a_lost_file_process_shards_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    source = commit_listing(run, "l1", ["a", "b"])
    run_copy_stage(run, "a", source)
    assert run_copy_stage(run, "b", source, word="y") == ({"00000.txt": "ya", "00001.txt": "yb"}, "0 1")
    (Path(run.stage_folder("copy", "a")) / "00001.txt").unlink()
    assert run_copy_stage(run, "c", source) == ({"00000.txt": "xa", "00001.txt": "xb"}, "1")


@pytest.mark.usefixtures("local_ray")
def test_a_marker_of_other_input_is_ignored(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run_copy_stage(run, "a", commit_listing(run, "l1", ["a", "b"]), commit=False)
    # The stage has the same fingerprint, but its input was made again with another result.
    assert run_copy_stage(run, "a", commit_listing(run, "l1", ["a", "B"]))[1] == "1"


def test_paths_into_inputs_count_by_content_and_other_arguments_by_value(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    one, same, other = (commit_listing(run, name, [text]) for name, text in (("l1", "a"), ("l2", "a"), ("l3", "b")))

    def get_fingerprint(artifact: Artifact, **arguments: object) -> str:
        return worker_fingerprint(CopyWorker, {"model": artifact.path("00000.txt"), **arguments}, [artifact], {})

    assert get_fingerprint(one) == get_fingerprint(same) != get_fingerprint(other)
    elsewhere = [worker_fingerprint(CopyWorker, {"model": artifact.path("x")}, [], {}) for artifact in (one, same)]
    assert elsewhere[0] != elsewhere[1]
    named = [worker_fingerprint(CopyWorker, {"model": "/clip.pt"}, [one], {"/clip.pt": sha}) for sha in "ab"]
    assert named[0] != named[1]
    # Inputs count even if no argument is a path into them.
    assert worker_fingerprint(CopyWorker, {}, [one], {}) != worker_fingerprint(CopyWorker, {}, [other], {})
    config, english = AnnotateConfig(), AnnotateConfig(languages=("en",))
    base = get_fingerprint(one, config=config, rows=[NamedPair("a", 1)], forgotten=frozenset("ab"))
    assert base == get_fingerprint(one, config=config, rows=[NamedPair("a", 1)], forgotten=frozenset("ba"))
    assert base != get_fingerprint(one, config=english, rows=[NamedPair("a", 1)], forgotten=frozenset("ab"))
    assert base != get_fingerprint(one, config=config, rows=[NamedPair("a", 2)], forgotten=frozenset("ab"))
    with pytest.raises(TypeError, match="is a function, which has no stable form"):
        get_fingerprint(one, hook=test_paths_into_inputs_count_by_content_and_other_arguments_by_value)
