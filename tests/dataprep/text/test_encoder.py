"""The text encoder."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder, check_encoder, group_by_length
from tests.helpers.encoders import save_encoder
from tests.helpers.simulated_gpu import simulated_gpu

CAPTIONS = ["a red circle", "a blue square left of a red circle", "circle", "a red circle"]


def test_true_lengths_order_and_one_array_per_caption(t5: str) -> None:
    encoder = TextEncoder.from_folder(t5)
    embeddings = encoder.encode(CAPTIONS)
    assert [array.shape for array in embeddings] == [(4, 32), (9, 32), (2, 32), (4, 32)]
    assert all(array.dtype == np.float32 for array in embeddings)
    assert embeddings[0] is embeddings[3]
    assert encoder.encode([]) == []


def test_a_sentencepiece_model_without_tokenizer_json(t5: str, tmp_path: Path) -> None:
    """T5 v1.1 models are published without tokenizer.json."""
    import sentencepiece

    options: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 9), model_writer=model, vocab_size=40, minloglevel=2, **options
    )
    folder = Path(save_encoder(tmp_path / "model", "t5", words=tuple(map(str, range(64)))))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "spiece.model").write_bytes(model.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    encoder = TextEncoder.from_folder(str(folder))
    assert encoder.tokenize(CAPTIONS)[0] == [[*reference.encode(caption), 1] for caption in CAPTIONS]


@pytest.mark.parametrize("budget", [1, 10, 10_000])
def test_padding_does_not_change_an_embedding(t5: str, budget: int) -> None:
    encoder = TextEncoder.from_folder(t5, token_budget=budget)
    reference = encoder.model(input_ids=torch.tensor([encoder.tokenize([CAPTIONS[2]])[0][0]])).last_hidden_state[0]
    assert np.allclose(encoder.encode(CAPTIONS)[2], reference.detach().numpy(), atol=1e-5)


def test_long_captions_are_cut_and_keep_their_end_token(t5: str) -> None:
    encoder = TextEncoder.from_folder(t5, max_length=5)
    ids, cut = encoder.tokenize(CAPTIONS)
    assert cut == 1 and len(ids[1]) == 5 and ids[1][-1] == 1


def test_the_cut_end_of_a_caption_is_in_whole_words(t5: str) -> None:
    encoder = TextEncoder.from_folder(t5, max_length=5)
    assert [encoder.beyond(caption) for caption in CAPTIONS] == ["", "of a red circle", "", ""]
    assert encoder.beyond("a red circle a") == "" and encoder.beyond("a red circle a  square") == "square"
    letters = TextEncoder.from_folder(t5, max_length=3)
    # As if words were cut into pieces of one character, with the end token behind the second of them.
    letters.tokenizer = Letters()
    assert letters.beyond("ab cd") == "cd" and letters.beyond("a bcd") == "bcd" and letters.beyond("两个圆") == "圆"


class Letters:
    """A tokenizer with one token per letter and an end token."""

    is_fast = True

    def __call__(self, caption: str, truncation: bool, max_length: int = 0, **_: object) -> dict[str, list[Any]]:
        places = [(at, at + 1) for at, letter in enumerate(caption) if letter != " "]
        kept = places[: max_length - 1] if truncation else places
        return {"input_ids": [9] * (len(kept) + 1), "offset_mapping": [*kept, (0, 0)]}


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_only_the_encoder_of_a_t5_is_loaded_with_fused_attention(kind: str, tmp_path: Path) -> None:
    model = TextEncoder.from_folder(save_encoder(tmp_path, kind)).model
    assert not any("decoder" in name or "lm_head" in name for name, _ in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


def test_weights_that_no_text_needs_are_not_reported(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "bert")  # without a pooler, with a head for masked words
    logger, told = logging.getLogger("transformers"), list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    try:
        TextEncoder.from_folder(folder)
        assert not told
        logger.warning("and others are still told")
        assert len(told) == 1
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(("kind", "limit"), [("bert", 512), ("roberta", 11)])
def test_max_length_is_limited_by_the_models_positions(kind: str, limit: int, tmp_path: Path) -> None:
    encoder = TextEncoder.from_folder(save_encoder(tmp_path, kind), max_length=1000)
    assert encoder.max_length == limit
    (embedding,) = encoder.encode([" ".join(["red"] * 2000)])
    assert embedding.shape == (limit, 16)


@pytest.mark.parametrize("kind", ["gpt2", "vit", "clip"])
def test_other_models_are_refused(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        folder, reason = save_encoder(tmp_path, "gpt2"), "reads from left to right only"
    else:
        folder = save_encoder(tmp_path, "bert")
        from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

        small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        seen = {"image_size": 8, "patch_size": 4}
        config = CLIPConfig(text_config=small | {"vocab_size": 20}, vision_config=small | seen)
        (ViTModel(ViTConfig(**small, **seen)) if kind == "vit" else CLIPModel(config)).save_pretrained(folder)
        reason = "takes no text" if kind == "vit" else "does not encode text alone|takes no text"
    with pytest.raises(UserError, match=reason):
        TextEncoder.from_folder(folder)


def test_a_folder_of_another_model_is_refused(bert: str, tmp_path: Path) -> None:
    for text, reason in [
        ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "is a GPT2LMHeadModel, not a text encoder"),
        ('{"hidden_size": 16}', "no model_type"),
        ("{", "not JSON"),
    ]:
        folder = copy(Path(bert), tmp_path / str(len(text)), set())
        Path(folder, "config.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            check_encoder(folder)


def test_bert_and_bfloat16(t5: str, bert: str) -> None:
    encoder = TextEncoder.from_folder(bert)
    assert encoder.dim == 16 and encoder.encode(CAPTIONS)[1].shape == (9, 16)
    half = TextEncoder.from_folder(t5, dtype="bfloat16").encode(CAPTIONS)
    assert half[0].dtype == np.float32 and np.allclose(
        half[0], TextEncoder.from_folder(t5).encode(CAPTIONS)[0], atol=0.1
    )


def test_the_dtype_is_that_of_the_device(t5: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TextEncoder.from_folder(t5).model.dtype == torch.float32
    with simulated_gpu():
        encoder = TextEncoder.from_folder(t5, device="cuda")
        assert encoder.model.dtype == torch.bfloat16
        there = encoder.encode(CAPTIONS)
        assert TextEncoder.from_folder(t5, dtype="float32", device="cuda").model.dtype == torch.float32
    for ours, theirs in zip(there, TextEncoder.from_folder(t5).encode(CAPTIONS), strict=True):
        assert ours.dtype == np.float32 and np.allclose(ours, theirs, atol=0.1)


def copy(source: Path, target: Path, without: set[str]) -> str:
    target.mkdir()
    for file in source.iterdir():
        if file.name not in without:
            (target / file.name).write_bytes(file.read_bytes())
    return str(target)


def test_errors(t5: str, tmp_path: Path) -> None:
    folder = Path(t5)
    cases: list[tuple[str, dict[str, Any], str]] = [
        (str(tmp_path / "none"), {}, "not a folder and not a hub name"),
        ("./t5", {}, "not a folder and not a hub name"),
        (copy(folder, tmp_path / "w", {"model.safetensors"}), {}, "no weights"),
        (copy(folder, tmp_path / "c", {"config.json"}), {}, "no config.json"),
        (copy(folder, tmp_path / "t", {"tokenizer.json"}), {}, "no tokenizer"),
        (t5, {"dtype": "float16"}, "overflows in t5"),
        (t5, {"dtype": "int4"}, "float32, bfloat16, float16"),
    ]
    for path, options, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            TextEncoder.from_folder(path, **options)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_not_invented(t5: str, tmp_path: Path) -> None:
    folder = copy(Path(t5), tmp_path / "part", set())
    weights = load_file(folder + "/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "encoder.block.1" not in name}
    save_file(kept, folder + "/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(encoder.block.1"):
        TextEncoder.from_folder(folder)


def test_damaged_weights(t5: str, tmp_path: Path) -> None:
    folder = copy(Path(t5), tmp_path / "damaged", set())
    Path(folder, "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        TextEncoder.from_folder(folder)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_groups_hold_every_caption_once_within_the_budget(lengths: Any, budget: int) -> None:
    batches = group_by_length(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == [
        index for index, length in enumerate(lengths) if length
    ]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_padded_output_is_the_models_at_every_place(t5: str) -> None:
    encoder = TextEncoder.from_folder(t5, max_length=12, pad=True, token_budget=30)
    found = encoder.encode([*CAPTIONS, ""])
    assert [array.shape for array in found] == [(12, 32)] * 5
    words = encoder.tokenizer([*CAPTIONS, ""], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        reference = encoder.model(**words).last_hidden_state.numpy()
    np.testing.assert_allclose(np.stack(found), reference, atol=1e-5)
    assert float(np.abs(reference[0, 6:]).min()) > 0  # padding has an output of its own


def test_lower_case(t5: str) -> None:
    plain, lower = TextEncoder.from_folder(t5, max_length=5), TextEncoder.from_folder(t5, max_length=5, lowercase=True)
    assert np.array_equal(lower.encode([" A Red CIRCLE "])[0], plain.encode(["a red circle"])[0])
    assert lower.beyond("A red circle LEFT OF") == "of"


def make_pipeline_folder(t5: str, folder: Path) -> Path:
    """Puts an encoder where diffusers' layout has it."""
    for part, pattern in (("text_encoder", "*.safetensors"), ("text_encoder", "config.json"), ("tokenizer", "token*")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for path in Path(t5).glob(pattern):
            (folder / part / path.name).write_bytes(path.read_bytes())
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_folder_in_diffusers_layout_is_an_encoder(t5: str, tmp_path: Path) -> None:
    folder = make_pipeline_folder(t5, tmp_path)
    assert check_encoder(str(folder)) is True
    expected = TextEncoder.from_folder(t5).encode(CAPTIONS[:1])[0]
    assert np.array_equal(TextEncoder.from_folder(str(folder)).encode(CAPTIONS[:1])[0], expected)
    weights = folder / "text_encoder/model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    assert np.array_equal(TextEncoder.from_folder(str(folder)).encode(CAPTIONS[:1])[0], expected)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("text_encoder/model.safetensors", "text_encoder.: the folder has no weights"),
        ("text_encoder/config.json", "text_encoder.: the folder has no config.json"),
        ("tokenizer/tokenizer.json", "tokenizer.: the folder has no tokenizer"),
    ],
)
def test_an_incomplete_folder_in_diffusers_layout(t5: str, tmp_path: Path, gone: str, message: str) -> None:
    folder = make_pipeline_folder(t5, tmp_path)
    (folder / gone).unlink()
    with pytest.raises(UserError, match=message):
        check_encoder(str(folder))
