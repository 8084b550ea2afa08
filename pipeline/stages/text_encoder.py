"""Stage `encoder`: the frozen text encoder, loaded once as a check, or a small one pretrained on the run's captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from dataprep.io import storage
from dataprep.io.config import ClassOf, Config
from dataprep.io.errors import UserError
from dataprep.io.hub import HUB_PREFIX
from dataprep.io.pipeline_folder import encoder_folders
from pipeline.runtime.context import Context
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.stages.base import Learning, Placement, Rows, StageConfig, StageInputs, StageType
from pipeline.stages.initial_weights import (
    ORIGIN_FILE,
    Origin,
    find_origin,
    list_origin_files,
    place_init,
    write_origin,
)
from pipeline.stages.model_files import EXPORT, MODEL_FILE, list_model_files, locate_model, resolve_model_name
from pipeline.store.artifact import Artifact, Manifest
from train.initial_weights.base import read_settings
from train.tasks.bert_config import BertTrainingConfig
from train.tasks.t5_config import T5TrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig


PRETRAININGS: Mapping[str, type[T5TrainingConfig] | type[BertTrainingConfig]] = {
    "t5": T5TrainingConfig,  # the default
    "bert": BertTrainingConfig,
}
Pretraining = Annotated[T5TrainingConfig | BertTrainingConfig, ClassOf("task", PRETRAININGS)]


class EncoderConfig(Config):
    """The frozen text encoder: an existing model or one pretrained here. Exactly one of the two."""

    model: str | None = Field(
        None,
        description="Hugging Face hub name or local folder of a T5- or BERT-type encoder; or a run or export to take "
        "its encoder from",
    )
    pretrain: Pretraining | None = Field(
        None, description="pretrain a small encoder on the captions instead: `task: t5`, the default, or bert"
    )

    @model_validator(mode="after")
    def _check_one_is_given(self) -> EncoderConfig:
        if (self.model is None) == (self.pretrain is None):
            raise ValueError("give exactly one of `model` (a hub name or a folder) and `pretrain`")
        return self


class EncoderStageConfig(StageConfig):
    """What the stage sees of the config."""

    encoder: EncoderConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class EncoderInputs(StageInputs):
    """The captions, where the encoder is pretrained here."""

    download: Artifact | None


def list_sources(config: RunConfig) -> list[str]:
    """Returns the files of a local encoder folder, checked, or of the weights that pretraining begins from."""
    pretrain = config.encoder.pretrain
    if pretrain is not None:
        return list_origin_files(find_encoder_origin(pretrain)) if pretrain.init is not None else []
    from dataprep.text.encoder import check_encoder

    assert config.encoder.model is not None
    model = locate_encoder(config.encoder.model)
    if not check_encoder(model):
        return []
    parts = dict.fromkeys(encoder_folders(model))  # of a diffusers layout not the image networks
    return [path for part in parts for path in list_model_files(part)]


def locate_encoder(name: str) -> str:
    """Returns the folder or hub name of an encoder, that of a run or export if ``name`` is one."""
    return locate_model(name, "encoder", "encoder.model")


def find_text_width(config: EncoderConfig) -> int | None:
    """Returns the width of the embeddings; None for a hub name, of which it is known once the model is loaded."""
    if config.pretrain is not None:
        return config.pretrain.d_model
    assert config.model is not None
    settings = read_settings(encoder_folders(locate_encoder(config.model))[0], "config.json")
    width = settings.get("d_model") or settings.get("hidden_size")
    return int(width) if width else None


def find_encoder_origin(config: Pretraining) -> Origin:
    """Returns where the encoder's first weights are; raises UserError where no tokenizer goes with them."""
    assert config.init is not None
    key = "encoder.pretrain.init"
    origin = find_origin(config.init, "encoder", key)
    folder = origin.model or origin.path
    if not folder.startswith(HUB_PREFIX) and not storage.exists(storage.join(folder, "tokenizer.json")):
        raise UserError(
            f"{key}={config.init.source}: has no tokenizer (tokenizer.json), without which its weights mean nothing; "
            "name the run, its export, or a folder with both"
        )
    return origin


def train_t5_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.t5.train_t5`."""
    from train.tasks.t5 import train_t5

    return train_t5(**arguments)


def train_bert_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.bert.train_bert`."""
    from train.tasks.bert import train_bert

    return train_bert(**arguments)


def run(ctx: Context[EncoderStageConfig, EncoderInputs]) -> None:
    """Loads or pretrains the encoder, and records where it is."""
    config = ctx.config.encoder
    if config.pretrain is None:
        from dataprep.text.encoder import TextEncoder

        assert config.model is not None
        model: str | None = locate_encoder(config.model)
        # bfloat16: half the memory, on the head node
        ctx.counters["dim"] = TextEncoder.from_folder(storage.local_folder(str(model)), "bfloat16").dim
    else:
        assert ctx.inputs.download is not None
        captions = [caption for path in ctx.inputs.download.files() for caption in read_captions(path)]
        _pretrain(ctx, config.pretrain, captions)
        model = None
    storage.write_json(ctx.path(MODEL_FILE), {"model": resolve_model_name(model)})


def _pretrain(ctx: Context[EncoderStageConfig, EncoderInputs], config: Pretraining, captions: list[str]) -> None:
    arguments: dict[str, Any] = {"captions": captions}
    if config.init is not None:
        origin = find_encoder_origin(config)
        arguments["tokenizer"] = origin.model or origin.path
        config = config.model_copy(update={"init": place_init(config.init, origin)})
        write_origin(ctx.path(ORIGIN_FILE), origin)
    train_rank = train_t5_rank if config.task == "t5" else train_bert_rank
    train_on_cluster(ctx, train_rank, arguments, config, ctx.config.seed)


def read_captions(path: str) -> list[str]:
    """Returns the captions of a download shard's images that were fetched."""
    from dataprep.io.parquet import read_table

    table = read_table(path, "download", ["caption", "status"])
    pairs = zip(table["caption"].to_pylist(), table["status"].to_pylist(), strict=True)
    return [caption for caption, status in pairs if status == "success" and caption]


def encoder_location(artifact: Artifact) -> str:
    """Returns what `TextEncoder.from_folder` loads the encoder from: a folder (possibly a URL) or a hub name."""
    model = artifact.read_json(MODEL_FILE)["model"]
    return str(model) if model is not None else artifact.path(EXPORT)


def describe_learning(manifest: Manifest) -> Learning | None:
    """Returns what a finished stage learned from the captions; None where it only loaded a model."""
    pretrain = EncoderStageConfig.from_manifest(manifest).encoder.pretrain
    return Learning("caption", pretrain.steps, pretrain.batch_size, Rows.ALIGNED) if pretrain else None


STAGE = StageType(
    name="encoder",
    run=run,
    config=EncoderStageConfig,
    inputs=EncoderInputs,
    optional=lambda config, name: config.encoder.pretrain is not None,
    placement=lambda config: Placement.DRIVER if config.encoder.pretrain is None else Placement.GROUP,
    sources=list_sources,
    kind="model",
    counter="parameters",
    learned=describe_learning,
)
