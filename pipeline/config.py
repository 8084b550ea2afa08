"""The config of a run: one strict, typed tree, read from YAML with ``key=value`` overrides.

Each section's class lives beside the code that it configures; here they are only put together. Unknown keys, wrong
types and impossible combinations raise `UserError` naming the key, the value and the nearest valid key or the remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dataprep import storage
from dataprep.annotate import AnnotateConfig
from dataprep.card import CardConfig
from dataprep.download import DownloadConfig
from dataprep.embed import EmbedConfig
from dataprep.pack import PackConfig
from dataprep.rules import SelectConfig
from dataprep.schema import Config, UserError
from dataprep.sources import ListingConfig
from eval.heads import ScoreConfig
from eval.protocol import EvaluateConfig
from eval.settings import SamplingConfig
from pipeline.resources import StageResources
from train.config import TrainConfig
from train.models.presets import unet_config
from train.reader import LoaderConfig
from train.tasks.clip import ClipTaskConfig
from train.tasks.diffusion import DiffusionStageConfig
from train.tasks.t5 import T5TaskConfig

# Of the text encoder: what whoever draws has to know besides the stages.
MAX_LENGTH, DTYPE = TEXT_KEYS = ("embed.max_length", "embed.dtype")
STORED_PIXELS = "download.max_pixels"  # what a stored picture may have: the limit of every stage that opens one


class PretrainConfig(T5TaskConfig, TrainConfig):
    """A small T5 pretrained on the run's own captions: the model's keys and the training loop's, side by side."""


class EncoderConfig(Config):
    """The frozen text encoder: a model that exists, or one pretrained here. Exactly one of the two."""

    model: str | None = Field(None, description="Hugging Face hub name or local folder of a T5- or BERT-type encoder")
    pretrain: PretrainConfig | None = Field(None, description="pretrain a small T5 on the captions instead")

    @model_validator(mode="after")
    def _one(self) -> EncoderConfig:
        if (self.model is None) == (self.pretrain is None):
            raise ValueError("give exactly one of `model` (a hub name or a folder) and `pretrain`")
        return self


class ContrastiveConfig(ClipTaskConfig, TrainConfig):
    """A small CLIP trained contrastively on the run's own pairs."""


class ClipConfig(Config):
    """The CLIP that scores pairs and samples: an open_clip model that exists, or one trained here, or none."""

    model: str | None = Field(None, description="open_clip model name, such as ViT-B-32, or an exported folder")
    pretrained: str | None = Field(None, description="open_clip pretrained tag or a local weights file, for `model`")
    train: ContrastiveConfig | None = Field(None, description="train a small CLIP on the pairs instead")
    min_similarity: float | None = Field(None, ge=-1, le=1, description="select drops pairs below this similarity")

    @model_validator(mode="after")
    def _one(self) -> ClipConfig:
        if (self.model is None) == (self.train is None):
            raise ValueError("give exactly one of `model` (an open_clip name or a folder) and `train`")
        return self


class CascadeStageConfig(DiffusionStageConfig, TrainConfig):
    """One diffusion stage of the cascade: what is learned and how it is trained, side by side."""

    data: LoaderConfig = Field(LoaderConfig(), description="how its training data is read")


class SampleConfig(Config):
    """What is generated once the cascade is trained."""

    stages: dict[str, SamplingConfig] = Field(default_factory=dict, description="sampler settings a cascade stage")
    prompts: list[str] = Field(default_factory=list, description="prompts to show through the whole cascade")
    prompts_file: str | None = Field(None, description="more of them: a text file with one prompt a line")
    show: int = Field(8, ge=0, description="prompts of the embedded corpus to show through the whole cascade")
    evaluate: int = Field(160, ge=0, description="prompts of the embedded corpus to generate for evaluation")
    evaluate_prompts: str | None = Field(
        None, description="judge by these: a file of prompts, `evaluate` of them at most; see docs/metrics.md"
    )
    evaluate_at: str | None = Field(None, description="cascade stage whose output is judged; default: the last")
    candidates: int = Field(1, ge=1, description="images a prompt, of which CLIP picks the best")
    batch_size: int = Field(16, ge=1, description="images generated at a time")
    watermark: str | None = Field(None, description="text whose invisible mark images of 32 pixels or more get")
    prompts_per_shard: int = Field(32, ge=1, description="prompts that are one unit of work")


class ClusterConfig(Config):
    """Where and how wide it runs. Nothing here changes a result, so none of it is part of a fingerprint."""

    address: str | None = Field(None, description="Ray address; default: RAY_ADDRESS, or a local Ray of its own")
    cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; default: all")
    object_store_mb: int = Field(256, ge=80, description="object store of a local Ray, in MB")
    ranks: int = Field(2, ge=1, description="workers of a training stage; each a GPU where there are as many")
    retries: int = Field(2, ge=0, description="times that a failed shard or training group is tried again")
    max_quarantined: int = Field(0, ge=0, description="shards a stage may give up on and still finish")
    stages: dict[str, StageResources] = Field(
        default_factory=dict,
        description="what a worker asks for, by stage; `train` stands for all of train.*",
    )

    def of(self, stage: str) -> StageResources:
        """What the user wants a worker of ``stage`` to ask for."""
        asked = self.stages.get(stage) or (self.stages.get("train") if stage.startswith("train.") else None)
        return asked or StageResources()


