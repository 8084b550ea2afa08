"""Adapters over a cascade: found by what they fit, stacked by weight, named in the images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import save_tokens
from eval.sampling import loading
from eval.sampling.adapters import AdapterChoice, apply_adapters
from eval.sampling.batch_folder import sample_folder
from eval.sampling.cascade import Cascade
from eval.sampling.config import read_cascade, resolve_paths
from eval.sampling.loading import load_stages
from eval.sampling.options import SamplingOptions
from tests.helpers.cascades import BASE, SR, WordEncoder, export, trained
from tests.helpers.encoders import WORDS, save_encoder
from tests.train.models.adapters.test_lora import adapt
from train.models.adapters.files import load_adapter, save_adapter
from train.models.unet.config import UNetConfig


def write_adapter(path: Path, model: nn.Module, component: str = "unet", **config: Any) -> str:
    adapter = adapt(model, **{"rank": 2, **config})
    save_adapter(path, model.state_dict(), adapter, component)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade, with one adapter for its base and one for its super-resolution stage beside it."""
    folder = export(tmp_path_factory.mktemp("cascade"))
    for name, config in {"base": BASE, "sr": SR}.items():
        write_adapter(folder / f"{name}.safetensors", trained(config), targets=["*.query", "*conv_in"])
    return folder


def apply(folder: Path, *texts: str, encoder: Any = None) -> tuple[list[AdapterChoice], dict[str, Any]]:
    """Applies adapters to the stages of ``folder``; returns them and the stages' weights by name."""
    stages = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    choices = apply_adapters([AdapterChoice.parse(text) for text in texts], stages, lambda: encoder)
    return choices, {stage.entry.name: stage.model.state_dict() for stage in stages}


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("a.safetensors", AdapterChoice("a.safetensors")),
        ("a.safetensors:0.8", AdapterChoice("a.safetensors", 0.8)),
        ("base=x/a.safetensors:-1", AdapterChoice("x/a.safetensors", -1.0, "base")),
        ("s3://bucket/a.safetensors:.5", AdapterChoice("s3://bucket/a.safetensors", 0.5)),
        ("runs/one", AdapterChoice("runs/one")),
    ],
)
def test_a_choice_is_a_file_a_weight_and_a_stage(text: str, choice: AdapterChoice) -> None:
    assert AdapterChoice.parse(text) == choice


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"--adapter '': give \[STAGE=\]FILE\[:WEIGHT\]"):
        AdapterChoice.parse("")


def test_adapters_go_to_the_stage_that_they_fit_and_add_up(folder: Path) -> None:
    choices, plain = apply(folder)
    assert choices == []
    base, sr = f"{folder}/base.safetensors", f"{folder}/sr.safetensors"
    choices, both = apply(folder, f"{base}:0.5", sr, f"{base}:0.25")
    assert [(choice.stage, choice.weight) for choice in choices] == [("base", 0.5), ("sr", 1.0), ("base", 0.25)]
    layer = next(iter(load_adapter(base).pairs))
    whole = apply(folder, base)[1]["base"][f"{layer}.weight"] - plain["base"][f"{layer}.weight"]
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(both["base"][f"{layer}.weight"] - plain["base"][f"{layer}.weight"], 0.75 * whole)
    assert any(not torch.equal(both["sr"][name], plain["sr"][name]) for name in plain["sr"])
    none = apply(folder, f"{base}:0")[1]["base"]
    assert all(torch.equal(none[name], plain["base"][name]) for name in none)


def test_what_fits_no_stage_or_several_is_refused(folder: Path, tmp_path: Path) -> None:
    wider = write_adapter(tmp_path / "wide.safetensors", trained(widened(BASE)))
    with pytest.raises(
        UserError, match=r"wide\.safetensors: fits none of base, sr, encoder; give one that was trained on this"
    ):
        apply(folder, wider)
    with pytest.raises(UserError, match=r"base\.safetensors: fits none of sr;"):
        apply(folder, f"sr={folder}/base.safetensors")
    with pytest.raises(UserError, match=r"there is no stage 'top'; take one of base, sr, encoder"):
        apply(folder, f"top={folder}/base.safetensors")
    stages = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    twins = [*stages[:1], SimpleNamespace(entry=SimpleNamespace(name="twin"), model=stages[0].model)]
    with pytest.raises(UserError, match=r"fits base and twin; name one as STAGE=FILE"):
        apply_adapters([AdapterChoice(f"{folder}/base.safetensors")], twins, lambda: None)  # type: ignore[arg-type]


