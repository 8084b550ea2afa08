"""Tracing a sample through a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dataprep.io.errors import UserError
from pipeline.lineage import trace
from pipeline.lineage.trace import render_trace, trace_sample
from pipeline.store.run import Run
from tests.helpers.runs import DEAD, VICTIM, Made, caption, stored_image, url


def test_a_sample_is_traced_from_training_to_its_source(finished_run: Made) -> None:
    (trace,) = trace_sample(finished_run.run.root, "000010002")
    assert (trace["url"], trace["caption"]) == (url(VICTIM), caption(VICTIM))
    source = trace["source"]
    assert (source["row"], source["row_in_file"]) == (VICTIM, 2)
    assert source["columns"] == {"LICENSE": "CC-1", "note": "rare-7"}
    assert trace["download"]["status"] == "success"
    assert trace["download"]["member"] == "000010002.jpg"
    assert trace["download"]["bytes"] == len(stored_image(finished_run.artifacts["download"], "000010002"))
    assert trace["annotations"]["language"]
    assert trace["scores"]["clip_similarity"] is not None
    assert trace["selection"]["split"] == "train"
    for stage in ("pack", "embed"):
        place = trace[stage]
        assert pq.read_table(place["file"])["key"][place["row"]].as_py() == "000010002"
    uses = {entry["stage"]: entry["use"] for entry in trace["trained"]}
    assert uses == {"encoder": "caption", "clip": "image and caption", "train.base": "image and caption"}
    assert all(entry["passes"] > 0 for entry in trace["trained"])


def test_the_weights_that_a_stage_began_from_are_named(
    finished_run: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {"source": "runs/demo", "stage": "train.base", "fingerprint": "abc", "weights": "ema", "licence": None}
    monkeypatch.setattr(trace, "read_origin", lambda a: origin if a.manifest.stage == "train.base" else None)
    (found,) = trace_sample(finished_run.run.root, "000000000")
    began = {entry["stage"]: entry.get("began_from") for entry in found["trained"]}
    assert began["train.base"] == "runs/demo, train.base (abc), ema weights, licence not stated"
    assert began["encoder"] is None
    console = Console(width=200)
    console.print(render_trace(found))
    assert "began from runs/demo" in capsys.readouterr().out


def test_dropped_and_failed_samples_are_traced(finished_run: Made) -> None:
    (dropped,) = trace_sample(finished_run.run.root, url(5))
    assert dropped["selection"]["reason"] == "caption_words: too few"
    assert (dropped["pack"], dropped["embed"]) == (None, None)
    assert {entry["stage"] for entry in dropped["trained"]} == {"encoder", "clip"}
    (failed,) = trace_sample(finished_run.run.root, url(DEAD))
    assert failed["download"]["status"] == "failed_to_download"
    assert "member" not in failed["download"]
    assert failed["trained"] == []


def test_a_url_with_two_rows_gives_two_traces(finished_run: Made, tmp_path: Path) -> None:
    shutil.copytree(finished_run.run.root, tmp_path / "run")
    path = Path(Run(str(tmp_path / "run")).artifacts()["download"].files()[0])
    table = pq.read_table(path)
    urls = table["url"].to_pylist()
    pq.write_table(table.set_column(1, "url", [[urls[0], urls[0], *urls[2:]]]), path)
    assert [trace["key"] for trace in trace_sample(str(tmp_path / "run"), url(0))] == ["000000000", "000000001"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("000010009", "nearest is 000010004"),
        ("12", "a key is 5 digits"),
        ("http://elsewhere.test/x", "no such URL"),
        ("zebra", "such as 000000000"),
    ],
)
def test_an_unknown_sample_names_the_nearest_key(finished_run: Made, target: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        trace_sample(finished_run.run.root, target)


def test_a_run_without_listing_cannot_be_traced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json is missing"):
        trace_sample(str(tmp_path), "000000000")
    (tmp_path / "run.json").write_text('{"stages": {}}')
    with pytest.raises(UserError, match="stage listing is not finished"):
        trace_sample(str(tmp_path), "000000000")


def test_the_trace_command_prints_text_and_json(finished_run: Made, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.main import main

    for words in (["trace", finished_run.run.root, "000010002", "--json"], ["trace", finished_run.run.root, url(5)]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        if "--json" in words:
            assert json.loads(out)["url"] == url(VICTIM)
        else:
            assert "not included: dropped by select" in out
            assert "caption_words: too few" in out
