"""Generates images from text with a trained cascade; needs neither Ray nor DeepSpeed.

    cascade = Cascade.from_pretrained("export")
    images = cascade("two small red circles left of a blue square", num=4, seed=1).images

docs/sampling.md describes every option.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from dataprep.io.device_settings import pick_device
from dataprep.io.errors import UserError
from dataprep.io.storage import sha256_file
from eval.captioning.prompt_expander import PromptExpander, expand_prompts
from eval.clip.scorer import ClipScorer, ClipSpec
from eval.sampling.adapters import AdapterChoice, apply_adapters
from eval.sampling.cascade_sampler import sample_plan
from eval.sampling.config import CascadeConfig, read_cascade, resolve_paths
from eval.sampling.image_embedding import embed_samples
from eval.sampling.loading import load_encoder, load_prior, load_stages
from eval.sampling.options import SamplingOptions, check_options, describe_image
from eval.sampling.plan import make_plan, select_stages
from eval.sampling.prompt_encoding import PromptEncoder, encode_prompts
from eval.sampling.prompts import clean_prompt
from eval.sampling.samples import Samples
from eval.sampling.stage_sampler import LoadedStage
from eval.sampling.stored_weights import StoredWeights, store_weights
from eval.sampling.watermark import can_carry
from train.models.export import digest_weights


class Cascade:
    """A text encoder and diffusion stages from the base upwards. Immutable; calls keep no state."""

    def __init__(
        self,
        stages: Sequence[LoadedStage],
        encoder: PromptEncoder,
        device: str | torch.device = "cpu",
        clip: ClipSpec | None = None,
        watermark: str | None = None,
        adapters: Sequence[AdapterChoice] = (),
        weights: StoredWeights = "whole",
        expander: PromptExpander | None = None,
        prior: LoadedStage | None = None,
    ) -> None:
        """``clip`` ranks candidates (`ClipScorer.load`); ``watermark`` is the text of an invisible mark.

        ``adapters`` are those that are merged into ``stages`` and ``encoder``, ``weights`` says how these are kept: for
        the images' metadata. ``expander`` writes prompts out: what it writes is drawn, and everything else, noise and
        ranking too, goes by the prompt. ``prior`` predicts the image embeddings that stages are conditioned on, in the
        space of ``clip``.
        """
        self.stages, self.encoder, self.device = tuple(stages), encoder, torch.device(device)
        self.clip, self.watermark, self.adapters, self.weights = clip, watermark, tuple(adapters), weights
        self.expander, self.prior = expander, prior

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "auto",
        watermark: str | None = None,
        adapters: Sequence[str] = (),
        compiled: bool = False,
        weights: StoredWeights = "whole",
    ) -> Cascade:
        """Loads an exported cascade: a local folder with ``cascade.json``, the stages and the text encoder.

        ``device``: auto (a GPU if there is one), cpu, cuda or cuda:1. ``watermark`` replaces the folder's own;
        ``adapters`` are merged in, each ``[STAGE=]FILE[:WEIGHT]``. ``compiled``: with torch.compile, whose first call
        of each size takes minutes; for many images. ``weights``: how they are kept in memory, see `store_weights`.
        Raises UserError for a part that is missing, broken or untrained.
        """
        config = resolve_paths(read_cascade(folder), folder)
        config = config.model_copy(update={"watermark": watermark or config.watermark})
        return cls.from_config(config, device, [AdapterChoice.parse(text) for text in adapters], compiled, weights)

    @classmethod
    def from_config(
        cls,
        config: CascadeConfig,
        device: str = "auto",
        adapters: Sequence[AdapterChoice] = (),
        compiled: bool = False,
        weights: StoredWeights = "whole",
    ) -> Cascade:
        """Loads the parts that ``config`` names by whole paths, or by hub names. Raises as `from_pretrained`."""
        device = pick_device(device)
        stages, prior = load_stages(config, device, compiled), load_prior(config, device)
        parts = [*([] if prior is None else [prior]), *stages]
        encoder = load_encoder(config, parts, device)
        clip = {"model": config.clip, "pretrained": config.clip_pretrained} if config.clip else None
        merged = apply_adapters(adapters, parts, lambda: encoder)
        for part in parts:
            for network in (part.model, part.guide):
                if isinstance(network, nn.Module):
                    store_weights(network, weights)
        expander = PromptExpander.load(config.expand, device) if config.expand else None
        return cls(stages, encoder, device, clip, config.watermark, merged, weights, expander, prior)

    def with_stages(self, stages: Sequence[LoadedStage]) -> Self:
        """Returns the cascade with other stages and the same other parts."""
        same = (self.encoder, self.device, self.clip, self.watermark, self.adapters, self.weights)
        return type(self)(stages, *same, self.expander, self.prior)

    def __call__(self, prompts: str | Sequence[str], num: int = 1, seed: int = 0, **options: Any) -> Samples:
        """`sample` with the fields of `SamplingOptions` and of `SamplingConfig` as keywords.

        A sampler setting is one value for all stages, or {stage name: value}: ``steps={"base": 8}``, ``guidance=2``.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return self.sample(prompts, SamplingOptions.from_keywords(num=num, seed=seed, **options))

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        """Samples ``options.num`` images per prompt.

        The image of (prompt, seed, index) is the same in any batch, up to rounding. Raises UserError for no prompt, an
        unknown stage or setting, a number out of range, and an image, mask or size that does not fit.
        """
        if not prompts:
            raise UserError("prompts is empty; give one or more")
        prompts = [clean_prompt(prompt) for prompt in prompts]
        options = replace(options, negative=clean_prompt(options.negative, "negative prompt"))
        stages = self.span(options.start_at, options.stop_at)
        check_options(options, stages[0].entry, [part.entry.name for part in self.parts])
        expanded = expand_prompts(self.expander, prompts)
        drawn = [expanded.get(prompt, prompt) for prompt in prompts]
        written = [*drawn, options.negative, *([options.to_prompt] if options.to_prompt else [])]
        texts = encode_prompts(self.encoder, written, options.overlong)
        if options.variations_of is not None:
            texts[""] = texts[options.negative][:0]  # no caption at all, which is not the empty one
        plan = make_plan(self.stages, stages, options, texts, self.prior)
        plan = replace(plan, texts=texts | {prompt: texts[text] for prompt, text in zip(prompts, drawn, strict=True)})
        keys = [(prompt, index) for prompt in prompts for index in range(options.num * options.best_of)]
        embedding_NE = embed_samples(plan, keys, options, lambda: self.scorer)
        samples = sample_plan(plan, keys, options.batch_size, self.device, self.watermark, embedding_NE)
        marked = self.watermark if can_carry(plan.size) else None
        making: dict[str, Any] = {
            "negative": options.negative or None,
            "seed": plan.seed,
            "size": list(plan.size),
            "model": self.digest,
            "settings": {name: value.model_dump(mode="json") for name, value in plan.settings.items()},
            "watermark": marked,
        }
        for name in ("variations_of", "to_image"):
            if (image := getattr(options, name)) is not None:
                making[name] = describe_image(image)
        if options.to_prompt:
            making["to_prompt"] = options.to_prompt
        if self.adapters:
            making["adapters"] = [vars(choice) for choice in self.adapters]
        if self.weights != "whole":
            making["weights"] = self.weights
        if self.expander is not None:
            making["expand"] = self.expander.config.model
        samples = replace(samples, making=making, expanded=expanded)
        return samples if options.best_of == 1 else self._pick_best(samples, options.best_of)

    def span(self, start_at: str | None = None, stop_at: str | None = None) -> tuple[LoadedStage, ...]:
        """Returns the stages from ``start_at`` to ``stop_at``; see `select_stages`."""
        return select_stages(self.stages, start_at, stop_at)

    @property
    def parts(self) -> tuple[LoadedStage, ...]:
        """The prior, if there is one, and the stages."""
        return (*(() if self.prior is None else (self.prior,)), *self.stages)

    def _pick_best(self, samples: Samples, best_of: int) -> Samples:
        scores = self.scorer.similarity([np.asarray(image) for image in samples.images], samples.prompts)
        groups = scores.reshape(-1, best_of)
        return samples.select((groups.argmax(1) + np.arange(len(groups)) * best_of).tolist(), scores.tolist())

    @cached_property
    def scorer(self) -> ClipScorer:
        """The CLIP that picks candidates; UserError if the cascade has none."""
        if self.clip is None:
            raise UserError(
                "clip: this cascade has none, by which best_of chooses and images are embedded; leave best_of out, or "
                "name one in cascade.json"
            )
        return ClipScorer.load(self.clip, str(self.device))

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the weights of the prior and all stages, which identify the model in an image's metadata.

        Those of a stored stage were hashed when it was exported, and are the same on every device.
        """
        known = [stage.digest if not self.adapters else "" for stage in self.parts]  # adapters change the weights
        parts = [
            digest or digest_weights(stage.model.state_dict()) for digest, stage in zip(known, self.parts, strict=True)
        ]
        parts += [stage.guide_digest for stage in self.stages]
        parts += [self.expander.config.model_dump_json()] if self.expander else []  # it draws other images of a prompt
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def additions(self) -> dict[str, Any]:
        """What the images depend on beside `digest`: the adapters, by the hashes of their files, and kept weights."""
        found: dict[str, Any] = {}
        if self.adapters:
            found["adapters"] = [
                {"sha256": sha256_file(choice.path)[0], "weight": choice.weight, "stage": choice.stage}
                for choice in self.adapters
            ]
        return found if self.weights == "whole" else found | {"weights": self.weights}
