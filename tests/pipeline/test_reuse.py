"""Shards taken over from earlier artifacts: what must be the same for it, and that nothing else is taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from ray import cloudpickle

from dataprep import storage
from dataprep.annotate import AnnotateConfig
from pipeline.config import ClusterConfig
from pipeline.context import Context
from pipeline.executor import _kept, _outputs
from pipeline.reuse import worker_fingerprint
from pipeline.sources import SourceHashes
from pipeline.store import MANIFEST, Artifact, Manifest, Run, Shard, describe

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Copy:
    """Writes ``word`` and its input; says in ``notes`` that it was called."""

    def __init__(self, word: str, notes: str) -> None:
        self.word, self.notes = word, Path(notes)

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        with open(self.notes, "a") as file:
            file.write(f"{shard.id} ")
        text = Path(shard.files["listing.txt"]).read_text()
        (out / f"{shard.id:05d}.txt").write_text(self.word + text)
        return {"letters": len(text)}


class Pair(NamedTuple):
    one: str
    two: int


def listing(run: Run, fingerprint: str, texts: list[str]) -> Artifact:
    folder = run.stage_folder("listing", fingerprint)
    for index, text in enumerate(texts):
        storage.write_bytes(storage.join(folder, f"{index:05d}.txt"), text.encode())
    outputs = [describe(folder, f"{index:05d}.txt") for index in range(len(texts))]
    return run.commit(Manifest("listing", fingerprint, {}, {}, outputs, {}, 0.0, {}))


def copy_stage(
    run: Run, fingerprint: str, source: Artifact, word: str = "x", commit: bool = True
) -> tuple[dict[str, str], str]:
    """Runs a stage of `Copy` over ``source``: what it wrote, and the shards that it worked on."""
    folder = run.stage_folder("copy", fingerprint)
    notes = Path(run.root) / "notes"  # of one name in a run: it is an argument of the worker
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("")
    context = Context("copy", {}, {"listing": source}, folder, run, ClusterConfig(cpus=2))
    context.map_shards(Copy, {"word": word, "notes": str(notes)}, context.shards("listing"))
    if commit:
        outputs = _outputs(folder, context.finished)
        shards = _kept(context.finished, outputs)
        run.commit(Manifest("copy", fingerprint, {}, {}, outputs, context.counters, 0.0, {}, shards=shards))
    names = [name for name in storage.list_files(folder) if name.endswith(".txt")]
    return {name: (Path(folder) / name).read_text() for name in names}, " ".join(sorted(notes.read_text().split()))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("finished", [True, False])
def test_a_grown_list_works_on_what_is_new_alone(tmp_path: Path, finished: bool) -> None:
    run = Run(str(tmp_path))
    texts = [f"row {index}" for index in range(6)]
    first, worked = copy_stage(run, "a", listing(run, "l1", texts), commit=finished)
    assert worked == "0 1 2 3 4 5"
    grown = [*texts[:2], "changed", *texts[3:], "new"]
    second, worked = copy_stage(run, "b", listing(run, "l2", grown))
    assert worked == "2 6"
    nothing, worked = copy_stage(Run(str(tmp_path / "other")), "c", listing(run, "l3", grown))
    assert worked == "0 1 2 3 4 5 6"
    assert second == nothing
    assert second["00000.txt"] == first["00000.txt"]
    manifest = run.artifact("copy", "b").manifest  # type: ignore[union-attr]
    assert [output.path for output in manifest.outputs] == [f"{index:05d}.txt" for index in range(7)]
    assert manifest.counters == {"letters": 5 * 5 + 7 + 3}


@pytest.mark.usefixtures("local_ray")
def test_other_arguments_or_a_lost_file_are_worked_on_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    source = listing(run, "l1", ["a", "b"])
    copy_stage(run, "a", source)
    assert copy_stage(run, "b", source, word="y") == ({"00000.txt": "ya", "00001.txt": "yb"}, "0 1")
    (Path(run.stage_folder("copy", "a")) / "00001.txt").unlink()
    assert copy_stage(run, "c", source) == ({"00000.txt": "xa", "00001.txt": "xb"}, "1")


@pytest.mark.usefixtures("local_ray")
def test_a_marker_of_other_input_is_not_believed(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    copy_stage(run, "a", listing(run, "l1", ["a", "b"]), commit=False)
    # The same fingerprint of the stage, but an input that was made again and came out otherwise.
    assert copy_stage(run, "a", listing(run, "l1", ["a", "B"]))[1] == "1"


def test_paths_into_inputs_count_by_content_and_all_else_by_value(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    one, same, other = (listing(run, name, [text]) for name, text in (("l1", "a"), ("l2", "a"), ("l3", "b")))

    def of(artifact: Artifact, **arguments: object) -> str:
        return worker_fingerprint(Copy, {"model": artifact.path("00000.txt"), **arguments}, [artifact], {})

    assert of(one) == of(same) != of(other)
    elsewhere = [worker_fingerprint(Copy, {"model": artifact.path("x")}, [], {}) for artifact in (one, same)]
    assert elsewhere[0] != elsewhere[1]
    named = [worker_fingerprint(Copy, {"model": "/clip.pt"}, [one], {"/clip.pt": sha}) for sha in "ab"]
    assert named[0] != named[1]
    # An argument may name no path at all: the worker may still have learned from the input where to look.
    assert worker_fingerprint(Copy, {}, [one], {}) != worker_fingerprint(Copy, {}, [other], {})
    base = of(one, config=AnnotateConfig(), rows=[Pair("a", 1)], forgotten=frozenset("ab"))
    assert base == of(one, config=AnnotateConfig(), rows=[Pair("a", 1)], forgotten=frozenset("ba"))
    assert base != of(one, config=AnnotateConfig(languages=("en",)), rows=[Pair("a", 1)], forgotten=frozenset("ab"))
    assert base != of(one, config=AnnotateConfig(), rows=[Pair("a", 2)], forgotten=frozenset("ab"))
    with pytest.raises(TypeError, match="is a function, which has no stable form"):
        of(one, hook=test_paths_into_inputs_count_by_content_and_all_else_by_value)


def test_what_an_artifact_only_names_is_part_of_its_content(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    manifests = [Manifest("encoder", "e", {}, {}, [], {}, 0.0, {}, sources={"/t5/model": sha}) for sha in "ab"]
    assert Artifact("f", manifests[0]).content != Artifact("f", manifests[1]).content
    assert run.commit(manifests[0]).content == Artifact("elsewhere", manifests[0]).content
    assert storage.exists(storage.join(run.stage_folder("encoder", "e"), MANIFEST))


@pytest.mark.parametrize("root", ["{tmp}/", "memory://duplicates/"])
def test_a_duplicate_is_the_same_file(tmp_path: Path, root: str) -> None:
    source, target = root.format(tmp=tmp_path) + "a/x.bin", root.format(tmp=tmp_path) + "b/x.bin"
    storage.write_bytes(source, b"12345")
    for _ in range(2):
        storage.duplicate(source, target)
    assert storage.read_bytes(target) == b"12345"
    assert storage.size(target) == 5
    assert storage.size(target + "x") is None
    storage.write_bytes(source, b"other")  # replaced, not written into
    assert storage.read_bytes(target) == b"12345"
    assert storage.list_folders(root.format(tmp=tmp_path)) == ["a", "b"]


def test_a_source_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "list.csv", Run(str(tmp_path / "run"))
    read: list[str] = []
    original: Callable[[str], tuple[str, int]] = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda name: read.append(name) or original(name))
    path.write_text("one")
    just_written = SourceHashes(run)
    first = just_written.of([str(path)])
    assert just_written.of([str(path)]) == first
    assert len(read) == 2  # too young to be trusted
    os.utime(path, (1e9, 1e9))
    settled = SourceHashes(run)
    settled.of([str(path)])
    settled.save()
    assert SourceHashes(run).of([str(path)]) == first
    assert len(read) == 3
    path.write_text("two")
    assert SourceHashes(run).of([str(path)]) != first
