"""Forgetting on a run of real files: nothing of the sample is left in any of them, wherever it hid; the rest stands."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_fakes import COPY, DEAD, HOST, VICTIM, Made, caption, embedding, picture, serve, stored_image, url, write_list

from dataprep import storage
from dataprep.download import DownloadConfig, download_shard
from dataprep.fetch import FetchConfig
from dataprep.redact import Forgotten, url_hash
from dataprep.schema import UserError, read_table
from dataprep.sources import ListingConfig, write_listing
from pipeline.forget import forget, render
from pipeline.rewrite import update_manifest
from pipeline.store import Manifest, Marker, Output, Run, describe, verify
from pipeline.trace import trace


@pytest.fixture
def run(finished_run: Made, tmp_path: Path) -> Path:
    """A copy of the run, with what kills leave: an unfinished artifact, a temporary file, a URL in the log."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run.run.root, folder)
    unfinished = folder / "stages" / "annotate" / "unfinished"
    shutil.copytree(folder / "stages" / "annotate" / "annotateone", unfinished)
    (unfinished / "manifest.json").unlink()
    (unfinished / ".shards").mkdir()
    (unfinished / ".shards" / "00001.json").write_text("{}")
    (unfinished / ".shards" / "batch-00000500.json").write_text('[{"id": 1}]')
    (folder / "stages" / "train.base" / "unfinished").mkdir()
    (folder / "stages" / "train.base" / "unfinished" / "log.jsonl").write_text("{}\n")
    _draw_picture(folder / "stages" / "train.base" / "trainbaseone")
    (folder / "stages" / "download" / "downloadone" / ".00001.tar.ab12cd34.tmp").write_bytes(picture(VICTIM))
    Run(str(folder)).event("quarantined", stage="download", reason=f"could not read {url(VICTIM)}: torn")
    return folder


def _draw_picture(folder: Path) -> None:
    """A TensorBoard file as a training stage writes one that shows true images beside its own."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_image("samples", np.zeros((8, 8, 3), np.uint8), 1, dataformats="HWC")
    run = Run(str(folder.parents[2]))
    artifact = run.artifact("train.base", folder.name)
    assert artifact is not None
    names = [name for name in storage.list_files(str(folder)) if name != "manifest.json"]
    run.commit(replace(artifact.manifest, outputs=[describe(str(folder), name) for name in names]))


def secrets(made: Made) -> dict[str, bytes]:
    """What must not be found anywhere."""
    found: dict[str, bytes] = {}
    for row in (VICTIM, COPY):
        key = f"{row // 5:05d}{row % 5:04d}"
        image = stored_image(made.artifacts["download"], key)
        found |= {f"url {row}": url(row).encode(), f"caption {row}": caption(row).encode(), "image": image}
        found[f"embedding {row}"] = embedding(caption(row))
    found["note"] = f"rare-{VICTIM}".encode()
    annotations = read_table(made.artifacts["annotate"].files()[1], "annotations").to_pylist()[VICTIM % 5]
    found["thumbnail"], found["sha256 as features"] = annotations["thumbnail"], bytes.fromhex(annotations["sha256"])
    packed = next(
        row for row in read_table(made.artifacts["pack"].files()[1], "pack").to_pylist() if row["key"] == "000010002"
    )
    return found | {"pixels 16": packed["pixels_16"], "pixels 32": packed["pixels_32"]}


def values(path: Path) -> Iterator[bytes]:
    """Everything that a file of a run can hold, taken out of its wrapping."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                yield archive.extractfile(member).read()  # type: ignore[union-attr]
    elif path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield str(file.metadata.to_dict()).encode()
            for column in file.read().columns:
                for value in column.to_pylist():
                    yield value if isinstance(value, bytes) else str(value).encode()
    elif path.suffix == ".html":
        for encoded in re.findall(rb"data:image/\w+;base64,([A-Za-z0-9+/=]+)", data):
            yield base64.b64decode(encoded)


