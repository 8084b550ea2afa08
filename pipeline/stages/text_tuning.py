"""Stage `text_tuning`: the text encoder with new words, or LoRA, learned through a frozen image model.

Stands between `pack` and `embed`: everything after it reads the tuned encoder, as if it had been there before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.hub import HUB_PREFIX
from dataprep.io.pack_format import pixels_column
from pipeline.runtime.context import Context
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.stages.base import Learning, Placement, Rows, StageConfig, StageInputs, StageType, always, config_key
from pipeline.stages.initial_weights import Origin, find_origin, list_origin_files
from pipeline.stages.model_files import MODEL_FILE
from pipeline.stages.text_encoder import encoder_location, find_text_width
from pipeline.stages.training_stages import mix_data
from pipeline.store.artifact import Artifact, Manifest
from train.init_config import InitConfig
from train.initial_weights.base import read_settings
from train.loader.mix_config import DataMix
from train.models.backbones import find_backbone, find_stage_folder, read_folder_stage
from train.models.base import DenoiserConfig
from train.tasks.text_tuning_config import TextTuningConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig

KEY = "text_tuning.model"
BASE = "train.base"  # stage of a run that is meant where none is named


class TextTuningStageConfig(StageConfig):
    """What the stage sees of the config."""

    text_tuning: TextTuningConfig
    mix: DataMix
    max_length: int = config_key("embed.max_length")
    pad: bool = config_key("embed.pad")
    lowercase: bool = config_key("embed.lowercase")
    seed: int


@dataclass(frozen=True, kw_only=True)
class TextTuningInputs(StageInputs):
    """The images and captions, and the encoder as it was."""

    pack: Artifact
    encoder: Artifact


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns the stage where the config asks for it."""
    if config.text_tuning is None:
        return {}
    return {"text_tuning": TextTuningStageConfig.from_run(config, mix=mix_data(config))}


def list_sources(config: RunConfig) -> list[str]:
    """Returns the files of the image model, after checking that it reads the encoder's text and the packed images."""
    tuning = config.text_tuning
    assert tuning is not None
    origin = _find_image_model(tuning)
    network = read_settings(origin.path, "config.json").get("model") or {}
    if network.get("lowres"):
        raise UserError(f"{KEY}={tuning.model}: enlarges images; name the base stage, RUN:STAGE")
    width, wanted = find_text_width(config.encoder), network.get("text_dim")
    if width and wanted and width != wanted:
        raise UserError(
            f"{KEY}={tuning.model}: reads text {wanted} wide, the encoder's is {width}; name the encoder that it was "
            "trained with in encoder.model"
        )
    _check_sizes(config, tuning, origin.path)
    return list_origin_files(origin)


def _check_sizes(config: RunConfig, tuning: TextTuningConfig, path: str) -> None:
    """Raises UserError where the image model at ``path`` does not take the packed images."""
    network = _read_network(path)
    if network is None:
        return
    multiple, key = network.size_multiple(), f"{KEY}={tuning.model}"
    if tuning.resolution % multiple:
        raise UserError(
            f"text_tuning.resolution={tuning.resolution}: {key} needs multiples of {multiple}; name the resolution "
            "that it was trained at"
        )
    try:
        config.pack.check_sides(tuning.resolution, multiple, key)
    except ValueError as error:
        raise UserError(str(error)) from error


def _read_network(path: str) -> DenoiserConfig | None:
    """Returns the config of the network in a stage's folder; None where the ranks find it out."""
    settings = read_settings(path, "config.json")
    if "backbone" in settings:
        return find_backbone(settings["backbone"]).config(**settings["model"])
    folder = find_stage_folder(path) if path.startswith(HUB_PREFIX) else path
    stage = read_folder_stage(folder) if folder is not None else None
    return stage.model if stage is not None else None


def _find_image_model(config: TextTuningConfig) -> Origin:
    return find_origin(InitConfig(source=config.model), BASE, KEY)


def train_rank(text: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Tunes on one rank, see `train.tasks.text_tuning.train_text_tuning`."""
    from train.tasks.text_tuning import TextOptions, train_text_tuning

    return train_text_tuning(text=TextOptions(**text), **arguments)


def run(ctx: Context[TextTuningStageConfig, TextTuningInputs]) -> None:
    """Tunes the encoder; the export is the whole encoder."""
    config, pack = ctx.config, ctx.inputs.pack
    check_words(list(config.text_tuning.tokens), pack.files(), config.lowercase)
    index, columns = ctx.path(INDEX_FILE), (pixels_column(config.text_tuning.resolution),)
    write_shard_index(ctx, index, pack.files(), None, columns, pack.content)
    text = {"encoder": encoder_location(ctx.inputs.encoder), "max_length": config.max_length}
    arguments = {
        "index": index,
        "validate": pack.manifest.counters["validation"] > 0,
        "mix": config.mix,
        "text": text | {"pad": config.pad, "lowercase": config.lowercase},
        "stage": _find_image_model(config.text_tuning).path,
    }
    train_on_cluster(ctx, train_rank, arguments, config.text_tuning, config.seed)
    storage.remove(index)
    storage.write_json(ctx.path(MODEL_FILE), {"model": None})


def check_words(words: Sequence[str], pack: Sequence[str], lowercase: bool = False) -> None:
    """Raises UserError for a word that no caption of the pack shards has: nothing would be learned of it."""
    from dataprep.io.parquet import read_table

    missing = set(words)
    for path in pack:
        if not missing:
            return
        rows = read_table(path, "pack", ["captions"])["captions"].to_pylist()
        captions = " ".join(caption for several in rows for caption in several)
        captions = captions.lower() if lowercase else captions
        missing = {word for word in missing if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", captions)}
    if missing:
        raise UserError(
            f"text_tuning.tokens: no kept caption has the word {sorted(missing)[0]!r}, so nothing would be learned of "
            "it; use it in the captions (or subject.prompt), or leave it out"
        )


def describe_learning(manifest: Manifest) -> Learning:
    """Returns what a finished stage learned from the pairs."""
    tuning = TextTuningStageConfig.from_manifest(manifest).text_tuning
    return Learning("image and caption", tuning.steps, tuning.batch_size, Rows.KEPT)


STAGE = StageType(
    name="text_tuning",
    run=run,
    config=TextTuningStageConfig,
    inputs=TextTuningInputs,
    instances=list_instances,
    sources=list_sources,
    placement=always(Placement.GROUP),
    kind="model",
    counter="parameters",
    learned=describe_learning,
)
