"""Stage `clip`: the CLIP that scores pairs and samples, loaded once as a check, or trained on the run's own pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from dataprep.io import storage
from dataprep.io.config import Config
from dataprep.io.keys import shard_name
from dataprep.io.pack_format import pixels_column
from dataprep.pack_config import PackConfig
from pipeline.runtime.context import Context
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from pipeline.runtime.training_stage import train_on_cluster
from pipeline.stages.base import Learning, Placement, RowBalance, Rows, StageConfig, StageInputs, StageType, config_key
from pipeline.stages.initial_weights import ORIGIN_FILE, find_origin, list_origin_files, place_init, write_origin
from pipeline.stages.model_files import EXPORT, MODEL_FILE, list_model_files, locate_model, resolve_model_name
from pipeline.stages.pack import PackWorker
from pipeline.stages.text_encoder import encoder_location, locate_encoder
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.fingerprint import hash_json
from train.models.tokenizer_folder import check_tokenizer
from train.tasks.clip_config import ClipTrainingConfig

if TYPE_CHECKING:
    from pipeline.config import RunConfig

PAIRS = "pairs"  # subfolder of what CLIP is trained on; removed afterwards
ClipSpec = dict[str, str | None]  # "model" and "pretrained", as `eval.clip.scorer.ClipScorer.load` takes them


class ClipConfig(Config):
    """The CLIP that scores pairs and samples: an existing open_clip model, or one trained here."""

    model: str | None = Field(None, description="open_clip model name, such as ViT-B-32, an exported folder, or a run")
    pretrained: str | None = Field(None, description="open_clip pretrained tag or a local weights file, for `model`")
    train: ClipTrainingConfig | None = Field(None, description="train a small CLIP on the pairs instead")
    min_similarity: float | None = Field(None, ge=-1, le=1, description="select drops pairs below this similarity")

    @model_validator(mode="after")
    def _check_one_is_given(self) -> ClipConfig:
        if (self.model is None) == (self.train is None):
            raise ValueError("give exactly one of `model` (an open_clip name or a folder) and `train`")
        return self


class ClipStageConfig(StageConfig):
    """What the stage sees of the config."""

    model: str | None = config_key("clip.model")
    pretrained: str | None = config_key("clip.pretrained")
    train: ClipTrainingConfig | None = config_key("clip.train")
    max_pixels: int = config_key("download.max_pixels")
    seed: int


@dataclass(frozen=True, kw_only=True)
class ClipInputs(StageInputs):
    """Where CLIP is trained here: the pairs, and the encoder, of which it takes the tokenizer or all.

    A given one needs neither, so that the stages behind it can stream from the download.
    """

    download: Artifact | None
    encoder: Artifact | None


def list_sources(config: RunConfig) -> list[str]:
    """Returns the local files of an existing CLIP, checked, or of the weights that training begins from.

    One trained here takes the encoder, or its tokenizer alone, which is checked too if it is a folder.
    """
    clip = config.clip
    if clip.train is not None:
        encoder = locate_encoder(config.encoder.model) if config.encoder.model is not None else None
        if encoder is not None and Path(encoder).is_dir():
            check_tokenizer(encoder)
        init = clip.train.init
        return list_origin_files(find_origin(init, "clip", "clip.train.init")) if init is not None else []
    from eval.clip.scorer import check_spec

    assert clip.model is not None
    model = locate_model(clip.model, "clip", "clip.model")
    check_spec(model, clip.pretrained)
    local = [name for name in (model, clip.pretrained) if name and Path(name).exists()]
    return [path for name in local for path in list_model_files(name)]


def train_rank(**arguments: Any) -> dict[str, Any]:
    """Trains one rank, see `train.tasks.clip.train_clip`."""
    from train.tasks.clip import train_clip

    return train_clip(**arguments)


def run(ctx: Context[ClipStageConfig, ClipInputs]) -> None:
    """Loads or trains CLIP, and records where it is."""
    config = ctx.config
    model = locate_model(config.model, "clip", "clip.model") if config.model is not None else None
    spec: ClipSpec = {"model": model, "pretrained": config.pretrained}
    if config.train is None:
        from eval.clip.scorer import ClipScorer

        ClipScorer.load(spec)
    else:
        assert ctx.inputs.encoder is not None
        pairs, index = _pack_pairs(ctx, config.train.image_size), ctx.path(PAIRS, INDEX_FILE)
        content = hash_json(sorted(marker.fingerprint for marker in ctx.finished))
        write_shard_index(ctx, index, pairs, None, (pixels_column(config.train.image_size),), content)
        arguments = {"index": index, "encoder": encoder_location(ctx.inputs.encoder)}
        train_on_cluster(ctx, train_rank, arguments, _place_weights(ctx, config.train), config.seed)
        storage.remove(ctx.path(PAIRS))
    storage.write_json(ctx.path(MODEL_FILE), {key: resolve_model_name(name) for key, name in spec.items()})


def _place_weights(ctx: Context[ClipStageConfig, ClipInputs], config: ClipTrainingConfig) -> ClipTrainingConfig:
    """Returns the config with the weights to begin from, if any, found and recorded."""
    if config.init is None:
        return config
    origin = find_origin(config.init, "clip", "clip.train.init")
    write_origin(ctx.path(ORIGIN_FILE), origin)
    return config.model_copy(update={"init": place_init(config.init, origin)})


def _pack_pairs(ctx: Context[ClipStageConfig, ClipInputs], size: int) -> list[str]:
    """Packs every downloaded pair at CLIP's size; returns the shards' files."""
    arguments = {
        "config": PackConfig(resolutions=(size,), raw_up_to=size),
        "max_pixels": ctx.config.max_pixels,
    }
    assert ctx.inputs.download is not None
    ctx.map_shards(PairWorker, arguments, ctx.join_shards(ctx.inputs.download), subfolder=PAIRS)
    return [ctx.path(PAIRS, shard_name(number, "parquet")) for number in sorted(marker.id for marker in ctx.finished)]


class PairWorker(PackWorker):
    """Packs every downloaded pair of a shard for CLIP's training."""

    def __call__(self, task: Any) -> dict[str, int]:
        """Writes one Parquet file."""
        return {"pairs": super().__call__(task)["rows"]}


