"""Stage `schedule`, if `sample.fit` asks for it: noise levels of few evaluations, fitted to trained stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from eval.sampling.config import CascadeConfig, FitConfig, SamplingConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always, config_key
from pipeline.stages.guides import list_guide_files
from pipeline.stages.model_files import TUNED
from pipeline.stages.trained_cascade import build_cascade, trained_cascade
from pipeline.store.artifact import Artifact, Shard

if TYPE_CHECKING:
    from pipeline.config import RunConfig

FITTED = "fitted.json"  # {cascade stage: {log_snrs, cost, cost_of_even_steps}}


class ScheduleStageConfig(StageConfig):
    """What the stage sees of the config. Prompts are encoded as captions are, see `embed`."""

    fit: FitConfig = config_key("sample.fit")
    stages: dict[str, SamplingConfig] = config_key("sample.stages")
    guides: dict[str, str] = config_key("sample.guides")
    max_length: int = config_key("embed.max_length")
    dtype: str = config_key("embed.dtype")
    pad: bool = config_key("embed.pad")
    lowercase: bool = config_key("embed.lowercase")
    seed: int


@dataclass(frozen=True, kw_only=True)
class ScheduleInputs(StageInputs):
    """The cascade, the text encoder, and held-out captions and images."""

    train: dict[str, Artifact]
    encoder: Artifact
    text_tuning: Artifact | None
    pack: Artifact


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns the stage where the config asks for it."""
    return {"schedule": ScheduleStageConfig.from_run(config)} if config.sample.fit is not None else {}


class ScheduleWorker:
    """Fits the levels of a cascade stage; a shard is a stage of ``fit.stages``, by its number there."""

    def __init__(self, cascade: CascadeConfig, fit: FitConfig, pack: Sequence[str], seed: int) -> None:
        from pipeline.runtime.device import worker_device

        self.cascade, self.fit = build_cascade(cascade, worker_device()), fit
        self.pack, self.seed = pack, seed

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes a JSON file: the stage, its levels, and what steps at them and even steps cost."""
        import torch

        from eval.sampling.schedule_fitting import choose_levels, measure_steps, path_cost
        from eval.sampling.stage_sampler import SamplerInputs, begin_sampling, pad_text
        from pipeline.stages.image_likelihood import read_pairs
        from train.diffusion.objective import evaluation_log_snrs, to_model_range

        stage = next(item for item in self.cascade.stages if item.entry.name == self.fit.stages[task.id])
        settings, device = stage.entry.sampling, self.cascade.device
        levels = evaluation_log_snrs(stage.diffusion, self.fit.levels)
        total, count = torch.zeros(len(levels) - 1, len(levels), dtype=torch.float64), 0
        pairs = islice(read_pairs(self.pack, stage.entry), self.fit.samples)
        while part := list(islice(pairs, self.fit.batch_size)):
            _, small, captions = zip(*part, strict=True)
            lowres_BCHW = None
            if stage.entry.low_resolution is not None:
                lowres_BCHW = to_model_range(torch.stack([torch.from_numpy(image) for image in small]).to(device))
            inputs = SamplerInputs(pad_text(self.cascade.encoder.encode(captions), device), lowres_BCHW=lowres_BCHW)
            seeds = [(self.seed, count + row) for row in range(len(part))]
            with torch.no_grad():
                denoise, start_BCHW = begin_sampling(stage, settings, inputs, seeds)
                total += measure_steps(denoise, start_BCHW, levels) * len(part)
            count += len(part)
        costs, path = total / count, choose_levels(total / count, settings.steps)
        even = [round(step * len(costs) / settings.steps) for step in range(settings.steps)]
        found: dict[str, Any] = {"stage": stage.entry.name, "log_snrs": [float(levels[number]) for number in path]}
        found |= {"cost": path_cost(costs, path), "cost_of_even_steps": path_cost(costs, even)}
        storage.write_json(str(task.out / shard_name(task.id, "json")), found)
        return {"trajectories": count}


def run(ctx: Context[ScheduleStageConfig, ScheduleInputs]) -> None:
    """Fits every stage that is asked for; raises UserError where there are no held-out images to fit it on."""
    config, inputs = ctx.config, ctx.inputs
    if not inputs.pack.manifest.counters["validation"]:
        raise UserError(
            "sample.fit: measures held-out images, and none are packed; set select.validation_fraction above 0, or "
            "leave sample.fit out"
        )
    text = {"max_length": config.max_length, "encoder_dtype": config.dtype}
    text |= {"encoder_pad": config.pad, "encoder_lowercase": config.lowercase}
    encoder = inputs.text_tuning or inputs.encoder
    cascade = trained_cascade(inputs.train, config.stages, encoder, None, config.guides, **text)
    cascade = cascade.model_copy(update={"prior": None})  # stages that need it are refused
    arguments = {"cascade": cascade, "fit": config.fit, "pack": inputs.pack.files(), "seed": config.seed}
    shards = [Shard(number, {}) for number in range(len(config.fit.stages))]
    ctx.map_shards(ScheduleWorker, arguments, shards, on_gpu=True)
    found = [storage.read_json(ctx.path(shard_name(number, "json"))) for number in range(len(shards))]
    storage.write_json(ctx.path(FITTED), {item.pop("stage"): item for item in found})


def place_levels(sampling: Mapping[str, SamplingConfig], fitted: Artifact | None) -> dict[str, SamplingConfig]:
    """Returns the sampler settings with fitted noise levels; without a fit as they are."""
    if fitted is None:
        return dict(sampling)
    found: dict[str, Any] = fitted.read_json(FITTED)
    levels = {name: tuple(item["log_snrs"]) for name, item in found.items()}
    return dict(sampling) | {
        name: sampling.get(name, SamplingConfig()).model_copy(update={"log_snrs": values})
        for name, values in levels.items()
    }


STAGE = StageType(
    name="schedule",
    run=run,
    config=ScheduleStageConfig,
    inputs=ScheduleInputs,
    instances=list_instances,
    optional=lambda config, name: name != TUNED or config.text_tuning is not None,
    placement=always(Placement.MODELS),
    sources=list_guide_files,
    kind="evaluation",
    counter="trajectories",
)
