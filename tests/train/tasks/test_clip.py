"""Task `clip`: a tiny model learns, and its export loads in the scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from eval.clip.scorer import ClipScorer
from tests.helpers.packs import make_caption, make_image, write_pack
from tests.helpers.toys import short_config
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.loop import train
from train.tasks.clip import ClipTask
from train.tasks.clip_config import ClipTaskConfig
from train.tasks.t5 import train_tokenizer
from train.tasks.t5_config import T5TaskConfig

CAPTIONS = [make_caption(index) for index in range(64)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5-type tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, T5TaskConfig(vocabulary=400)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> ClipScorer:
    """A tiny CLIP trained for a moment, exported and loaded."""
    folder = tmp_path_factory.mktemp("clip")
    pack = write_pack(folder / "p.parquet", 0, 64)
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16)
    task = ClipTask(config, str(tokenizer))
    train(task, short_config(40, 32, 5e-3), Loader([pack], None, task.columns, None, 0, 32), str(folder), 0)
    return ClipScorer.load(str(folder / "export"))


def test_clip_tells_right_from_wrong(scorer: ClipScorer) -> None:
    images = [make_image(index, 64) for index in range(8)]
    right = scorer.similarity(images, [make_caption(index + 40) for index in range(8)])
    wrong = scorer.similarity(images, [make_caption(index + 45) for index in range(8)])
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