def searched(root: Path, wanted: dict[str, bytes]) -> set[str]:
    """Which of ``wanted`` are somewhere in the run, pictures in pages compared as pictures."""
    found = set()
    small = Image.open(io.BytesIO(wanted["image"])).convert("RGB").resize((12, 12), Image.Resampling.BOX)
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        for value in values(path):
            found |= {name for name, secret in wanted.items() if secret in value}
            if path.suffix == ".html" and value[:4] in (b"RIFF", b"\x89PNG"):
                other = Image.open(io.BytesIO(value)).convert("RGB").resize((12, 12), Image.Resampling.BOX)
                if np.abs(np.asarray(small, np.int16) - np.asarray(other, np.int16)).mean() < 4:
                    found.add("picture in a page")
    return found


def test_the_search_finds_all_of_it_before(finished_run: Made, run: Path) -> None:
    assert searched(run, secrets(finished_run)) == {*secrets(finished_run), "picture in a page"}


@pytest.mark.parametrize("target", [url(VICTIM), "000010002"])
def test_nothing_of_the_sample_and_its_copies_is_left_anywhere(finished_run: Made, run: Path, target: str) -> None:
    outcome = forget(str(run), [target])
    assert searched(run, secrets(finished_run)) == set()
    assert outcome.samples == 2
    assert [problem for _, _, problems in verify(Run(str(run))) for problem in problems] == []
    assert not list(run.rglob("*.tmp"))
    told = json.loads((run / "forgotten.json").read_text())
    assert sorted(told["urls"]) == sorted([url_hash(url(VICTIM)), url_hash(url(COPY))])
    assert told["rows"]["download/downloadone"] == ["000010002", "000020001"]
    assert told["rows"]["download/downloadtwo"] == ["000010000", "000010004"]  # two rows fewer before them
    assert {(item["stage"], item["fingerprint"]) for item in told["trained"]} == {
        *(("encoder", f"encoder{name}") for name in ("one", "two")),
        *(("clip", f"clip{name}") for name in ("one", "two")),
        *(("train.base", f"trainbase{name}") for name in ("one", "two")),
        ("train.base", "unfinished"),
    }
    assert outcome.stale == ["metrics.json"]
    assert ("train.base/trainbaseone", 0, 4) in outcome.changes  # three grids and a TensorBoard file
    assert not [*run.glob("stages/train.base/trainbaseone/samples/*")]
    left = [path.name for path in run.glob("stages/train.base/trainbaseone/tensorboard/*")]
    assert left == ["events.out.tfevents.1"]
    assert ("evaluate/evaluateone", 0, 2) in outcome.changes
    assert [path.name for path in run.glob("stages/evaluate/evaluateone/features/*")] == ["00000.parquet"]


def test_a_shard_that_is_taken_out_of_unfinished_work_is_not_called_finished(run: Path) -> None:
    folder = run / "stages" / "annotate" / "unfinished"
    forget(str(run), [url(VICTIM)])
    assert not (folder / "00001.parquet").exists()
    assert not list((folder / ".shards").iterdir())


def test_every_other_row_stands_as_it_was(finished_run: Made, run: Path) -> None:
    forget(str(run), [url(VICTIM)])
    gone = {"000010002", "000020001"}
    for stage in ("download", "annotate", "score", "select", "pack", "embed"):
        before, after = finished_run.artifacts[stage], Run(str(run)).artifacts()[stage]
        assert after.manifest.counters["redacted"] == 2
        for old, new in zip(before.files(), after.files(), strict=True):
            rows = {row["key"]: row for row in pq.read_table(new).to_pylist()}
            for row in pq.read_table(old).to_pylist():
                if row["key"] not in gone:
                    assert rows.pop(row["key"]) == row
            assert set(rows) <= gone
            assert stage not in ("pack", "embed") or not rows
        changed = {
            one.path for one, two in zip(before.manifest.outputs, after.manifest.outputs, strict=True) if one != two
        }
        assert {name[:5] for name in changed} == {"00001", "00002"}


def test_pages_are_made_again_and_old_ones_are_emptied(run: Path) -> None:
    outcome = forget(str(run), [url(VICTIM)])
    assert [line.split(":")[0] for line in outcome.pages] == ["made again", "made again"]
    page = (run / "report.html").read_text()
    assert page == (run / "stages" / "report" / "reportone" / "report.html").read_text()
    assert "taken out on request" in page
    assert "report removed" in (run / "stages" / "report" / "reporttwo" / "report.html").read_text()
    card = (run / "datacard.md").read_text()
    assert "| forgotten on request | 2 |" in card
    facts = json.loads((run / "stages" / "card" / "cardone" / "datacard.json").read_text())
    assert (facts["kept"], facts["forgotten"]) == (9, 2)


