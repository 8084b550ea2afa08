"""Drivers and their Ray killed with SIGKILL during download, annotate, score and select.

A run is killed, resumed, killed again a stage later, and finally completed. After every kill the finished stages, and
at the end all stages, must equal those of an uninterrupted run byte for byte. So with `cluster.stream`, where the
uninterrupted run is the one without it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.paths import ROOT

ROWS, SHARD_ROWS = 600, 25
SHARDS = ROWS // SHARD_ROWS
STAGES = ("download", "annotate", "score", "select")
GIVEN = ("listing", "encoder", "clip")  # copied from the uninterrupted run, never killed
TIMEOUT = 900  # generous for a busy machine; ends a hanging run


@dataclass(frozen=True)
class Driver:
    """Starts ``imagen-ray run`` up to select, on a small corpus with existing models."""

    models: Path
    scratch: Path

    def start(self, run: Path, stream: bool = False) -> subprocess.Popen[str]:
        words = ["run", "configs/smoke.yaml", f"run={run}", "--until", "select", "cluster.cpus=1"]
        words += [f"cluster.stream={stream}"]
        words += [f"listing.scenes.count={ROWS}", f"listing.rows_per_shard={SHARD_ROWS}"]
        words += ["encoder.pretrain=null", f"encoder.model={self.models}/t5"]
        words += ["clip.train=null", f"clip.model={self.models}/clip"]
        # Leftovers of killed processes are deleted with the test's folder.
        env = os.environ | {"RAY_TMPDIR": str(self.scratch), "TMPDIR": str(self.scratch)}
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def finish(self, run: Path, stream: bool = False) -> None:
        process = self.start(run, stream)
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err


def save_models(folder: Path) -> None:
    """Saves a tiny untrained T5 and CLIP with a tokenizer of the corpus's letters."""
    from dataprep.io.model_imports import declare_torchvision_operators

    declare_torchvision_operators()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    from train.models.clip import ClipModelConfig, save_clip
    from train.models.clip_text import build_open_clip

    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=len(words), decoder_start_token_id=0, **sizes))
    t5.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    config = ClipModelConfig(image_size=32, embed_dim=16, text_width=24)
    save_clip(folder / "clip", build_open_clip(config, len(words), 1, 0).state_dict(), config, tokenizer)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    scratch = Path(tempfile.mkdtemp(prefix="kill-"))  # short: Ray's sockets live in it
    save_models(scratch / "models")
    yield Driver(scratch / "models", scratch)
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def uninterrupted(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    driver.finish(run)
    assert set(find_manifests(run)) == {*GIVEN, *STAGES}
    return run


def find_manifests(run: Path) -> dict[str, Path]:
    return {path.parent.parent.name: path for path in (run / "stages").glob("*/*/manifest.json")}


def read_outputs(manifest: Path) -> dict[str, str]:
    return {output["path"]: output["sha256"] for output in json.loads(manifest.read_text())["outputs"]}


def list_started(run: Path) -> list[str]:
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event["stage"] for event in found if event["event"] == "stage_started"]


def count_finished_shards(run: Path, stage: str) -> int:
    """Returns the finished shards of a running stage; select has no markers, so its files are counted."""
    pattern = "*.parquet" if stage == "select" else ".shards/*.json"
    return sum(1 for _ in (run / "stages" / stage).glob(f"*/{pattern}"))


def kill_at(driver: Driver, run: Path, stage: str, moment: float, delay: float, stream: bool) -> str | None:
    """Runs until ``stage`` has finished the fraction ``moment`` of its missing shards, waits ``delay`` s, kills all.

    Returns where it was killed, or None if it finished before.
    """
    before, done = len(list_started(run)), count_finished_shards(run, stage)
    wanted = done + int(moment * (SHARDS - done))
    process = driver.start(run, stream)
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and (
        stage not in list_started(run)[before:] or count_finished_shards(run, stage) < wanted
    ):
        assert time.monotonic() < deadline, f"{stage} did not reach {wanted} shards"
        if stage in find_manifests(run):
            break  # it finished between two checks
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is None:
        tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        os.killpg(process.pid, signal.SIGKILL)
        for pid in tree:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    _, err = process.communicate(timeout=TIMEOUT)
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, err
    running = [one for one in dict.fromkeys(list_started(run)[before:]) if one not in find_manifests(run)]
    current = stage if stage in running else list_started(run)[-1]
    beside = "".join(f", {one} {count_finished_shards(run, one)}" for one in running if one != current)
    return f"{current} after {count_finished_shards(run, current)} of {SHARDS} shards{beside}"


