"""The three tasks through the real loop, tiny: they learn, and what they export loads where it is used."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pack_fakes import caption, picture, write_embeddings, write_pack
from pydantic import ValidationError

from dataprep.schema import UserError
from dataprep.storage import read_json_lines
from dataprep.torchvision_operators import declare_torchvision_operators
from eval.clip import ClipScorer
from train.config import TrainConfig
from train.data import CaptionLoader, Loader, SampleRandom
from train.loop import train
from train.models.export import load_stage
from train.tasks.clip import ClipTask, ClipTaskConfig
from train.tasks.diffusion import DiffusionStageConfig, DiffusionTask, even_times
from train.tasks.t5 import T5Task, T5TaskConfig, random_spans, train_tokenizer

X0 = {"prediction": "x0"}
CAPTIONS = [caption(index) for index in range(64)]


def loop(steps: int, batch: int, rate: float) -> TrainConfig:
    """A short run without ZeRO."""
    return TrainConfig(
        steps=steps, batch_size=batch, learning_rate=rate, zero_stage=0, warmup_steps=5, log_every=10, ema_decay=0.9
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5, pretrained for a moment and exported."""
    folder = tmp_path_factory.mktemp("t5")
    task = T5Task(T5TaskConfig(d_model=32, d_ff=32, heads=2, layers=1, vocabulary=400), CAPTIONS)
    train(task, loop(60, 16, 1e-2), CaptionLoader(CAPTIONS, 0, 16), str(folder), 0)
    log = read_json_lines(f"{folder}/log.jsonl")
    assert log[-1]["loss"] < 0.6 * log[0]["loss"] and log[-1]["accuracy"] > 0.5
    return folder / "export"


def test_t5_export_is_a_transformers_folder(encoder: Path) -> None:
    declare_torchvision_operators()
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model, info = T5EncoderModel.from_pretrained(encoder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = tokenizer(["a red square on the left"], return_tensors="pt")
    assert model(**ids).last_hidden_state.shape == (1, 7, 32)


def test_tokenizer_covers_everything_and_is_deterministic() -> None:
    config = T5TaskConfig(vocabulary=400)
    one, other = train_tokenizer(CAPTIONS, config), train_tokenizer(CAPTIONS, config)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert (one.pad_token_id, one.eos_token_id, one.unk_token_id) == (0, 1, 2)
    for text in ("a red square", "左 一个 red 正方形", "zèbre 🐶 №"):
        ids = one(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
    assert one.decode(one("left 一个 red 正方形")["input_ids"], skip_special_tokens=True) == "left 一个 red 正方形"
    assert len(one("正方形")["input_ids"]) == 4  # a character each, and the end
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(["", ""], config)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 57, 500])
def test_spans_mask_their_share_and_can_be_undone(length: int) -> None:
    config = T5TaskConfig(vocabulary=400, target="spans")
    task, whole = T5Task(config, CAPTIONS), T5Task(T5TaskConfig(vocabulary=400, target="whole"), CAPTIONS)
    ids = list(np.random.default_rng(0).integers(3, 250, length))
    for seed in range(20):
        spans = random_spans(length, config, np.random.default_rng(seed))
        flat = [at for span in spans for at in span]
        assert flat == sorted(flat) and all(start < stop for start, stop in spans)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
        assert not flat or (flat[0] >= 0 and flat[-1] <= length)
        if length > 3:
            assert sum(stop - start for start, stop in spans) == round(0.3 * length)
        source, target = task.corrupt(ids, seed)
        assert source[-1] == target[-1] == 1
        filled: list[int] = []
        for token in source[:-1]:
            if token < task.first_sentinel:
                filled.append(token)
                continue
            start = target.index(token) + 1
            rest = [at for at in range(start, len(target)) if target[at] >= task.first_sentinel or target[at] == 1]
            filled += target[start : rest[0]]
        assert filled == ids
        assert whole.corrupt(ids, seed) == (source, [*ids, 1])