def test_a_report_that_cannot_be_made_again_stays_empty_and_says_so(finished_run: Made, run: Path) -> None:
    metrics = run / "stages" / "evaluate" / "evaluateone" / "metrics.json"
    metrics.write_text("{}")
    outcome = forget(str(run), [url(VICTIM)])
    assert "emptied" in outcome.pages[-1] and "KeyError" in outcome.pages[-1]
    assert searched(run, secrets(finished_run)) == set()
    record = json.loads((run / "run.json").read_text())
    del record["stages"]["report"]
    (run / "run.json").write_text(json.dumps(record))
    assert "no report yet" in forget(str(run), []).pages[-1]


def test_dry_run_tells_the_same_and_touches_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    planned = forget(str(run), [url(VICTIM)], dry_run=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done = forget(str(run), [url(VICTIM)])
    assert (planned.samples, planned.changes, planned.told) == (done.samples, done.changes, done.told)
    assert forget(str(run), [url(VICTIM)]).changes == []  # all of it was done


class KilledError(BaseException):
    """A kill: nothing catches it, nothing is cleaned up."""


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 14, 20, 25])
def test_a_kill_in_the_middle_is_made_good_by_the_same_command(
    finished_run: Made, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed at a write (the list, a shard, a manifest, a page), then run again by key, which is blank by then."""
    expected = tmp_path / "expected"
    shutil.copytree(run, expected)
    forget(str(expected), ["000010002"])
    left = [after]

    def count(real: Any) -> Any:
        def write(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            real(*arguments)

        return write

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "publish", "remove"):
            patched.setattr(storage, name, count(getattr(storage, name)))
        with pytest.raises(KilledError):
            forget(str(run), ["000010002"])
    assert (run / "forgotten.json").exists() == (after > 0)
    forget(str(run), [] if after % 2 else ["000010002"])
    assert searched(run, secrets(finished_run)) == set()
    assert [problem for _, _, problems in verify(Run(str(run))) for problem in problems] == []
    for path in sorted(item for item in expected.rglob("*") if item.is_file()):
        other = run / path.relative_to(expected)
        if path.suffix in (".parquet", ".tar", ".md") or path.name in ("forgotten.json", "manifest.json"):
            assert other.read_bytes() == path.read_bytes(), path


def test_a_later_run_never_takes_it_up_again(run: Path, finished_run: Made, tmp_path: Path) -> None:
    """Not by its URL, which is not asked for, nor by its bytes under a new one; and other rows keep their keys."""
    forget(str(run), [url(VICTIM)])
    told = Forgotten.read(str(run / "forgotten.json"))
    write_list(tmp_path / "list.csv")
    with open(tmp_path / "list.csv", "a") as file:
        file.write(f"http://{HOST}/{VICTIM:02d}.jpg?again,another caption,,\n")
    (tmp_path / "listing").mkdir()
    config = ListingConfig(source="table", path=str(tmp_path / "list.csv"), rows_per_shard=5)
    assert write_listing(config, 0, tmp_path / "listing", told.urls) == {"rows": 14, "shards": 3, "forgotten": 2}
    fetch = DownloadConfig(fetch=FetchConfig(retries=0, allow_private_addresses=True), image_size=64)
    asked: list[str] = []
    (tmp_path / "download").mkdir()
    with serve(asked) as hosts:
        for shard in range(3):
            listing = tmp_path / "listing" / f"{shard:05d}.parquet"
            download_shard(listing, shard, tmp_path / "download", fetch, hosts, forgotten=told.images)
    pictures = [path for path in asked if ".jpg" in path]
    assert len(pictures) == 12
    assert not {f"/{VICTIM:02d}.jpg", f"/{COPY:02d}.jpg"} & set(pictures)
    names = [f"{shard:05d}.parquet" for shard in range(3)]
    rows = [row for name in names for row in read_table(tmp_path / "download" / name, "download").to_pylist()]
    refused = {row["key"]: row["error_message"] for row in rows if row["error_message"] == "forgotten"}
    assert set(refused) == {"000010002", "000020001", "000020003"}
    # What is not the last shard is what forgetting has left in the run: it can be taken over.
    for name in ("00000.parquet", "00001.parquet", "00001.tar"):
        redacted = run / "stages" / "download" / "downloadone" / name
        assert redacted.read_bytes() == (tmp_path / "download" / name).read_bytes()


def test_markers_of_later_passes_follow_what_was_redacted(tmp_path: Path) -> None:
    """A second pass over shard 0 lies in a subfolder, under the same name, and was made of the first one's files."""
    run = Run(str(tmp_path))
    listed = Output("00000.parquet", 1, "listing-new", 1)
    run.commit(Manifest("listing", "l", {}, {}, [listed], {}, 1.0, {}))
    first = [Output("00000.parquet", 1, "p0", 1), Output("00000.tar", 1, "t0")]
    second = [Output("00000.parquet", 1, "p1", 1), Output("00000.tar", 1, "t1")]
    made_of = {"listing.parquet": "listing-old"}
    markers = [
        Marker(0, "w", made_of | {"previous.tar": "t0", "previous.parquet": "p0"}, second, {}, "pass-001"),
        Marker(0, "w", made_of, first, {}),
    ]
    inside = [replace(output, path=f"pass-001/{output.path}") for output in second]
    manifest = Manifest("download", "d", {"listing": "l"}, {}, [*first, *inside], {}, 1.0, {}, shards=markers)
    artifact = run.commit(manifest)
    new = {"00000.tar": Output("00000.tar", 2, "T0"), "pass-001/00000.tar": Output("pass-001/00000.tar", 3, "T1")}
    update_manifest(run, artifact, new, gone=["pass-001/00000.parquet"], redacted=4)
    found = run.artifact("download", "d").manifest  # type: ignore[union-attr]
    assert {output.path: output.sha256 for output in found.outputs} == {
        "00000.parquet": "p0",
        "00000.tar": "T0",
        "pass-001/00000.tar": "T1",
    }
    later, earlier = found.shards
    assert [(output.path, output.sha256, output.bytes) for output in later.outputs] == [
        ("00000.parquet", "p1", 1),
        ("00000.tar", "T1", 3),
    ]
    assert later.sha256 == {"listing.parquet": "listing-new", "previous.tar": "T0", "previous.parquet": "p0"}
    assert earlier.sha256 == {"listing.parquet": "listing-new"}
    assert found.counters == {"redacted": 4}


def test_on_an_object_store(finished_run: Made) -> None:
    root = Path(finished_run.run.root)
    for path in root.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"memory://forget/run/{path.relative_to(root)}", path.read_bytes())
    run = Run("memory://forget/run")
    assert forget(run.root, [url(VICTIM)]).samples == 2
    assert [problem for _, _, problems in verify(run) for problem in problems] == []
    for path in run.artifacts()["download"].files():
        table = read_table(path, "download")
        assert url(VICTIM) not in table["url"].to_pylist()
    assert trace(run.root, "000010002")[0]["download"]["error_message"] == "forgotten"