def read_clip_spec(artifact: Artifact) -> ClipSpec:
    """Returns what `ClipScorer.load` takes: an open_clip model with its weights, or the folder of a trained one."""
    spec: ClipSpec = artifact.read_json(MODEL_FILE)
    return spec if spec["model"] is not None else {"model": artifact.path(EXPORT), "pretrained": None}


def find_clip_width(config: ClipConfig) -> int | None:
    """Returns the width of CLIP's embeddings; None where only the trained or loaded model will tell."""
    return config.train.embed_dim if config.train is not None else None


def is_trained_here(artifact: Artifact) -> bool:
    """Returns whether the CLIP was trained in the run."""
    return artifact.read_json(MODEL_FILE)["model"] is None


def digest_clip(artifact: Artifact) -> str:
    """Returns a digest of the CLIP itself: equal for equal weights, whatever else the artifact holds."""
    weights = {output.path: output.sha256 for output in artifact.manifest.outputs if output.path.startswith(EXPORT)}
    spec = artifact.read_json(MODEL_FILE)
    return hash_json({"weights": weights, "spec": spec, "sources": sorted(artifact.manifest.sources.values())})[:16]


def describe_learning(manifest: Manifest) -> Learning | None:
    """Returns what a finished stage learned from the pairs; None where it only loaded a model."""
    train = ClipStageConfig.from_manifest(manifest).train
    return Learning("image and caption", train.steps, train.batch_size, Rows.ALIGNED) if train else None


STAGE = StageType(
    name="clip",
    run=run,
    config=ClipStageConfig,
    inputs=ClipInputs,
    optional=lambda config, name: config.clip.train is not None,
    placement=lambda config: Placement.DRIVER if config.clip.train is None else Placement.GROUP,
    sources=list_sources,
    kind="model",
    counter="parameters",
    balance=RowBalance(rows="pairs", equal={"pairs": "download.success"}),
    learned=describe_learning,
)
