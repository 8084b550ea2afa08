"""Image embeddings of a cascade with a prior: predicted, of a given image, and between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dataprep.io.errors import UserError
from eval.clip.scorer import ClipScorer
from eval.sampling import image_embedding, loading
from eval.sampling.cascade import Cascade
from eval.sampling.config import read_cascade, write_cascade
from eval.sampling.image_embedding import slerp
from tests.helpers.cascades import WordEncoder, difference, export
from tests.helpers.priors import WIDTH, export_with_prior, make_colour_scorer

RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ((250, 5, 5), (5, 5, 250)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_with_prior(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the text encoder by the word encoder, and CLIP by one of colours."""
    monkeypatch.setattr(loading, "TextEncoder", type("Loader", (), {"from_folder": lambda *_, **__: WordEncoder()}))
    monkeypatch.setattr(ClipScorer, "load", lambda spec, device: make_colour_scorer())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The embeddings that each call's stages are given."""
    found: list[Any] = []
    real = image_embedding.embed_samples

    def noted(*arguments: Any) -> Any:
        embedding = real(*arguments)
        found.append(embedding)
        return embedding

    monkeypatch.setattr("eval.sampling.cascade.embed_samples", noted)
    return found


def embed(colour: tuple[int, int, int]) -> Tensor:
    return functional.normalize(torch.tensor([colour]).float() + 1, dim=1)


def test_a_prompt_gets_predicted_embeddings_which_no_batch_changes(folder: Path, given: list[Tensor]) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade(["a cat", "two big dogs in the rain"], num=2, seed=7)
    assert [image.size for image in samples.images] == [(16, 16)] * 4
    torch.testing.assert_close(given[0].norm(dim=1), torch.ones(4))
    assert float((given[0][2] - given[0][3]).abs().max()) > 1e-3  # each image has an embedding of its own
    alone = cascade("two big dogs in the rain", num=2, seed=7, batch_size=1)
    torch.testing.assert_close(given[1], given[0][2:])
    assert difference(samples.images[3], alone.images[1]) <= 2 < difference(samples.images[3], samples.images[1])
    assert list(samples.info(0)["settings"]) == ["prior", "base", "sr"]
    other = Cascade.from_pretrained(folder)("a cat", num=2, seed=7, guidance={"prior": 5.0})
    assert difference(other.images[0], samples.images[0]) > 2


def test_the_candidate_nearest_to_the_caption_is_taken(folder: Path, given: list[Tensor]) -> None:
    cascade = Cascade.from_pretrained(folder)
    cascade(["rrr", "ggg"], num=3, seed=1, candidates={"prior": 1})
    cascade(["rrr", "ggg"], num=3, seed=1, candidates={"prior": 8})
    caption = torch.from_numpy(make_colour_scorer().text_features(["rrr"] * 3 + ["ggg"] * 3))
    first, best = ((embedding * caption).sum(1) for embedding in given)
    assert bool((best >= first - 1e-6).all()) and float((best - first).max()) > 0.01


def test_variations_have_the_embedding_of_the_image_and_noise_of_their_own(folder: Path, given: list[Tensor]) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade([""], num=3, variations_of=RED)
    torch.testing.assert_close(given[0], embed((250, 5, 5)).expand(3, -1))
    assert difference(samples.images[0], samples.images[1]) > 2
    other = cascade([""], num=3, variations_of=BLUE)
    assert difference(samples.images[0], other.images[0]) > 2
    assert "prior" not in samples.info(0)["settings"] and samples.info(0)["variations_of"].startswith("image ")
    with_text = cascade("a cat", num=3, variations_of=RED)
    torch.testing.assert_close(given[2], given[0])
    assert difference(samples.images[0], with_text.images[0]) > 2


def test_an_interpolation_goes_from_one_end_to_the_other_with_one_noise(folder: Path, given: list[Tensor]) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade([""], num=5, variations_of=RED, to_image=BLUE)
    torch.testing.assert_close(given[0][[0, -1]], torch.cat([embed((250, 5, 5)), embed((5, 5, 250))]))
    cosines = (given[0][1:] * given[0][:-1]).sum(1)
    torch.testing.assert_close(cosines, cosines[:1].expand(4))  # steps of one length
    ends = [cascade([""], num=1, variations_of=image).images[0] for image in (RED, BLUE)]
    assert difference(samples.images[0], ends[0]) <= 2 and difference(samples.images[4], ends[1]) <= 2
    cascade([""], num=3, variations_of=RED, to_prompt="bbb")
    torch.testing.assert_close(given[3][0], given[0][0])
    cascade(["bbb"], num=1)
    torch.testing.assert_close(given[3][2], given[4][0])


