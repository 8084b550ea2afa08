"""The command line: exit status and one helpful line for every mistake, before any machine starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.execution import executor
from pipeline.runtime import ray_session
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


@pytest.fixture(autouse=True)
def no_machine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake must be found before Ray is started."""

    def refuse(config: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_session, "connect_ray", refuse)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, checks that it exits with 2 and one line on stderr, and returns that line."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    assert caught.value.code == 2, printed.err
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in printed.err + printed.out
    return lines[0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "Missing argument 'CONFIG' (see `imagen-ray run --help`)"),
        (["status", "--foo", "x"], "No such option: --foo (see `imagen-ray status --help`)"),
        (["statos"], "No such command 'statos'. Did you mean 'status'? (see `imagen-ray --help`)"),
    ],
)
def test_wrong_words_name_the_help(capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert fails(capsys, *words) == f"error: {text}"


def test_an_interrupted_run_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "run_pipeline", interrupt)
    with pytest.raises(SystemExit) as caught:
        main(["run", SMOKE])
    assert caught.value.code == 130
    line = " ".join(capsys.readouterr().err.split())
    assert line == f"error: interrupted; finished work is kept. Resume: imagen-ray run {SMOKE}"


WRONG_CONFIGS = [
    (["seed=-1"], ["seed", "-1"]),
    (["train.base.stepz=3"], ["stepz", "steps"]),
    (["selct={}"], ["selct", "select"]),
    (["select.min_side=big"], ["select.min_side", "'big'"]),
    (["select.min_caption_chars=9", "select.max_caption_chars=3"], ["min_caption_chars 9", "max_caption_chars 3"]),
    (["encoder.model=t5-small"], ["encoder", "exactly one"]),
    (["clip.train=null"], ["clip", "exactly one"]),
    (["train.sr32.low_resolution=8"], ["train.sr32.low_resolution=8", "16"]),
    (["pack.resolutions=[16,64]"], ["pack.resolutions", "32"]),
    (["train.base.model=huge"], ["huge", "micro-base"]),
    (["train.sr64.crop=100"], ["crop=100", "64"]),
    (["train.base.batch_size=9", "train.base.accumulation=2"], ["batch_size=9", "accumulation=2"]),
    (["sample.stages.top.steps=3"], ["top", "base"]),
    (["download.encode_format=gif"], ["download.encode_format", "gif"]),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG_CONFIGS, ids=lambda value: str(value[0])[:40])
def test_wrong_configs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    line = fails(capsys, "run", SMOKE, f"run={tmp_path}/run", *overrides)
    for word in words:
        assert word in line, line


def table(folder: Path, text: str, name: str = "list.csv") -> list[str]:
    (folder / name).write_text(text)
    return ["listing.source=table", f"listing.path={folder / name}"]


def model_folder(folder: Path, *names: str) -> list[str]:
    (folder / "model").mkdir()
    for name in names:
        (folder / "model" / name).write_text('{"model_type": "t5"}' if name == "config.json" else "{}")
    return ["encoder.pretrain=null", f"encoder.model={folder / 'model'}"]


def image_folder(folder: Path, *names: str) -> list[str]:
    (folder / "images").mkdir()
    for name in names:
        (folder / "images" / name).write_text("x")
    return ["listing.source=folder", f"listing.path={folder / 'images'}"]