def widened(config: UNetConfig) -> UNetConfig:
    return config.model_copy(update={"text_dim": 9})


def test_a_text_encoder_gets_the_layers_that_it_has(folder: Path, tmp_path: Path) -> None:
    """The adapter was trained on the whole T5; the cascade has its encoder."""
    transformers = import_transformers()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    whole = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes))
    encoder.load_state_dict({name: whole.state_dict()[name] for name in encoder.state_dict()})
    path = write_adapter(tmp_path / "t5.safetensors", whole, "text_encoder")
    choices, _ = apply(folder, path, encoder=SimpleNamespace(model=encoder))
    assert [choice.stage for choice in choices] == ["encoder"]
    ids = torch.tensor([[3, 4, 1]])
    expected = whole.eval().encoder(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder.eval()(input_ids=ids).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_images_change_and_say_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "TextEncoder", SimpleNamespace(from_folder=lambda *_, **__: WordEncoder()))
    path = f"{folder}/base.safetensors"
    plain, changed = Cascade.from_pretrained(folder), Cascade.from_pretrained(folder, adapters=[f"{path}:0.8"])
    one, other = (cascade("a cat", seed=1) for cascade in (plain, changed))
    assert list(one.images[0].tobytes()) != list(other.images[0].tobytes())
    assert "adapters" not in one.making
    assert other.making["adapters"] == [{"path": path, "weight": 0.8, "stage": "base"}]
    assert plain.digest != changed.digest


def test_a_folder_of_prompts_holds_images_of_the_same_adapters(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.safetensors"
    save_tokens(words, {"zwx": torch.ones(32)})
    stages = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    with_tokens: dict[str, Any] = {"adapters": [AdapterChoice(str(words), 1.0, "encoder")]}

    def fill(**how: Any) -> list[int]:
        cascade = Cascade(stages, WordEncoder(), **how)
        asked = SamplingOptions.from_keywords(steps=1)
        return list(sample_folder(cascade, ["a cat"], tmp_path / "images", asked))

    fill(**with_tokens)
    words.rename(tmp_path / "moved.safetensors")
    moved: dict[str, Any] = {"adapters": [AdapterChoice(str(tmp_path / "moved.safetensors"), 1.0, "encoder")]}
    assert fill(**moved) == [1]
    save_tokens(words, {"zwx": torch.zeros(32)})
    others: list[tuple[dict[str, Any], str]] = [({}, "adapters"), (with_tokens, "adapters")]
    for other, named in [*others, (moved | {"weights": "int8"}, "weights")]:
        with pytest.raises(UserError, match=f"{named} was .*; name an empty folder"):
            fill(**other)


def test_learned_tokens_are_words_of_the_encoder(folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.from_folder(save_encoder(tmp_path / "t5", "t5"))
    path = tmp_path / "words.safetensors"
    save_tokens(path, {"zwx": torch.ones(32)})
    choices, _ = apply(folder, f"encoder={path}", encoder=encoder)
    assert choices == [AdapterChoice(str(path), 1.0, "encoder")]
    assert encoder.tokenize(["zwx"])[0] == [[len(WORDS), 1]]
    with pytest.raises(
        UserError, match=r"words\.safetensors: has learned tokens of the text encoder; leave weight 0\.5"
    ):
        apply(folder, f"{path}:0.5", encoder=encoder)
    with pytest.raises(UserError, match="learned tokens of the text encoder; leave stage base out"):
        apply(folder, f"base={path}", encoder=encoder)
    with pytest.raises(UserError, match="token 'zwx': the encoder's tokenizer has this word already"):
        apply(folder, str(path), encoder=encoder)


def test_the_encoder_is_loaded_only_for_what_fits_no_stage(folder: Path) -> None:
    def load() -> Any:
        raise AssertionError("loaded")

    stages = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    choices = apply_adapters([AdapterChoice(f"{folder}/sr.safetensors")], stages, load)
    assert [choice.stage for choice in choices] == ["sr"]
