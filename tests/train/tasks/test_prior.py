"""Task `prior` in the training loop: it learns what captions say of embeddings, and its export loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.pack_format import FEATURES, IMAGE_FEATURES
from dataprep.io.storage import read_json_lines
from tests.helpers.packs import FEATURE_WIDTH, write_embeddings, write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import Loader
from train.loader.reader import Reader
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex, index_shards
from train.models.export import load_stage
from train.tasks.prior import PriorTask, train_prior
from train.tasks.prior_config import PriorTrainingConfig

CONFIG = PriorTrainingConfig(
    model="prior-micro", steps=120, batch_size=16, learning_rate=3e-3, warmup_steps=5, log_every=10, ema_decay=0.9
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 64 images with embeddings, and their captions of width 8."""
    folder = tmp_path_factory.mktemp("pack")
    pack = write_pack(folder / "p.parquet", 0, 64, features=[*FEATURES])
    embed = write_embeddings(folder / "e.parquet", 0, 64)
    index_shards([pack], [embed], CONFIG.pixel_columns(), vectors=CONFIG.vector_columns()).write(str(folder / "index"))
    return folder / "index"


def test_a_prior_learns_and_exports(tmp_path: Path, index: Path) -> None:
    result = train_prior(str(index), True, CONFIG, str(tmp_path), 0)
    assert result["step"] == 120 and result["passed_over"] == 0
    log = read_json_lines(f"{tmp_path}/log.jsonl")
    # Guessing the mean embedding gives a cosine of 0.55.
    assert log[-1]["loss"] < 0.65 * log[0]["loss"] and log[-1]["validation_cosine"] > 0.62
    assert log[-1]["validation_loss_noise_4of4"] > log[-1]["validation_loss_noise_1of4"]
    model, settings = load_stage(tmp_path / "export")
    assert settings["backbone"] == "prior" and settings["diffusion"]["prediction"] == "x0"
    assert (model.config.image_channels, model.config.text_dim) == (FEATURE_WIDTH, 8)


def test_tokens_and_embedding_of_a_caption_are_dropped_apart(index: Path) -> None:
    config = CONFIG.model_copy(update={"text_drop": 0.5})
    task = PriorTask(config, 8, FEATURE_WIDTH)
    batch = Loader.from_reader(Reader(ShardIndex.read(str(index)), LoaderConfig()), "train", 0, 32).batch(0)
    assert not any(name.startswith("pixels") for name in batch)
    inputs = task.prepare(batch, SampleRandom(0, 0, batch["index"]))["inputs"]
    kept = (inputs.conditions.pooled_text_BE != 0).any(1)
    assert not torch.equal(kept, inputs.conditions.text_keep_B) and 8 < int(kept.sum()) < 24
    clean = inputs.noised.x0_BCHW
    assert clean.shape == (32, FEATURE_WIDTH, 1, 1)
    torch.testing.assert_close(clean.flatten(1), batch[IMAGE_FEATURES].float() * FEATURE_WIDTH**0.5)


def test_training_on_no_rows_is_refused(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 0, features=[*FEATURES])
    embed = write_embeddings(tmp_path / "e", 0, 0)
    index_shards([pack], [embed], (), vectors=CONFIG.vector_columns()).write(str(tmp_path / "index"))
    with pytest.raises(UserError, match="nothing was kept to train on"):
        train_prior(str(tmp_path / "index"), False, CONFIG, str(tmp_path / "run"), 0)