class RunConfig(Config):
    """Everything that a run is made of."""

    run: str = Field(description="the run folder: a path, s3://... or gs://...")
    seed: int = Field(0, ge=0, description="the seed from which all randomness derives")
    listing: ListingConfig
    download: DownloadConfig = DownloadConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    encoder: EncoderConfig
    clip: ClipConfig
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    pack: PackConfig = PackConfig()
    embed: EmbedConfig = EmbedConfig()
    card: CardConfig = CardConfig()
    train: dict[str, CascadeStageConfig] = Field(description="the cascade, lowest resolution first")
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _cascade(self) -> RunConfig:
        names = list(self.train)
        if not names:
            raise ValueError("train: needs at least one stage, such as `base`")
        for name in names:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"train.{name}: a stage name is lower-case letters, digits and _")
        for before, name in zip([None, *names], names, strict=False):
            stage = self.train[name]
            want = self.train[before].resolution if before else None
            if stage.low_resolution != want:
                raise ValueError(
                    f"train.{name}.low_resolution={stage.low_resolution}: the stage before it "
                    f"({before or 'none, this is the base'}) gives {want}; set it to {want}"
                )
            if stage.resolution not in self.pack.resolutions:
                raise ValueError(
                    f"pack.resolutions={list(self.pack.resolutions)}: train.{name} needs {stage.resolution}; add it"
                )
            self._check_buckets(name, stage)
        loops: dict[str, TrainConfig | None] = {f"train.{name}": stage for name, stage in self.train.items()}
        loops |= {"encoder.pretrain": self.encoder.pretrain, "clip.train": self.clip.train}
        for key, loop in loops.items():
            if loop is not None and loop.batch_size % (self.cluster.ranks * loop.accumulation):
                raise ValueError(
                    f"{key}.batch_size={loop.batch_size}: not a multiple of cluster.ranks={self.cluster.ranks} x "
                    f"accumulation={loop.accumulation}; change one of them"
                )
        swept = self.evaluate.sweep.stage if self.evaluate.sweep else None
        for key in [*self.sample.stages, *(name for name in (self.sample.evaluate_at, swept) if name)]:
            if key not in names:
                raise ValueError(f"sample: there is no cascade stage {key!r}; the stages are {', '.join(names)}")
        return self

    def _check_buckets(self, name: str, stage: CascadeStageConfig) -> None:
        """Raises ValueError for an aspect bucket that a stage cannot be trained on."""
        multiple = unet_config(stage.model, **stage.unet).size_multiple()
        for bucket, shape in self.pack.shapes(stage.resolution).items():
            is_so = f"pack.aspects: {bucket} is {shape[1]}x{shape[0]} at resolution {stage.resolution}"
            if stage.crop is not None and stage.crop > min(shape):
                raise ValueError(f"{is_so}, and train.{name}.crop={stage.crop}; take a smaller crop")
            if stage.crop is None and any(side % multiple for side in shape):
                want = multiple // gcd(multiple, stage.resolution // min(self.pack.resolutions))
                raise ValueError(
                    f"{is_so}, and {stage.model} of train.{name} needs multiples of {multiple}; "
                    f"set pack.aspect_multiple to a multiple of {want}"
                )


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a float (1e-3 is one) and of an integer (4:3 is none), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{key}: given twice (line {node.start_mark.line + 1}); keep one")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, what) for tag, what in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(0|[-+]?[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str | bytes, name: str) -> Any:
    """The value of a YAML text; raises UserError with the line for what is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from error


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads the YAML file at ``path`` (any fsspec URL), applies ``key.path=value`` overrides, and validates."""
    if not storage.exists(path):
        raise UserError(f"CONFIG={path}: no such file; give the path of a YAML config such as configs/demo.yaml")
    tree = parse_yaml(storage.read_bytes(path), path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, this is {type(tree).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: an override is key=value, such as clip.min_similarity=0.3")
        _set(tree, key, parse_yaml(value, override))
    return validate(tree)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if below is None:
            below = tree[parent] = {}
        if not isinstance(below, dict):
            raise UserError(f"{key}: {parent} is the value {below!r}, it has no keys below it")
        tree = below
    tree[last] = value


def validate(tree: dict[str, Any]) -> RunConfig:
    """The typed config of a plain tree; the first problem is raised as a one-line UserError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:4])})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more) from error


def _explain(problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    key, value = ".".join(where), problem["input"]
    if problem["type"] == "extra_forbidden":
        names = list(_fields(where[:-1]))
        near = difflib.get_close_matches(where[-1], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(sorted(names))}"
        return f"{key}={_short(value)}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return (
        f"{key}={_short(value)}: {message}" if key and not isinstance(value, dict) else f"{key}: {message}".lstrip(": ")
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields(where: Sequence[str]) -> Iterator[str]:
    """The valid keys of the section at ``where``, followed through the classes; a dict's own keys are free."""
    node: Any = RunConfig
    for part in where:
        if isinstance(node, type) and issubclass(node, BaseModel) and part in node.model_fields:
            node = node.model_fields[part].annotation
            candidates = [node, *get_args(node)]
            node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None) or next(
                (a for c in candidates for a in get_args(c) if isinstance(a, type) and issubclass(a, BaseModel)), node
            )
    if isinstance(node, type) and issubclass(node, BaseModel):
        yield from node.model_fields


def pick(config: Config, key: str) -> Any:
    """The value at a dotted key; a dict entry counts as a key."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
