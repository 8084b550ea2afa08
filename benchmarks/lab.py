"""The laboratory: trains one variant of the demo's text encoder and base on scenes, and judges it at the base's size.

Without Ray, downloads, CLIP and super-resolution: the scenes that a perfect selection would keep, drawn and resized
here. Shape legend: N images, B batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.flops import count_training
from benchmarks.training_data import write_training_data
from dataprep.images.resize import resize_square
from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.corpus import IMAGE, build_scene
from dataprep.synthetic.renderer import draw_scene
from dataprep.text.encoder import TextEncoder
from eval.metrics.composition import check_image, sum_checks
from eval.sampling.cascade import Cascade
from eval.sampling.config import CascadeConfig, SamplingConfig, StageEntry
from eval.sampling.options import SamplingOptions
from eval.sampling.prompts import SPLITS, scene_prompts
from pipeline.config import RunConfig
from pipeline.store.fingerprint import hash_json
from train.diffusion.objective import to_model_range
from train.diffusion.schedules import add_noise, network_input, x0_from_output
from train.loader.feed import to_device
from train.loader.loader import TRAIN, VALIDATION, CaptionLoader, Loader
from train.loader.reader import Reader
from train.loader.shard_index import ShardIndex
from train.models.base import Conditions
from train.tasks.diffusion import DiffusionTask, train_diffusion
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.t5 import T5Task, train_t5
from train.tasks.t5_config import T5TrainingConfig

VALIDATION_EVERY = 16  # every so manieth image is held out
LOG_SNRS = (-6.0, -3.0, 0.0, 3.0)  # noise levels at which the error of the clean image is measured
MEASURED = 256  # images of each split for that
JUDGE_SEED = 1000  # added to a training's seed: its prompts are not those of the demo
Row = dict[str, Any]


class Corpus(NamedTuple):
    """Scenes without planted trouble, uint8 RGB (N, side, side, 3), their captions and splits."""

    images_NHWC: np.ndarray
    captions: list[str]
    splits: list[str]


class Prepared(NamedTuple):
    """What a training of a base reads: the index of its data, its text encoder, that one's operations and width."""

    index_path: str
    encoder: Path
    encoder_flops: int
    text_dim: int


class Laboratory:
    """Trains and judges variants; keeps corpora and text encoders that several variants share below ``folder``."""

    def __init__(self, folder: str | Path, flops: float, prompts: int) -> None:
        """``flops``: of a variant's whole training, text encoder and base; ``prompts``: judged, of each split."""
        self.folder, self.flops, self.prompts = Path(folder), flops, prompts

    def measure(self, config: RunConfig, seed: int, name: str) -> Row:
        """Trains a variant on ``flops`` operations with a seed; returns what it cost and how good it is."""
        began = time.process_time()
        stage = config.cascade()["base"]
        folder = self.folder / "trained" / f"{name}-{seed}"
        index, encoder, encoder_flops, text_dim = self.prepare(config, seed, folder)
        base_flops = self._count_base(stage, index, text_dim)
        stage = scale_length(stage, max(1, int(stage.steps * (self.flops - encoder_flops) / base_flops)))
        result = train_diffusion(index, False, stage, str(folder), seed)
        row = {"seed": seed, "steps": stage.steps, "parameters": result["parameters"], "loss": result["loss"]}
        row |= {"flops": encoder_flops + self._count_base(stage, index, text_dim), "encoder_flops": encoder_flops}
        settings = config.sample.stages.get("base", SamplingConfig())
        cascade = open_base(folder / "export", encoder, stage.resolution, settings)
        row |= measure_errors(cascade, index) | judge_base(cascade, self.prompts, seed + JUDGE_SEED)
        return row | {"cpu_seconds": round(time.process_time() - began, 1)}

    def prepare(self, config: RunConfig, seed: int, folder: Path) -> Prepared:
        """Writes the packed images and embeddings of a config and a seed in ``folder``."""
        pretrain, scenes = config.encoder.pretrain, config.listing.scenes
        assert isinstance(pretrain, T5TrainingConfig) and scenes is not None
        corpus = self._open_corpus(scenes, seed, config.cascade()["base"].resolution)
        encoder, encoder_flops = self._train_encoder(pretrain, scenes, corpus, seed)
        folder.mkdir(parents=True, exist_ok=True)
        text = TextEncoder.from_folder(str(encoder), "float32")
        index = write_training_data(folder, list(corpus.images_NHWC), corpus.captions, text, corpus.splits)
        return Prepared(index, encoder, encoder_flops, text.dim)

    def _open_corpus(self, scenes: ScenesConfig, seed: int, side: int) -> Corpus:
        """Returns the corpus of a seed, drawn once."""
        path = self.folder / "corpora" / f"{hash_json([scenes.model_dump(mode='json'), seed, side])[:16]}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            corpus = draw_corpus(scenes, seed, side)
            np.savez(path, images=corpus.images_NHWC, captions=corpus.captions, splits=corpus.splits)
        stored = np.load(path)
        return Corpus(stored["images"], stored["captions"].tolist(), stored["splits"].tolist())

    def _train_encoder(
        self, config: T5TrainingConfig, scenes: ScenesConfig, corpus: Corpus, seed: int
    ) -> tuple[Path, int]:
        """Returns the folder of the text encoder, trained once, and the operations of its training."""
        parts = [config.model_dump(mode="json"), scenes.model_dump(mode="json"), seed]
        folder = self.folder / "encoders" / hash_json(parts)[:16]
        if not (folder / "export" / "tokenizer.json").exists():
            train_t5(corpus.captions, config, str(folder), seed)
        loader = CaptionLoader(corpus.captions, seed, config.batch_size)
        return folder / "export", count_training(T5Task(config, corpus.captions), config, loader)

    def _count_base(self, config: DiffusionTrainingConfig, index: str, text_dim: int) -> int:
        loader = Loader.from_reader(Reader(ShardIndex.read(index), config.data), TRAIN, 0, config.batch_size)
        return count_training(DiffusionTask(config, text_dim), config, loader)


