"""Floating-point operations of training, counted while a few updates run: two per multiplication of a matrix product.

Convolutions, attention, and matrix products of the optimizer count; what goes element by element does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dataprep.io.pack_format import pixels_column
from pipeline.config import DenoiserTraining, NetworkTraining, run_config_type
from pipeline.stages.model_files import EXPORT
from pipeline.stages.text_encoder import encoder_location, read_captions
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run
from train.config import TrainConfig
from train.engine import Engine
from train.loader.config import LoaderConfig
from train.loader.feed import DeviceFeed
from train.loader.loader import TRAIN, CaptionLoader, Loader, Stream
from train.loader.reader import Reader
from train.loader.shard_index import ShardIndex, index_shards
from train.loop import build_model, list_companions
from train.task import PreparingTask, Task
from train.tasks.bert import BertTask
from train.tasks.clip import ClipTask
from train.tasks.diffusion import build_diffusion_task
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.distillation import build_distillation_task
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.prior import build_prior_task
from train.tasks.prior_config import PriorTrainingConfig
from train.tasks.refinement import build_refinement_task
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.t5 import T5Task
from train.tasks.t5_config import T5TrainingConfig
from train.tasks.vq import build_vq_task
from train.tasks.vq_config import VqTrainingConfig

SAMPLED = 4  # updates of one size that are counted


def count_training(task: Task, config: TrainConfig, loader: Stream) -> int:
    """Returns the operations of all updates, from `SAMPLED` of each size: the length of captions differs by batch."""
    small = min(config.steps, config.half_size_steps) if isinstance(config, DiffusionTrainingConfig) else 0
    return sum(
        round(np.mean(count_updates(task, config, loader, spread_steps(start, stop))) * (stop - start))
        for start, stop in ((0, small), (small, config.steps))
        if start < stop
    )


def spread_steps(start: int, stop: int) -> list[int]:
    """Returns at most `SAMPLED` steps, evenly from ``start`` to before ``stop``."""
    return sorted({start + (stop - start) * number // SAMPLED for number in range(SAMPLED)})


def count_updates(task: Task, config: TrainConfig, loader: Stream, steps: Sequence[int]) -> list[int]:
    """Returns the operations of updates of fresh weights: forward and backward pass, and the optimizer.

    Runs them, without ZeRO, on this machine.
    """
    config = config.model_copy(update={"zero_stage": 0, "offload": "none", "compile": False, "init": None})
    engine = Engine(build_model(task, config, 0), config)
    companions = list_companions(task).values()
    for companion in companions:
        companion.begin(engine.module)
    feed = DeviceFeed(engine.device, 0, task.prepare if isinstance(task, PreparingTask) else None)
    found = []
    for step in steps:
        # Attention as two products, which are counted; its kernel for CPUs is not.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for micro in range(config.accumulation):
                stored = loader.stored_batch(step, 0, 1, micro, config.accumulation)
                batch, random = feed.receive(feed.send(stored, step))
                loss, _ = task.loss(engine, batch, random)
                engine.backward(loss)
                update = engine.step(config.learning_rate)
            for companion in companions:
                companion.end_update(update.applied)
        found.append(int(counter.get_total_flops()))
    return found


def count_run(run: Run) -> dict[str, int]:
    """Returns the operations of the text encoder's, CLIP's and all networks' trainings of a finished run, by stage."""
    return {stage: count_training(task, config, loader) for stage, task, config, loader in _list_trainings(run)}


def _list_trainings(run: Run) -> Iterator[tuple[str, Task, TrainConfig, Stream]]:
    """Yields stage, task, config and batches of every training of a run, as its stages make them."""
    config, artifacts = run_config_type().model_validate(run.record()["config"], strict=False), run.artifacts()
    pack, embed = artifacts["pack"].files(), artifacts["embed"].files()
    if (encoder := config.encoder.pretrain) is not None:
        captions = [caption for path in artifacts["download"].files() for caption in read_captions(path)]
        task = T5Task(encoder, captions) if isinstance(encoder, T5TrainingConfig) else BertTask(encoder, captions)
        yield "encoder", task, encoder, CaptionLoader(captions, config.seed, encoder.batch_size)
    if (clip := config.clip.train) is not None:
        # Of the kept images: those of the pairs are removed at the end of the stage.
        data = Reader(index_shards(pack, None, (pixels_column(clip.image_size),)), LoaderConfig())
        loader = Loader.from_reader(data, None, config.seed, clip.batch_size)
        yield "clip", ClipTask(clip, encoder_location(artifacts["encoder"])), clip, loader
    for name, stage in config.networks().items():
        vectors = stage.vector_columns() if isinstance(stage, DenoiserTraining) else ()
        index = index_shards(pack, embed, stage.pixel_columns(), stage.min_original, vectors)
        loader = Loader.from_reader(Reader(index, stage.data), TRAIN, config.seed, stage.batch_size, stage.crop)
        yield f"train.{name}", build_task(stage, index, artifacts), stage, loader


def build_task(stage: NetworkTraining, shards: ShardIndex, artifacts: Mapping[str, Artifact]) -> Task:
    """Returns the task of an entry of `train`, as its training makes it; ``artifacts`` are the run's."""
    if isinstance(stage, VqTrainingConfig):
        return build_vq_task(stage, shards, 0)
    if isinstance(stage, PriorTrainingConfig):
        return build_prior_task(stage, shards)
    if isinstance(stage, RefinementTrainingConfig):
        return build_refinement_task(stage, shards, artifacts[f"train.{stage.autoencoder}"].path(EXPORT))
    if isinstance(stage, DistillationTrainingConfig):
        return build_distillation_task(stage, shards)
    assert isinstance(stage, DiffusionTrainingConfig)
    return build_diffusion_task(stage, shards, 0)
