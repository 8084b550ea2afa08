"""Task `diffusion` in the training loop: stages learn, and their exports load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from dataprep.io.errors import UserError
from dataprep.io.pack_format import IMAGE_FEATURES
from dataprep.io.storage import read_json_lines
from tests.helpers.gaussian import normal
from tests.helpers.packs import FEATURE_WIDTH, write_embeddings, write_pack
from tests.helpers.toys import short_config
from train.config import TrainConfig
from train.loader.config import LoaderConfig
from train.loader.loader import Loader
from train.loader.reader import Reader
from train.loader.sampler import SampleRandom
from train.loader.shard_index import index_shards
from train.loop import train
from train.models.export import load_stage
from train.models.perceptual_config import PerceptualConfig
from train.tasks import diffusion
from train.tasks.diffusion import DiffusionTask, train_diffusion
from train.tasks.diffusion_config import DiffusionStageConfig, DiffusionTrainingConfig

HYBRID, VARIANCE = {"variance_weight": 0.001}, {"learned_variance": True}
X0 = {"prediction": "x0", "lowres_max_level": 0.3}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pack shard of 64 images, and its embeddings of width 8."""
    folder = tmp_path_factory.mktemp("pack")
    return write_pack(folder / "p.parquet", 0, 64, features=[IMAGE_FEATURES]), write_embeddings(
        folder / "e.parquet", 0, 64
    )


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"resolution": 16, "model": "micro-base"}, 16),
        ({"resolution": 64, "low_resolution": 16, "crop": 32, "model": "micro-sr", "diffusion": X0}, 8),
        ({"resolution": 16, "model": "dit-micro-base", "diffusion": {"prediction": "x0"}}, 16),
        ({"resolution": 16, "model": "micro-base", "image_embedding": True, "text_drop": 1.0}, 16),
        ({"resolution": 16, "model": "micro-base", "diffusion": HYBRID, "model_overrides": VARIANCE}, 16),
    ],
)
def test_diffusion_stage_learns_and_exports(
    tmp_path: Path, pack: tuple[str, str], changes: dict[str, Any], batch: int
) -> None:
    stage = DiffusionStageConfig(**changes)
    task = DiffusionTask(stage, text_dim=8, image_dim=FEATURE_WIDTH)
    shards = index_shards([pack[0]], [pack[1]], task.columns, vectors=stage.vector_columns())
    data = Reader(shards, LoaderConfig())
    loaders = [Loader.from_reader(data, split, 0, batch, stage.crop) for split in ("train", "validation")]
    config = TrainConfig(
        **(
            short_config(30, batch, 3e-3).model_dump()
            | {"sample_every": 20, "activation_checkpointing": True, "peak_tflops": 1e-3}
        )
    )
    result = train(task, config, loaders[0], str(tmp_path), 0, loaders[1])
    log = read_json_lines(f"{tmp_path}/log.jsonl")
    by_noise = [log[-1][f"validation_loss_noise_{quarter}of4"] for quarter in (1, 2, 3, 4)]
    assert min(by_noise) < log[-1]["validation_loss"] < max(by_noise)
    assert all(row["mfu"] > 0 for row in log)
    size = stage.crop or stage.resolution
    grid = cv2.imread(str(tmp_path / "samples/step-00000020.png"))
    assert grid is not None and grid.shape == (2 * size, 8 * size, 3) and grid[size:].mean() != grid[:size].mean()
    assert log[-1]["loss"] < log[0]["loss"] and result["validation_loss"] is not None
    model, settings = load_stage(tmp_path / "export")
    assert (
        settings["trained_steps"] == 30
        and settings["backbone"] == ("dit" if "dit" in stage.model else "unet")
        and settings["model"]["text_dim"] == 8
    )
    assert model.config == task.layout


def test_training_on_no_rows_is_refused(tmp_path: Path) -> None:
    config = DiffusionTrainingConfig(resolution=16, steps=1, batch_size=2)
    files = [write_pack(tmp_path / "p", 0, 0)], [write_embeddings(tmp_path / "e", 0, 0)]
    index_shards(*files, config.pixel_columns()).write(str(tmp_path / "index"))
    with pytest.raises(UserError, match="nothing was kept to train on"):
        train_diffusion(str(tmp_path / "index"), False, config, str(tmp_path / "run"), 0)


