"""Image embeddings that stages are conditioned on: of a given image, predicted by a prior, or between two of these.

Ramesh et al. 2022 (arXiv 2204.06125): the prior of section 2.2, variations and interpolations of section 3.
Shape legend: N images, E width of CLIP's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dataprep.io.errors import UserError
from eval.clip.scorer import ClipScorer
from eval.sampling.cascade_sampler import SampleKey
from eval.sampling.image_editing import to_rgb
from eval.sampling.options import SamplingOptions
from eval.sampling.plan import SamplingPlan, find_taker
from eval.sampling.prompts import hash_prompt
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, pad_text, run_sampler
from train.models.prior.embedding import image_to_embedding

PRIOR_NUMBER = 1000  # of the prior in a noise seed, where a stage has its position in the cascade
TOGETHER = 256  # embeddings that are predicted at once


def embed_samples(
    plan: SamplingPlan, keys: Sequence[SampleKey], options: SamplingOptions, find_scorer: Callable[[], ClipScorer]
) -> Tensor | None:
    """Returns the image embedding of each (prompt, index), unit vectors (N, E); None where no stage takes one.

    They are those of a given image, predicted by the prior, or from the one to the other (section 3.2), as ``options``
    say. Raises UserError for what the stages or their CLIP cannot do.
    """
    taker, source = find_taker(plan.stages), options.variations_of
    if taker is None:
        if source is not None:
            raise UserError(
                "variations_of: no stage that runs is conditioned on image embeddings; train a cascade with a prior, "
                "see docs/dalle2.md"
            )
        return None
    if plan.prior is None and (source is None or options.to_prompt):
        raise UserError(
            "prompt: this cascade has no prior, which predicts an image embedding of it; give variations_of"
        )
    scorer = find_scorer()
    if source is None:
        return predict_embeddings(scorer, plan, keys)
    start_1E = _encode_image(scorer, source, taker)
    if not options.interpolates:
        return start_1E.expand(len(keys), -1)
    if options.to_image is not None:
        end_1E = _encode_image(scorer, options.to_image, taker)
    else:
        end_1E = predict_embeddings(scorer, plan, [(options.to_prompt, 0)])
    shares = [index / (options.num - 1) for _, index in keys]
    return slerp(start_1E, end_1E, torch.tensor(shares, device=start_1E.device))


def predict_embeddings(scorer: ClipScorer, plan: SamplingPlan, keys: Sequence[SampleKey]) -> Tensor:
    """Predicts an image embedding per (prompt, index): unit vectors (N, E), functions of these and the plan's seed.

    Of ``candidates`` embeddings the one that is closest to CLIP's embedding of the text is taken (section 2.2).
    """
    prior = plan.prior
    assert prior is not None
    # Clipping is for pixels: an embedding has no largest value.
    settings = plan.settings[prior.entry.name].model_copy(update={"threshold": "none"})
    found = []
    for start in range(0, len(keys), TOGETHER):
        part = keys[start : start + TOGETHER]
        inputs = _prepare_inputs(scorer, plan, [prompt for prompt, _ in part], prior)
        drawn = []
        for candidate in range(settings.candidates):
            seeds = [(plan.seed, hash_prompt(prompt), index, PRIOR_NUMBER, candidate) for prompt, index in part]
            drawn.append(image_to_embedding(run_sampler(prior, settings, inputs, seeds, (1, 1))))
        drawn_CNE = torch.stack(drawn)
        best_N = (drawn_CNE * inputs.vectors["pooled_text_BE"]).sum(-1).argmax(0)
        found.append(drawn_CNE[best_N, torch.arange(len(part), device=best_N.device)])
    return torch.cat(found)


def _prepare_inputs(
    scorer: ClipScorer, plan: SamplingPlan, prompts: Sequence[str], prior: LoadedStage
) -> SamplerInputs:
    """Returns captions, and the negative one if there is one, as tokens and as CLIP's embeddings."""
    device = torch.device(scorer.device)

    def encode(texts: Sequence[str]) -> Tensor:
        return _check_width(torch.from_numpy(scorer.text_features(texts)).to(device), prior)

    negative, other = None, {}
    if plan.negative is not None:
        negative = pad_text([plan.negative] * len(prompts), device)
        other = {"pooled_text_BE": encode([plan.negative_prompt]).expand(len(prompts), -1)}
    text = pad_text([plan.texts[prompt] for prompt in prompts], device)
    return SamplerInputs(text, negative, vectors={"pooled_text_BE": encode(prompts)}, negative_vectors=other)


def _encode_image(scorer: ClipScorer, image: Image.Image, taker: LoadedStage) -> Tensor:
    """Returns CLIP's embedding of an image, a unit vector (1, E)."""
    return _check_width(torch.from_numpy(scorer.image_features([to_rgb(image)])).to(scorer.device), taker)


def _check_width(embedding_NE: Tensor, taker: LoadedStage) -> Tensor:
    """Returns embeddings; raises UserError where they are not as wide as those that ``taker`` was trained on."""
    wanted = next(iter(taker.model.config.vector_widths().values()))
    if embedding_NE.shape[1] != wanted:
        raise UserError(
            f"clip: its embeddings have {embedding_NE.shape[1]} numbers, stage {taker.entry.name} was trained on "
            f"{wanted}; name the CLIP that it was trained with in cascade.json"
        )
    return embedding_NE


def slerp(start_1E: Tensor, end_1E: Tensor, shares_N: Tensor) -> Tensor:
    """Returns unit vectors (N, E) on the great circle from one unit vector to another (Shoemake 1985), by share.

    Of opposite vectors there is no shortest way; then, and where both are the same, the mean counts.
    """
    angle = (start_1E * end_1E).sum().clamp(-1, 1).acos()
    share = shares_N[:, None]
    if float(angle.sin()) < 1e-4:
        return functional.normalize((1 - share) * start_1E + share * end_1E, dim=1)
    return (((1 - share) * angle).sin() * start_1E + (share * angle).sin() * end_1E) / angle.sin()
