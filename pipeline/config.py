"""The config of a run: one strict, typed tree, read from YAML with ``key=value`` overrides.

Each section's class lives beside the code that it configures; here they are only put together. Unknown keys, wrong
types and impossible combinations raise `UserError` naming the key, the value and the nearest valid key or the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pydantic import Field, create_model, field_validator, model_validator

from dataprep.annotate_config import AnnotateConfig
from dataprep.card.config import CardConfig
from dataprep.download.config import DownloadConfig
from dataprep.filters.config import SelectConfig
from dataprep.filters.source_rules import merge_source_keys
from dataprep.io.config import Config
from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from dataprep.io.seeds import MAX_SEED
from dataprep.listing.config import ListingConfig
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from eval.captioning.config import CaptionConfig
from eval.clip.config import ScoreConfig
from eval.metrics.config import EvaluateConfig
from eval.sampling.config import SamplingConfig
from pipeline.runtime.config import ClusterConfig
from pipeline.stages.clip import ClipConfig
from pipeline.stages.graph import STAGES
from pipeline.stages.sample import SampleConfig
from pipeline.stages.subject import SubjectConfig
from pipeline.stages.text_encoder import EncoderConfig
from train.config import TrainConfig
from train.tasks.cascade_config import CascadeTraining
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.prior_config import PriorTrainingConfig
from train.tasks.text_tuning_config import TextTuningConfig
from train.tasks.vq_config import VqTrainingConfig

DISTILLED_SETTINGS = ("sampler", "steps", "spacing", "timesteps", "log_snrs", "guidance", "threshold")
DenoiserTraining = DiffusionTrainingConfig | PriorTrainingConfig
NetworkTraining = DenoiserTraining | VqTrainingConfig


@runtime_checkable
class DependentTraining(Protocol):
    """A training that takes something from other trainings of the section."""

    def needed(self) -> tuple[str, ...]:
        """Returns their names."""

    def take_from(self, trainings: Mapping[str, Any]) -> Any:
        """Returns the config with what it takes from the configs of others; ValueError where that does not fit."""


@runtime_checkable
class ImageTraining(Protocol):
    """A training that reads packed images, as far as they concern it."""

    resolution: int
    crop: int | None

    def stored_sizes(self) -> tuple[int, ...]:
        """Returns the resolutions that it reads."""

    def side_divisors(self) -> dict[str, int]:
        """Returns the numbers that divide height and width of every image to train on, by the key that needs them."""


class RunConfig(Config):
    """Everything that a run is made of."""

    run: str = Field(description="the run folder: a path, s3://... or gs://...")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="the seed from which all randomness derives")
    subject: SubjectConfig | None = Field(
        None, description="a subject to learn from a few images; see docs/finetuning.md"
    )
    listing: ListingConfig
    download: DownloadConfig = DownloadConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    encoder: EncoderConfig
    clip: ClipConfig
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    caption: CaptionConfig = CaptionConfig()
    pack: PackConfig = PackConfig()
    text_tuning: TextTuningConfig | None = Field(
        None, description="words that the text encoder learns, or LoRA over it; see docs/finetuning.md"
    )
    embed: EmbedConfig = EmbedConfig()
    card: CardConfig = CardConfig()
    train: dict[str, CascadeTraining] = Field(
        description="the cascade, lowest resolution first, and what its stages need; `task` says what an entry trains"
    )
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("train")
    @classmethod
    def _connect_trainings(cls, train: dict[str, Any]) -> dict[str, Any]:
        """Gives trainings what they take from others of the section."""
        connected = {}
        for name, training in train.items():
            try:
                connected[name] = training.take_from(train) if isinstance(training, DependentTraining) else training
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from error
        return connected

    def cascade(self) -> dict[str, DiffusionTrainingConfig]:
        """Returns the entries of `train` that generate images, in their order."""
        return {name: entry for name, entry in self.train.items() if isinstance(entry, DiffusionTrainingConfig)}

    def denoisers(self) -> dict[str, DenoiserTraining]:
        """Returns the entries of `train` that denoise: those of the cascade, and its prior."""
        kinds = (DiffusionTrainingConfig, PriorTrainingConfig)
        return {name: entry for name, entry in self.train.items() if isinstance(entry, kinds)}

    def networks(self) -> dict[str, NetworkTraining]:
        """Returns all entries of `train`: those that denoise, and the autoencoders of refinement stages."""
        return {name: entry for name, entry in self.train.items() if isinstance(entry, NetworkTraining)}

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if (self.listing.source == "subject") != (self.subject is not None):
            raise ValueError(
                f"listing.source={self.listing.source!r} and section `subject` go together; set both, or neither"
            )
        if self.pack.blur_faces is not None and self.annotate.faces is None:
            raise ValueError(
                f"pack.blur_faces={self.pack.blur_faces} blurs what annotate.faces finds; set annotate.faces, "
                "such as {detector: cascade}, or pack.blur_faces to null"
            )
        self._check_sources()
        self._check_captions()
        self._check_cascade()
        self._check_trainings()
        self._check_text_tuning()
        self._check_batches()
        self._check_stage_names()
        self._check_distilled()
        self._check_fit()
        return self

    def _check_sources(self) -> None:
        """Raises ValueError where thresholds of a source do not fit those of section `select`."""
        for name, source in self.listing.sources.items():
            try:
                merge_source_keys(self.select, source.select)
            except ValueError as error:
                raise ValueError(f"listing.sources.{name}.select: {error}") from error

    def list_captions(self) -> dict[str, dict[str, float]]:
        """Returns how often each caption of an image is trained on: source -> caption -> weight."""
        sources = self.listing.list_sources()
        return {name: source.captions or self.pack.captions for name, source in sources.items()}

    def _check_captions(self) -> None:
        """Raises ValueError where captions would be written that nothing is trained on."""
        used = {name for captions in self.list_captions().values() for name in captions}
        if self.caption.model is not None and not used.intersection(self.caption.prompts):
            names = ", ".join(self.caption.prompts)
            raise ValueError(
                f"caption.model={self.caption.model}: nothing is trained on the captions that it would write "
                f"({names}); name those to train on in pack.captions, or leave the model out"
            )

    def _check_cascade(self) -> None:
        """Raises ValueError for stages that cannot follow each other, or that the embedded captions do not serve."""
        cascade = self.cascade()
        names = list(cascade)
        if not names:
            raise ValueError("train: needs at least one stage, such as `base`")
        for before, name in zip([None, *names], names, strict=False):
            stage = cascade[name]
            want = cascade[before].resolution if before else None
            if stage.low_resolution != want:
                raise ValueError(
                    f"train.{name}.low_resolution={stage.low_resolution}: the stage before it "
                    f"({before or 'none, this is the base'}) gives {want}; set it to {want}"
                )
            tokens = stage.denoiser_config().caption_tokens()
            if tokens is not None and (not self.embed.pad or self.embed.max_length != tokens):
                raise ValueError(
                    f"embed.pad={str(self.embed.pad).lower()}, embed.max_length={self.embed.max_length}: {stage.model} "
                    f"of train.{name} reads {tokens} tokens with padding; set pad to true and max_length to {tokens}"
                )
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        """Raises ValueError for image embeddings that are used but not made, or made but not used."""
        priors = [name for name, entry in self.train.items() if isinstance(entry, PriorTrainingConfig)]
        decoders = [name for name, stage in self.cascade().items() if stage.image_embedding]
        if len(priors) > 1:
            raise ValueError(f"train.{priors[1]}: a cascade has one prior, which train.{priors[0]} is; leave one out")
        if priors and not decoders:
            raise ValueError(
                f"train.{priors[0]}: no stage takes its image embeddings; set image_embedding: true for one, such as "
                f"train.{next(iter(self.cascade()))}"
            )
        if decoders and not priors:
            raise ValueError(
                f"train.{decoders[0]}.image_embedding=true: nothing predicts the embedding of an image that is to be "
                "made; add an entry of task: prior"
            )
        for name, entry in self.denoisers().items():
            if missing := next((column for column in entry.vector_columns() if column not in self.pack.features), None):
                raise ValueError(f"pack.features={list(self.pack.features)}: train.{name} reads {missing}; add it")
        several = [name for name, source in self.listing.list_sources().items() if source.captions is not None]
        if TEXT_FEATURES in self.pack.features and several:
            raise ValueError(
                f"pack.features: {TEXT_FEATURES} is that of a row's own caption, and listing.sources.{several[0]} has "
                "captions; leave one of the two out"
            )
        wanted = {IMAGE_FEATURES: "embeddings", TEXT_FEATURES: "text_embeddings"}
        if lost := next((name for name in self.pack.features if not getattr(self.score, wanted[name])), None):
            raise ValueError(f"pack.features: score does not keep {lost}; set score.{wanted[lost]} to true")

    def _check_trainings(self) -> None:
        """Raises ValueError for a training that the packed images do not serve."""
        for name, training in self.train.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"train.{name}: a stage name is lower-case letters, digits and _")
            if not isinstance(training, ImageTraining):
                continue
            for size in training.stored_sizes():
                if size not in self.pack.resolutions:
                    raise ValueError(
                        f"pack.resolutions={list(self.pack.resolutions)}: train.{name} needs {size}; add it"
                    )
            self._check_buckets(name, training)

    def _check_text_tuning(self) -> None:
        """Raises ValueError where the encoder cannot learn from the packed images."""
        tuning = self.text_tuning
        if tuning is not None and tuning.resolution not in self.pack.resolutions:
            raise ValueError(
                f"pack.resolutions={list(self.pack.resolutions)}: text_tuning needs {tuning.resolution}; add it"
            )

    def _check_batches(self) -> None:
        """Raises ValueError for a batch that the ranks cannot share evenly."""
        loops: dict[str, TrainConfig | None] = {f"train.{name}": stage for name, stage in self.train.items()}
        loops |= {"encoder.pretrain": self.encoder.pretrain, "clip.train": self.clip.train}
        loops["text_tuning"] = self.text_tuning
        for key, loop in loops.items():
            stage = {"encoder.pretrain": "encoder", "clip.train": "clip"}.get(key, key)
            own = self.cluster.stage_resources(stage).ranks
            ranks, source = own or self.cluster.ranks, "cluster.stages: ranks" if own else "cluster.ranks"
            # None: as many as divide the batch.
            if loop is not None and ranks is not None and loop.batch_size % (ranks * loop.accumulation):
                raise ValueError(
                    f"{key}.batch_size={loop.batch_size}: not a multiple of {source}={ranks} x "
                    f"accumulation={loop.accumulation}; change one of them"
                )

    def _check_stage_names(self) -> None:
        """Raises ValueError where `sample` or `evaluate` names a cascade stage that does not exist."""
        swept = self.evaluate.sweep.stage if self.evaluate.sweep else None
        fitted = self.sample.fit.stages if self.sample.fit is not None else ()
        named = [*self.sample.guides, *fitted, *(name for name in (self.sample.evaluate_at, swept) if name)]
        for names, stages in ((self.sample.stages, self.denoisers()), (named, self.cascade())):
            if unknown := next((key for key in names if key not in stages), None):
                raise ValueError(f"sample: there is no cascade stage {unknown!r}; the stages are {', '.join(stages)}")

    def _check_distilled(self) -> None:
        """Raises ValueError for other sampler settings than a stage is distilled to, and for what needs others."""
        plain, evaluate = SamplingConfig(), self.evaluate
        swept = (evaluate.sweep.stage or next(iter(self.cascade()))) if evaluate.sweep else None
        for name, stage in self.cascade().items():
            if not isinstance(stage, DistillationTrainingConfig):
                continue
            given = self.sample.stages.get(name, plain)
            for key in DISTILLED_SETTINGS:
                if getattr(given, key) != getattr(plain, key):
                    raise ValueError(
                        f"sample.stages.{name}.{key}={getattr(given, key)}: train.{name} is distilled, and brings its "
                        "own; leave it out"
                    )
            if swept == name or evaluate.likelihood is not None:
                what = f"sweep.stage={name}" if swept == name else "likelihood"
                raise ValueError(
                    f"evaluate.{what}: train.{name} is distilled, so it has one setting and no likelihood; leave it out"
                )

    def _check_fit(self) -> None:
        """Raises ValueError for stages whose noise levels cannot be fitted, or that are not guided."""
        fit = self.sample.fit
        named = {"fit.stages": fit.stages if fit is not None else (), "guides": tuple(self.sample.guides)}
        for key, names in named.items():
            if other := next((name for name in names if self.cascade()[name].trains != "diffusion"), None):
                raise ValueError(f"sample.{key}: {other} does not denoise, so it has no such thing; leave it out")
        for name in fit.stages if fit is not None else ():
            if self.cascade()[name].image_embedding:
                raise ValueError(f"sample.fit.stages: {name} takes image embeddings, which a fit lacks; leave it out")
            settings = self.sample.stages.get(name, SamplingConfig())
            if fit is not None and settings.steps > fit.levels:
                raise ValueError(
                    f"sample.fit.levels={fit.levels}: sample.stages.{name}.steps={settings.steps} of them are chosen; "
                    "set levels to more"
                )
            if settings.timesteps or settings.log_snrs or isinstance(self.train[name], DistillationTrainingConfig):
                raise ValueError(
                    f"sample.fit.stages: {name} has noise levels of its own (timesteps, log_snrs or distillation); "
                    "leave it out"
                )

    def _check_buckets(self, name: str, stage: ImageTraining) -> None:
        """Raises ValueError for an aspect bucket that a stage cannot be trained on."""
        if stage.crop is None:
            for key, multiple in stage.side_divisors().items():
                self.pack.check_sides(stage.resolution, multiple, f"train.{name}.{key}")
            return
        for bucket, shape in self.pack.shapes(stage.resolution).items():
            if stage.crop > min(shape):
                raise ValueError(
                    f"pack.aspects: {bucket} is {shape[1]}x{shape[0]} at resolution {stage.resolution}, and "
                    f"train.{name}.crop={stage.crop}; take a smaller crop"
                )


def run_config_type() -> type[RunConfig]:
    """Returns `RunConfig` with a section more for each stage that brings its own, see `StageType.section`."""
    sections = {kind.name: kind.section for kind in STAGES.values() if kind.section is not None}
    fields: dict[str, Any] = {name: (section, section()) for name, section in sections.items()}
    return create_model("RunConfig", __base__=RunConfig, **fields) if fields else RunConfig