def test_guidance_goes_away_from_no_embedding_or_the_negative_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Tensor, Tensor | None]] = []
    real = image_embedding.run_sampler

    def noted(stage: Any, settings: Any, inputs: Any, *rest: Any) -> Any:
        seen.append(
            (settings.threshold, inputs.vectors["pooled_text_BE"], inputs.negative_vectors.get("pooled_text_BE"))
        )
        return real(stage, settings, inputs, *rest)

    monkeypatch.setattr(image_embedding, "run_sampler", noted)
    cascade = Cascade.from_pretrained(folder)
    plain = cascade("rrr", seed=2)
    assert seen[0][0] == "none" and seen[0][2] is None
    away = cascade("rrr", seed=2, negative="ggg")
    caption, negative = (torch.from_numpy(make_colour_scorer().text_features([text])) for text in ("rrr", "ggg"))
    torch.testing.assert_close(seen[-1][1], caption)
    other = seen[-1][2]
    assert other is not None
    torch.testing.assert_close(other, negative)
    assert difference(plain.images[0], away.images[0]) > 2


def test_a_stage_that_was_trained_without_text_gets_none(tmp_path: Path) -> None:
    blind = Cascade.from_pretrained(export_with_prior(tmp_path / "blind", text=False))
    stage = blind.stages[0]
    reading = blind.with_stages([replace(stage, entry=stage.entry.model_copy(update={"text": True}))])
    for guidance in (1.0, 3.0):
        drawn = []
        for cascade in (blind, reading):
            encoder, images = cascade.encoder, []
            for scale in (1, -1):  # another text under the same prompt, of which the noise is a function
                cascade.encoder = Scaled(encoder, scale)
                images.append(cascade("a cat", variations_of=RED, stop_at="base", guidance=guidance).images[0])
            drawn.append(difference(*images))
        assert drawn[0] == 0 and drawn[1] > 2


class Scaled(WordEncoder):
    """A text encoder whose output is multiplied."""

    def __init__(self, encoder: Any, scale: float) -> None:
        self.encoder, self.scale = encoder, scale

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        return [self.scale * text for text in WordEncoder().encode(captions)]


def test_later_stages_run_without_a_prior(folder: Path, given: list[Tensor]) -> None:
    cascade = Cascade.from_pretrained(folder)
    samples = cascade("a cat", image=RED, start_at="sr", strength=0.5)
    assert samples.images[0].size == (16, 16) and given == [None]
    assert list(samples.info(0)["settings"]) == ["sr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to_image": BLUE}, "to_image: is the end of an interpolation; give the image that it begins with"),
        ({"to_prompt": "x"}, "to_prompt 'x': is the end of an interpolation"),
        ({"variations_of": RED, "to_image": BLUE, "to_prompt": "x"}, "an interpolation has one end"),
        ({"variations_of": RED, "to_image": BLUE, "num": 1}, "num 1: an interpolation has two ends; take 2 or more"),
        ({"variations_of": RED, "best_of": 2}, "best_of 2: CLIP chooses by the prompt, and variations are of an image"),
        (
            {"variations_of": RED, "start_at": "sr", "image": RED},
            "no stage that runs is conditioned on image embeddings",
        ),
        ({"candidates": {"prior": 0}}, "candidates 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cascade.from_pretrained(folder)("a cat", **({"num": 2} | options))


def test_parts_that_do_not_go_together_are_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Cascade.from_pretrained(export(tmp_path / "plain"))
    with pytest.raises(UserError, match="no stage that runs is conditioned on image embeddings; train a cascade with"):
        plain("a cat", variations_of=RED)
    cascade = Cascade.from_pretrained(folder)
    alone = Cascade(cascade.stages, cascade.encoder, clip=cascade.clip)
    assert alone([""], variations_of=RED).images
    with pytest.raises(UserError, match="this cascade has no prior, which predicts an image embedding of it"):
        alone("a cat")
    with pytest.raises(UserError, match="this cascade has no prior"):
        alone([""], num=2, variations_of=RED, to_prompt="a cat")
    config = read_cascade(export_with_prior(tmp_path / "silent"))
    write_cascade(tmp_path / "silent", config.model_copy(update={"clip": None}))
    with pytest.raises(UserError, match=r"prior prior: works in the space of a CLIP; name it as clip in cascade\.json"):
        Cascade.from_pretrained(tmp_path / "silent")

    class Wide:
        device = "cpu"

        def text_features(self, captions: Any) -> np.ndarray:
            return np.ones((len(captions), WIDTH + 1), np.float32)

        image_features = text_features

    monkeypatch.setattr(ClipScorer, "load", lambda spec, device: Wide())
    for options in (dict[str, Any](), {"variations_of": RED}):
        with pytest.raises(UserError, match=r"clip: its embeddings have 4 numbers, stage \w+ was trained on 3"):
            Cascade.from_pretrained(folder)("a cat", **options)


def test_the_way_between_two_vectors() -> None:
    one, two = functional.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), dim=1).split(1)
    shares = torch.linspace(0, 1, 7)
    way = slerp(one, two, shares)
    torch.testing.assert_close(way.norm(dim=1), torch.ones(7))
    angle = torch.acos((one * two).sum())
    torch.testing.assert_close(torch.acos((way[1:-1] @ one.T).flatten()), shares[1:-1] * angle, atol=1e-4, rtol=0)
    torch.testing.assert_close(slerp(one, one, shares), one.expand(7, -1))