def draw_corpus(scenes: ScenesConfig, seed: int, side: int) -> Corpus:
    """Draws the rows of the embedded corpus that have no planted trouble, and resizes them as packing does."""
    images, captions = [], []
    for index in range(scenes.count):
        row = build_scene(scenes, seed, index)
        if row.trouble is None:
            large_HWC = draw_scene(row.claim, np.random.default_rng([seed, IMAGE, index]), scenes.image_size)
            images.append(resize_square(large_HWC, side))
            captions.append(row.caption)
    splits = [VALIDATION if number % VALIDATION_EVERY == 0 else TRAIN for number in range(len(images))]
    return Corpus(np.stack(images), captions, splits)


def scale_length(config: DiffusionTrainingConfig, steps: int) -> DiffusionTrainingConfig:
    """Returns the config with so many updates, all that is counted in updates in proportion, and without ZeRO."""
    share = steps / config.steps
    changes = {
        "steps": steps,
        "warmup_steps": max(1, round(config.warmup_steps * share)),
        "half_size_steps": round(config.half_size_steps * share),
        "ema_decay": max(0.5, 1 - (1 - config.ema_decay) / share),
        "checkpoint_every": steps,
        "log_every": max(1, steps // 20),
        "zero_stage": 0,
    }
    changes |= {"validate_every": 0, "sample_every": 0}
    return DiffusionTrainingConfig.model_validate(config.model_dump(mode="json") | changes, strict=False)


def open_base(base: Path, encoder: Path, resolution: int, settings: SamplingConfig) -> Cascade:
    """Returns a cascade of a base alone."""
    entry = StageEntry(name="base", resolution=resolution, path=str(base), sampling=settings)
    return Cascade.from_config(CascadeConfig(stages=[entry], encoder=str(encoder), encoder_dtype="float32"))


def judge_base(cascade: Cascade, count: int, seed: int) -> Row:
    """Returns accuracy by attribute of ``count`` prompts of each split, and of all attributes by language."""
    prompts = scene_prompts(count, seed)
    options = SamplingOptions(seed=seed, batch_size=50)
    images = [np.asarray(image) for image in cascade.sample([prompt.prompt for prompt in prompts], options).images]
    checks = [check_image(image, prompt.claim) for image, prompt in zip(images, prompts, strict=True) if prompt.claim]
    row: Row = {}
    for split in SPLITS:
        chosen = [check for check, prompt in zip(checks, prompts, strict=True) if prompt.split == split]
        row[split] = {name: round(found["accuracy"], 4) for name, found in sum_checks(chosen).items()}
    for language in ("en", "zh"):
        chosen = [check for check, prompt in zip(checks, prompts, strict=True) if prompt.language == language]
        row[language] = round(sum_checks(chosen)["all"]["accuracy"], 4)
    return row


@torch.no_grad()
def measure_errors(cascade: Cascade, index: str) -> Row:
    """Returns the mean squared error of the clean image at each of `LOG_SNRS`, given the caption, by split.

    Of the EMA weights; images and noise are the same for every variant that has the same scenes.
    """
    stage = cascade.stages[0]
    schedule, prediction = stage.diffusion.schedule, stage.diffusion.prediction
    found: Row = {}
    for split in (TRAIN, VALIDATION):
        data = Reader(ShardIndex.read(index), DiffusionTrainingConfig(resolution=stage.entry.resolution).data)
        batch = to_device(Loader.from_reader(data, split, 0, MEASURED).first(MEASURED), torch.device("cpu"))
        x0_BCHW = to_model_range(batch[data.columns[0]])
        conditions = Conditions(batch["text_BLD"], batch["text_mask_BL"])
        errors: dict[str, float] = {}
        for level in LOG_SNRS:
            log_snr_B = torch.full((len(x0_BCHW),), level)
            noise_BCHW = torch.randn(x0_BCHW.shape, generator=torch.Generator().manual_seed(0))
            x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B)
            output_BCHW = stage.model(network_input(x_BCHW, log_snr_B, schedule), log_snr_B, conditions)
            x0_hat_BCHW = x0_from_output(prediction, output_BCHW, x_BCHW, log_snr_B).clamp(-1, 1)
            errors[f"{level:g}"] = round(float((x0_hat_BCHW - x0_BCHW).square().mean()), 5)
        found[f"error_{split}"] = errors
    return found