def check_finished(run: Path, uninterrupted: Path) -> list[str]:
    """Asserts that every finished stage equals the uninterrupted run's; returns their names."""
    expected = find_manifests(uninterrupted)
    for stage, manifest in find_manifests(run).items():
        assert manifest.parent.name == expected[stage].parent.name
        assert read_outputs(manifest) == read_outputs(expected[stage]), stage
        files = {path for path in manifest.parent.rglob("*") if path.is_file() and path.suffix != ".tmp"}
        names = {str(path.relative_to(manifest.parent)) for path in files} - {"manifest.json"}
        assert {name for name in names if not name.startswith(".shards/")} == set(read_outputs(manifest)), stage
        for name in read_outputs(manifest):
            assert (manifest.parent / name).read_bytes() == (expected[stage].parent / name).read_bytes(), name
    return list(find_manifests(run))


def check_rows(run: Path) -> None:
    """Asserts that each row of the list is in each table once, in order."""
    keys = [f"{row // SHARD_ROWS:05d}{row % SHARD_ROWS:04d}" for row in range(ROWS)]
    for stage in STAGES:
        folder = find_manifests(run)[stage].parent
        tables = [pq.read_table(path, columns=["key"]) for path in sorted(folder.glob("*.parquet"))]
        assert [key for table in tables for key in table["key"].to_pylist()] == keys, stage


def run_with_kills(
    driver: Driver, uninterrupted: Path, run: Path, stages: tuple[str, ...], seed: int, stream: bool
) -> list[str]:
    """Completes a run that is killed in each of ``stages`` at random moments; returns where it was killed."""
    numbers = random.Random(seed)
    killed: list[str] = []
    for stage in GIVEN:
        made = find_manifests(uninterrupted)[stage].parent
        shutil.copytree(made, run / "stages" / stage / made.name)
    for stage in stages:
        quick = 0.02 if stage == "select" else 0.2  # seconds, about the duration of a shard
        where = kill_at(driver, run, stage, numbers.random(), numbers.random() * quick, stream)
        finished = check_finished(run, uninterrupted)
        print(f"seed {seed}: killed in {where}" if where else f"seed {seed}: {stage} finished before the kill")
        killed += [where] if where else []
        assert set(finished) <= {*GIVEN, *STAGES}
    driver.finish(run, stream)
    assert set(check_finished(run, uninterrupted)) == {*GIVEN, *STAGES}
    check_rows(run)
    return killed


def count_kills(killed: list[str]) -> dict[str, int]:
    return {stage: sum(where.startswith(stage) for where in killed) for stage in STAGES}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_three_kills(stream: bool, driver: Driver, uninterrupted: Path, tmp_path: Path) -> None:
    killed = run_with_kills(driver, uninterrupted, tmp_path / "run", ("download", "annotate", "score"), 1, stream)
    assert len(killed) == 3, killed


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stream", [False, True])
def test_twenty_kills(stream: bool, driver: Driver, uninterrupted: Path, tmp_path: Path) -> None:
    """Two runs, each killed ten times; further runs make up for kills that came too late for their stage."""
    plans: list[tuple[str, ...]] = [("download",) * 3 + ("annotate",) * 2 + ("score",) * 3 + ("select",) * 2]
    plans += [("download",) * 2 + ("annotate",) * 3 + ("score",) * 2 + ("select",) * 3, *[STAGES] * 6]
    killed: list[str] = []
    for seed, stages in enumerate(plans, start=100):
        if len(killed) < 20 or min(count_kills(killed).values()) < 3:
            killed += run_with_kills(driver, uninterrupted, tmp_path / f"run{seed}", stages, seed, stream)
            shutil.rmtree(tmp_path / f"run{seed}")
    print(f"{len(killed)} kills: {count_kills(killed)}; every run equals the uninterrupted one")
    assert len(killed) >= 20, killed
    assert min(count_kills(killed).values()) >= 3, count_kills(killed)