@pytest.mark.parametrize("half", [0, 1])
def test_a_perceptual_term_is_added_to_the_loss(
    pack: tuple[str, str], half: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, where the images may have half their size, and in validation."""

    def judge(x0_hat_BCHW: Tensor, x0_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        assert x0_hat_BCHW.shape == x0_BCHW.shape and log_snr_B.shape == (8,)
        return (x0_hat_BCHW - x0_BCHW).square().mean((1, 2, 3)) + 2.0

    made = list[PerceptualConfig]()

    def make_term(config: PerceptualConfig) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        made.append(config)
        return judge

    monkeypatch.setattr(diffusion, "PerceptualTerm", make_term)
    stage = DiffusionStageConfig(resolution=16, model="micro-base", half_size_steps=half)
    judged = stage.model_copy(update={"perceptual": PerceptualConfig(weights="vgg16.pth")})
    plain, task = DiffusionTask(stage, text_dim=8), DiffusionTask(judged, text_dim=8)
    assert made == [judged.perceptual]
    shards = index_shards([pack[0]], [pack[1]], task.columns)
    batch = Loader.from_reader(Reader(shards, LoaderConfig()), "train", 0, 8).batch(0)
    model, random = task.build(), SampleRandom(0, 0, batch["index"])
    for losses in ("loss", "validate"):
        without, with_term = (float(getattr(each, losses)(model, batch, random)[0]) for each in (plain, task))
        assert with_term > without + 2.0


def test_image_embeddings_are_given_and_dropped(pack: tuple[str, str]) -> None:
    stage = DiffusionStageConfig(resolution=16, model="micro-base", image_embedding=True, image_drop=0.5, text_drop=0.5)
    task = DiffusionTask(stage, text_dim=8, image_dim=FEATURE_WIDTH)
    shards = index_shards([pack[0]], [pack[1]], task.columns, vectors=stage.vector_columns())
    batch = Loader.from_reader(Reader(shards, LoaderConfig()), "train", 0, 32).batch(0)
    random = SampleRandom(0, 0, batch["index"])
    conditions = task.prepare(batch, random)["inputs"].conditions
    given, kept = conditions.image_embedding_BE, conditions.text_keep_B
    assert given.shape == (32, FEATURE_WIDTH) and task.layout.image_embedding_dim == FEATURE_WIDTH
    whole = (given != 0).any(1)
    assert torch.equal(given[whole], batch[IMAGE_FEATURES].float()[whole])
    assert 8 < int(whole.sum()) < 24 and not torch.equal(whole, kept)  # one is dropped without the other


def test_image_embeddings_are_noised_but_at_sampling(pack: tuple[str, str]) -> None:
    keys = {"resolution": 16, "model": "micro-base", "image_embedding": True, "image_drop": 0.0, "image_noise": 0.5}
    task = DiffusionTask(DiffusionStageConfig.model_validate(keys), text_dim=8, image_dim=FEATURE_WIDTH)
    shards = index_shards([pack[0]], [pack[1]], task.columns, vectors=(IMAGE_FEATURES,))
    batch = Loader.from_reader(Reader(shards, LoaderConfig()), "train", 0, 32).batch(0)
    true_BE = functional.normalize(normal(32, FEATURE_WIDTH), dim=1).half()
    batch[IMAGE_FEATURES] = true_BE
    given = [
        task.prepare(batch, SampleRandom(0, step, batch["index"]))["inputs"].conditions.image_embedding_BE
        for step in (0, 0, 1)
    ]
    assert torch.equal(given[0], given[1]) and not torch.equal(given[0], given[2])  # as a resumed run has it
    torch.testing.assert_close(given[0].norm(dim=1), torch.ones(32))
    cosine_B = (given[0] * true_BE.float()).sum(1)
    assert float(cosine_B.mean()) == pytest.approx(1.25**-0.5, abs=0.05) and float(cosine_B.max()) < 0.999
    sampled = task._conditions(batch, SampleRandom(0, -1, batch["index"]), (16, 16)).image_embedding_BE
    assert sampled is not None and torch.equal(sampled, true_BE.float())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_noise": 0.5}, "image_noise=0.5: without an embedding; set image_embedding: true, or 0"),
        ({"model_overrides": {"image_embedding_dim": 8}}, "that is CLIP's width; set image_embedding: true"),
        ({"model": "prior-micro"}, "model=prior-micro is trained by task: prior; set it, or take another model"),
        (
            {"model": "micro-if", "diffusion": {"schedule": "discrete", "prediction": "eps"}, "image_embedding": True},
            "image_embedding=true: model=micro-if of backbone diffusers_unet takes none",
        ),
    ],
)
def test_stages_that_take_no_image_embedding_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionStageConfig.model_validate({"resolution": 16, "model": "micro-base"} | keys)