WRONG_INPUTS = {
    "missing list": (lambda p: ["listing.source=table", f"listing.path={p}/no.csv"], ["listing.path", "no.csv"]),
    "wrong column": (
        lambda p: [*table(p, "link_to,text\nhttp://a/b,c\n"), "listing.url_column=link"],
        ["listing.url_column", "link_to"],
    ),
    "no column that looks like a URL": (lambda p: table(p, "a,b\n1,2\n"), ["listing.url_column", "a, b"]),
    "empty list": (lambda p: table(p, "url,caption\n"), ["no rows"]),
    "empty file": (lambda p: table(p, ""), ["listing.path"]),
    "garbage Parquet": (lambda p: table(p, "not parquet", "list.parquet"), ["list.parquet", "not readable"]),
    "unknown kind of file": (lambda p: table(p, "x", "list.xlsx"), ["list.xlsx", ".csv"]),
    "broken JSON line": (lambda p: table(p, '{"url": 1\n', "list.jsonl"), ["line 1", "JSON"]),
    "glob without a match": (lambda p: ["listing.source=table", f"listing.path={p}/*.csv"], ["*.csv"]),
    "folder without images": (lambda p: image_folder(p, "notes.md"), ["images"]),
    "missing folder": (lambda p: ["listing.source=folder", f"listing.path={p}/none"], ["none"]),
    "encoder folder without weights": (lambda p: model_folder(p, "config.json"), ["encoder", "no weights"]),
    "encoder folder without tokenizer": (
        lambda p: model_folder(p, "config.json", "model.safetensors"),
        ["encoder", "no tokenizer"],
    ),
    "encoder that is neither": (lambda p: ["encoder.pretrain=null", f"encoder.model={p}/no/such"], ["no/such"]),
    "unknown CLIP": (lambda p: ["clip.train=null", "clip.model=ViT-B-33"], ["ViT-B-33", "ViT-B-32"]),
    "CLIP without weights": (lambda p: ["clip.train=null", "clip.model=ViT-B-32"], ["clip.pretrained", "missing"]),
    "missing prompt file": (lambda p: [f"sample.prompts_file={p}/prompts.txt"], ["prompts.txt", "no such file"]),
    "unwritable run folder": (lambda p: ["run=/proc/nothing/run"], ["run=/proc/nothing/run", "cannot be written"]),
    "run folder below a file": (lambda p: [f"run={table(p, 'x')[1][13:]}/run"], ["run=", "cannot be written"]),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs(capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str) -> None:
    overrides, words = WRONG_INPUTS[case]
    line = fails(capsys, "run", SMOKE, f"run={tmp_path}/run", *overrides(tmp_path))
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", SMOKE, "--until", "trian"], "listing, download"),
        (["run", SMOKE, "--keep", "trian"], "--keep trian"),
        (["run"], "CONFIG"),
        (["rnu"], "rnu"),
        (["run", SMOKE, "--no-such"], "--no-such"),
        (["status", "{tmp}"], "run.json is missing"),
        (["verify", "{tmp}"], "run.json is missing"),
        (["report", "{tmp}"], "run.json is missing"),
        (["trace", "{tmp}", "000000000"], "run.json is missing"),
        (["forget", "{tmp}", "000000000"], "run.json is missing"),
        (["trace", "{tmp}"], "KEY|URL"),
        (["sample", "{tmp}", "a cat"], "run.json is missing"),
        (["sample", "{tmp}", "a cat", "--out", "cat.jpg"], "cat.jpg"),
        (["sample", "{tmp}", "a cat", "--num", "0"], "--num"),
        (["sample", "{tmp}"], "PROMPT is missing"),
        (["sample", "{tmp}/none", "a cat"], "none: no such folder; MODEL is a run"),
        (["sample", "{tmp}", "a cat", "--prompts-file", "p.txt", "--out", "out"], "no prompt beside"),
        (["sample", "{tmp}", "--prompts-file", "p.txt"], "--out sample.png"),
        (["export", "{tmp}", "{tmp}/out"], "run.json is missing"),
        (["export", "{tmp}", "{tmp}"], "exists; give the name of a new folder"),
        (["export", "{tmp}", "{tmp}/out", "--weights", "best"], "choose one of ema, raw"),
        (["inspect", "{tmp}/none.png"], "not an image that can be read"),
        (["submit", SMOKE, "--address", "http://127.0.0.1:1"], "--address http://127.0.0.1:1"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], word: str) -> None:
    assert word in fails(capsys, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))


def test_a_job_does_not_write_where_it_would_be_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "absolute path" in fails(capsys, "run", SMOKE, "run=runs/lost")
    assert not Path("runs/lost").exists()


def test_a_second_driver_is_kept_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert "another imagen-ray is running" in fails(capsys, "run", SMOKE, f"run={tmp_path}/run")


def test_a_failure_at_run_time_names_stage_log_and_resume(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ray_session, "connect_ray", lambda config: None)
    monkeypatch.setattr("dataprep.listing.writer.write_listing", broken)
    with pytest.raises(SystemExit) as caught:
        main(["run", SMOKE, f"run={tmp_path}/run"])
    assert caught.value.code == 1
    line = capsys.readouterr().err.strip()
    assert "stage listing failed: OSError: disk full" in line
    assert f"{tmp_path}/run/events.jsonl" in line
    assert f"Resume: imagen-ray run {SMOKE}" in line
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "a", "b", "--out", "/proc/x.html"],
        ["compare", "a", "b", "--out", "{tmp}/x.html", "--blind", "{tmp}"],
        ["compare", "a", "b", "--out", "{tmp}/x.html", "--blind", "{tmp}/x.html"],
        ["calibrate", SMOKE, "--out", "/proc/machines.yaml"],
        ["calibrate", SMOKE, "--out", "{tmp}"],
        ["export", "a", "/proc/exported"],
        ["export", "a", "{tmp}"],
        ["export", "a", "{tmp}/file/exported"],
    ],
    ids=lambda words: " ".join(words[:1] + words[2:])[:60],
)
def test_an_output_that_cannot_be_written_is_named_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert words[-1] in fails(capsys, *words)


@pytest.mark.parametrize(
    "words", [["run"], ["plan"], ["calibrate"], ["plan", SMOKE, "--machines"], ["compare", "--count"]]
)
def test_a_folder_where_a_file_is_wanted_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    assert f"={tmp_path}: is a folder" in fails(capsys, *words, str(tmp_path))


@pytest.mark.parametrize("command", ["status", "sample", "report", "verify", "export"])
def test_a_config_where_a_run_is_wanted_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    more = {"sample": ["a cat", "--out", f"{tmp_path}/x.png"], "export": [f"{tmp_path}/x"]}.get(command, [])
    assert "not a run (run.json is missing)" in fails(capsys, command, SMOKE, *more)
