"""A text encoder through a denoiser: the same as encoding first, and gradients reach the learned words alone."""

from __future__ import annotations

import pytest
import torch

from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import add_learned_tokens, add_words
from tests.helpers.encoders import save_encoder
from tests.helpers.unets import build_awake, unet_config
from train.models.base import Conditions
from train.models.tuned_text import TunedText

TEXTS = ["a zwx square", "red circle left of a zwx", "a blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"), "t5")


def make(folder: str) -> tuple[TunedText, TextEncoder, torch.Tensor]:
    """Returns a model with one learned word, its tokenizer's encoder, and the word's vector."""
    start_D = torch.linspace(-1, 1, 32)
    encoder = TextEncoder.from_folder(folder)
    ids = add_words(encoder, ["zwx"])
    model = TunedText(encoder.model, build_awake(unet_config("micro-base", text_dim=32)), ids, start_D[None], 0.5)
    return model, encoder, start_D


def run(model: TunedText, encoder: TextEncoder, texts: list[str]) -> torch.Tensor:
    """Returns the prediction for one noisy image per text."""
    padded = encoder.pad_ids(encoder.tokenize(texts)[0])
    x_BCHW = torch.randn(len(texts), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    output: torch.Tensor = model(x_BCHW, torch.zeros(len(texts)), padded.ids_BL, padded.mask_BL, padded.mask_BL.bool())
    return output


def test_it_is_encoding_with_the_word_in_the_table_then_denoising(folder: str) -> None:
    model, encoder, start_D = make(folder)
    assert model.tokens is not None
    torch.testing.assert_close(model.tokens[0] * 0.5, start_D)
    plain = TextEncoder.from_folder(folder)
    add_learned_tokens(plain, {"zwx": start_D})
    output_BCHW = run(model, encoder, TEXTS)
    x_BCHW = torch.randn(len(TEXTS), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for index, tokens_LD in enumerate(plain.encode(TEXTS)):
        text = Conditions(
            text_BLD=torch.from_numpy(tokens_LD)[None], text_mask_BL=torch.ones(1, len(tokens_LD), dtype=torch.bool)
        )
        wanted_BCHW = model.denoiser(x_BCHW[index][None], torch.zeros(1), text)
        torch.testing.assert_close(output_BCHW[index][None], wanted_BCHW, rtol=1e-4, atol=1e-5)


def test_only_the_words_get_gradients_and_only_from_captions_that_have_them(folder: str) -> None:
    model, encoder, _ = make(folder)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["tokens"]
    run(model, encoder, TEXTS).square().sum().backward()
    assert model.tokens is not None and model.tokens.grad is not None and model.tokens.grad.abs().max() > 0
    model.zero_grad(set_to_none=False)
    run(model, encoder, ["a blue square", "red circle"]).square().sum().backward()
    assert not model.tokens.grad.any()


def test_without_words_the_encoder_is_as_it_was(folder: str) -> None:
    encoder = TextEncoder.from_folder(folder)
    model = TunedText(encoder.model, build_awake(unet_config("micro-base", text_dim=32)))
    assert not any(value.requires_grad for value in model.parameters())
    padded = encoder.pad_ids(encoder.tokenize(["a blue square"])[0])
    states_BLD = model.encode(padded.ids_BL, padded.mask_BL)
    torch.testing.assert_close(states_BLD[0], torch.from_numpy(encoder.encode(["a blue square"])[0]))


def test_training_leaves_the_networks_without_dropout(folder: str) -> None:
    model, encoder, _ = make(folder)
    assert any(module.p > 0 for module in model.text_encoder.modules() if isinstance(module, torch.nn.Dropout))
    one, other = (run(model.train(), encoder, TEXTS) for _ in range(2))
    assert torch.equal(one, other) and not any(module.training for module in model.denoiser.modules())