def test_heads_must_divide() -> None:
    with pytest.raises(UserError, match="heads=3"):
        T5Task(T5TaskConfig(d_model=32, heads=3), CAPTIONS).build()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pack shard of 64 pictures, and its embeddings of width 8."""
    folder = tmp_path_factory.mktemp("pack")
    return write_pack(folder / "p.parquet", 0, 64), write_embeddings(folder / "e.parquet", 0, 64)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, encoder: Path, pack: tuple[str, str]) -> ClipScorer:
    """A tiny CLIP trained for a moment, exported and loaded."""
    folder = tmp_path_factory.mktemp("clip")
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16)
    task = ClipTask(config, str(encoder))
    train(task, loop(40, 32, 5e-3), Loader([pack[0]], None, task.columns, None, 0, 32), str(folder), 0)
    return ClipScorer.load(str(folder / "export"))


def test_clip_tells_right_from_wrong(scorer: ClipScorer) -> None:
    pictures = [picture(index, 64) for index in range(8)]
    right = scorer.similarity(pictures, [caption(index + 40) for index in range(8)])
    wrong = scorer.similarity(pictures, [caption(index + 45) for index in range(8)])
    assert right.shape == (8,) and right.dtype == np.float32
    assert (right > wrong).mean() >= 7 / 8
    assert np.abs(right).max() <= 1.0001


def test_clip_needs_a_t5_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        ClipTask(ClipTaskConfig(), str(tmp_path))


def test_clip_loss_ignores_captions_that_recur() -> None:
    """Two pairs of one caption are no negatives of each other: a perfect model reaches the entropy of the tie."""
    task = ClipTask.__new__(ClipTask)
    task.config = ClipTaskConfig(shift=0, context_length=4)
    task.columns = ("pixels_64",)
    task.tokenizer = lambda texts, **_: {"input_ids": torch.tensor([[len(text), 1, 0, 0] for text in texts])}
    features = torch.eye(3)[[0, 0, 1]]
    batch = {"pixels_64": torch.zeros(3, 64, 64, 3, dtype=torch.uint8), "caption": ["a", "a", "bb"]}
    loss, metrics = task.loss(
        lambda *_: (features, features, torch.tensor(100.0)), batch, SampleRandom(0, 0, [0, 1, 2])
    )
    assert float(loss) == pytest.approx(2 / 3 * np.log(2), abs=1e-4) and float(metrics["accuracy"]) == 1.0


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"resolution": 16, "model": "micro-base"}, 16),
        ({"resolution": 64, "low_resolution": 16, "crop": 32, "model": "micro-sr", "diffusion": X0}, 8),
    ],
)
def test_diffusion_stage_learns_and_exports(tmp_path: Path, pack: tuple[str, str], changes: dict, batch: int) -> None:
    stage = DiffusionStageConfig(**changes)
    task = DiffusionTask(stage, text_dim=8)
    loaders = [
        Loader([pack[0]], [pack[1]], task.columns, split, 0, batch, stage.crop) for split in ("train", "validation")
    ]
    config = TrainConfig(
        **(loop(30, batch, 3e-3).model_dump() | {"sample_every": 20, "activation_checkpointing": True})
    )
    result = train(task, config, loaders[0], str(tmp_path), 0, loaders[1])
    log = read_json_lines(f"{tmp_path}/log.jsonl")
    by_noise = [log[-1][f"validation_loss_noise_{quarter}of4"] for quarter in (1, 2, 3, 4)]
    assert min(by_noise) < log[-1]["validation_loss"] < max(by_noise)
    size = stage.crop or stage.resolution
    grid = cv2.imread(str(tmp_path / "samples/step-00000020.png"))
    assert grid.shape == (2 * size, 8 * size, 3) and grid[size:].mean() != grid[:size].mean()
    assert log[-1]["loss"] < log[0]["loss"] and result["validation_loss"] is not None
    model, settings = load_stage(tmp_path / "export")
    assert settings["trained_steps"] == 30 and settings["unet"]["text_dim"] == 8
    assert model.config == task.unet_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 15, "model": "micro-base"}, "multiples of"),
        ({"resolution": 16, "model": "micro-sr"}, "not a base model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-base"}, "not a super-resolution model"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr", "crop": 128}, "larger than resolution"),
        ({"resolution": 64, "low_resolution": 16, "model": "micro-sr"}, "prediction to x0"),
        ({"resolution": 64, "low_resolution": 24, "model": "micro-sr", "diffusion": X0}, "does not divide"),
        ({"resolution": 16, "model": "nano"}, "preset 'nano' is unknown"),
    ],
)
def test_impossible_stages(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionStageConfig(**changes)


def test_times_cover_the_unit_interval_evenly() -> None:
    times = even_times(SampleRandom(3, 5, range(160, 192))).sort().values
    gaps = times.diff()
    assert float(gaps.max()) < 2.7 / 32 and float(times[0]) < 0.09 and float(times[-1]) > 0.91
    part = even_times(SampleRandom(3, 5, [170]))
    assert part in even_times(SampleRandom(3, 5, range(160, 192)))
    many = torch.cat([even_times(SampleRandom(0, step, range(step * 4, step * 4 + 4))) for step in range(500)])
    assert abs(float(many.mean()) - 0.5) < 0.02