def test_urls_of_no_row_are_remembered(run: Path) -> None:
    outcome = forget(str(run), ["http://elsewhere.test/a.jpg"])
    assert (outcome.samples, outcome.absent, outcome.changes) == (0, ["http://elsewhere.test/a.jpg"], [])
    assert outcome.told.trained == []
    assert url_hash("http://elsewhere.test/a.jpg") in Forgotten.read(str(run / "forgotten.json")).urls


def test_a_failed_row_can_be_forgotten_too(run: Path) -> None:
    outcome = forget(str(run), [url(DEAD)])
    assert outcome.samples == 1
    assert outcome.told.trained == [
        {"stage": "train.base", "fingerprint": "unfinished", "state": "unfinished, may have had them"}
    ]
    assert caption(DEAD).encode() not in b"".join(
        value for path in run.rglob("*") if path.is_file() for value in values(path)
    )


MISTAKES = {
    "unknown key": (["000990000"], "nearest is 000020000"),
    "no key at all": (["cat"], "no such key or URL"),
    "nothing to go on with": ([], "nothing was forgotten here yet"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_change_nothing(run: Path, case: str) -> None:
    targets, words = MISTAKES[case]
    with pytest.raises(UserError, match=words):
        forget(str(run), targets)
    assert not (run / "forgotten.json").exists()


def test_a_run_at_work_is_left_alone(run: Path) -> None:
    from filelock import FileLock

    with FileLock(run / ".lock"), pytest.raises(UserError, match="another imagen-ray is at work"):
        forget(str(run), [url(VICTIM)])


def test_what_a_person_reads(run: Path) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(forget(str(run), [url(VICTIM), "http://elsewhere.test/a.jpg"]), False))
    text = console.export_text()
    assert "2 rows are forgotten" in text
    assert "cannot unlearn" in text
    assert "stages/train.base/trainbaseone (finished)" in text
    assert "stale" in text and "metrics.json" in text
    assert "remembered for later ones: http://elsewhere.test/a.jpg" in text


# ---------------------------------------------------------------------------------------------- trace


def test_a_sample_is_traced_from_training_to_its_source(finished_run: Made) -> None:
    (told,) = trace(finished_run.run.root, "000010002")
    assert (told["url"], told["caption"]) == (url(VICTIM), caption(VICTIM))
    source = told["source"]
    assert (source["row"], source["row_in_file"]) == (VICTIM, 2)
    assert source["columns"] == {"LICENSE": "CC-1", "note": "rare-7"}
    assert told["download"]["status"] == "success"
    assert told["download"]["member"] == "000010002.jpg"
    assert told["download"]["bytes"] == len(stored_image(finished_run.artifacts["download"], "000010002"))
    assert told["annotations"]["language"]
    assert told["scores"]["clip_similarity"] is not None
    assert told["selection"]["split"] == "train"
    for stage in ("pack", "embed"):
        place = told[stage]
        assert pq.read_table(place["file"])["key"][place["row"]].as_py() == "000010002"
    uses = {entry["stage"]: entry["use"] for entry in told["trained"]}
    assert uses == {"encoder": "caption", "clip": "picture and caption", "train.base": "picture and caption"}
    assert all(entry["passes"] > 0 for entry in told["trained"])


def test_a_dropped_and_a_failed_sample(finished_run: Made) -> None:
    (dropped,) = trace(finished_run.run.root, url(5))
    assert dropped["selection"]["reason"] == "caption_words: too few"
    assert (dropped["pack"], dropped["embed"]) == (None, None)
    assert {entry["stage"] for entry in dropped["trained"]} == {"encoder", "clip"}
    (failed,) = trace(finished_run.run.root, url(DEAD))
    assert failed["download"]["status"] == "failed_to_download"
    assert "member" not in failed["download"]
    assert failed["trained"] == []


def test_a_url_that_stands_twice_is_told_twice(finished_run: Made, tmp_path: Path) -> None:
    shutil.copytree(finished_run.run.root, tmp_path / "run")
    path = Path(Run(str(tmp_path / "run")).artifacts()["download"].files()[0])
    table = pq.read_table(path)
    urls = table["url"].to_pylist()
    pq.write_table(table.set_column(1, "url", [[urls[0], urls[0], *urls[2:]]]), path)
    assert [told["key"] for told in trace(str(tmp_path / "run"), url(0))] == ["000000000", "000000001"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("000010009", "nearest is 000010004"),
        ("12", "a key is 5 digits"),
        ("http://elsewhere.test/x", "no such URL"),
        ("zebra", "such as 000000000"),
    ],
)
def test_an_unknown_sample_is_told_with_the_nearest_key(finished_run: Made, target: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        trace(finished_run.run.root, target)


def test_trace_of_what_is_not_there_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json is missing"):
        trace(str(tmp_path), "000000000")
    (tmp_path / "run.json").write_text('{"stages": {}}')
    with pytest.raises(UserError, match="list is not read yet"):
        trace(str(tmp_path), "000000000")


def test_trace_by_the_command(finished_run: Made, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import main

    for words in (["trace", finished_run.run.root, "000010002", "--json"], ["trace", finished_run.run.root, url(5)]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        if "--json" in words:
            assert json.loads(out)["url"] == url(VICTIM)
        else:
            assert "not in it: dropped by select" in out
            assert "caption_words: too few" in out
