from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_fakes import save_encoder
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from dataprep import codec
from dataprep.embed import EmbedConfig, Stored, embed_shard, load_encoder
from dataprep.schema import UserError, read_table, write_table
from dataprep.text import Encoded, TextEncoder, check_encoder, length_batches

CAPTIONS = ["a red circle", "a blue square left of a red circle", "circle", "a red circle"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("t5"), "t5")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("bert"), "bert")


def test_true_lengths_order_and_one_array_a_caption(t5):
    encoder = TextEncoder.from_folder(t5)
    embeddings = encoder.encode(CAPTIONS)
    assert [array.shape for array in embeddings] == [(4, 32), (9, 32), (2, 32), (4, 32)]
    assert all(array.dtype == np.float32 for array in embeddings)
    assert embeddings[0] is embeddings[3]
    assert encoder.encode([]) == []


def test_a_tokenizer_that_is_a_sentencepiece_model_alone(t5, tmp_path):
    """As the T5 v1.1 models are published: no tokenizer.json."""
    import sentencepiece

    model, options = io.BytesIO(), {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
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
def test_padding_does_not_change_an_embedding(t5, budget):
    encoder = TextEncoder.from_folder(t5, token_budget=budget)
    reference = encoder.model(input_ids=torch.tensor([encoder.tokenize([CAPTIONS[2]])[0][0]])).last_hidden_state[0]
    assert np.allclose(encoder.encode(CAPTIONS)[2], reference.detach().numpy(), atol=1e-5)


def test_long_captions_are_cut_and_keep_their_end_token(t5):
    encoder = TextEncoder.from_folder(t5, max_length=5)
    ids, cut = encoder.tokenize(CAPTIONS)
    assert cut == 1 and len(ids[1]) == 5 and ids[1][-1] == 1


def test_what_a_long_caption_loses_is_told_in_whole_words(t5):
    encoder = TextEncoder.from_folder(t5, max_length=5)
    assert [encoder.beyond(caption) for caption in CAPTIONS] == ["", "of a red circle", "", ""]
    assert encoder.beyond("a red circle a") == "" and encoder.beyond("a red circle a  square") == "square"
    letters = TextEncoder.from_folder(t5, max_length=3)
    # As if words were cut into pieces of one character, with the end token behind the second of them.
    letters.tokenizer = Letters()
    assert letters.beyond("ab cd") == "cd" and letters.beyond("a bcd") == "bcd" and letters.beyond("两个圆") == "圆"


class Letters:
    """A tokenizer of letters, which keeps two and its end token."""

    is_fast = True

    def __call__(self, caption, truncation, max_length=None, **_):
        places = [(at, at + 1) for at, letter in enumerate(caption) if letter != " "]
        kept = places[: max_length - 1] if truncation else places
        return {"input_ids": [9] * (len(kept) + 1), "offset_mapping": [*kept, (0, 0)]}


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_of_a_t5_the_encoder_alone_is_loaded_with_fused_attention(kind, tmp_path):
    model = TextEncoder.from_folder(save_encoder(tmp_path, kind)).model
    assert not any("decoder" in name or "lm_head" in name for name, _ in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("kind", "limit"), [("bert", 512), ("roberta", 11)])
def test_no_more_tokens_than_the_model_has_places_for(kind, limit, tmp_path):
    encoder = TextEncoder.from_folder(save_encoder(tmp_path, kind), max_length=1000)
    assert encoder.max_length == limit
    (embedding,) = encoder.encode([" ".join(["red"] * 2000)])
    assert embedding.shape == (limit, 16)


@pytest.mark.parametrize("kind", ["gpt2", "vit", "clip"])
def test_what_is_no_text_encoder_is_refused(kind, tmp_path):
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


def test_a_folder_says_itself_that_it_is_no_encoder(bert, tmp_path):
    for text, reason in [
        ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "is a GPT2LMHeadModel, no text encoder"),
        ('{"hidden_size": 16}', "no model_type"),
        ("{", "not JSON"),
    ]:
        folder = copy(Path(bert), tmp_path / str(len(text)), set())
        Path(folder, "config.json").write_text(text)
        with pytest.raises(UserError, match=reason):
            check_encoder(folder)


def test_bert_and_bfloat16(t5, bert):
    encoder = TextEncoder.from_folder(bert)
    assert encoder.dim == 16 and encoder.encode(CAPTIONS)[1].shape == (9, 16)
    half = TextEncoder.from_folder(t5, dtype="bfloat16").encode(CAPTIONS)
    assert half[0].dtype == np.float32 and np.allclose(
        half[0], TextEncoder.from_folder(t5).encode(CAPTIONS)[0], atol=0.1
    )


def copy(source, target, without):
    target.mkdir()
    for file in source.iterdir():
        if file.name not in without:
            (target / file.name).write_bytes(file.read_bytes())
    return str(target)


def test_errors(t5, tmp_path):
    folder = Path(t5)
    cases = [
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


def test_missing_weights_are_not_invented(t5, tmp_path):
    folder = copy(Path(t5), tmp_path / "part", set())
    weights = load_file(folder + "/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "encoder.block.1" not in name}
    save_file(kept, folder + "/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(encoder.block.1"):
        TextEncoder.from_folder(folder)


def test_damaged_weights(t5, tmp_path):
    folder = copy(Path(t5), tmp_path / "damaged", set())
    Path(folder, "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        TextEncoder.from_folder(folder)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_length_batches_hold_every_caption_once_within_the_budget(lengths, budget):
    batches = length_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == [
        index for index, length in enumerate(lengths) if length
    ]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@pytest.mark.parametrize("name", codec.CODECS)
def test_embed_shard_is_row_aligned_and_decodes(t5, tmp_path, name):
    pack = pa.table({"key": ["a", "b", "c", "d"], "caption": CAPTIONS, "split": ["train"] * 4})
    write_table(pack, tmp_path / "p.parquet", "pack")
    config = EmbedConfig(codec=name, max_length=8)
    encoder = load_encoder(t5, config)
    counters = embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", encoder, config)
    error = counters.pop("codec_error_ppm_sum") / 3
    assert counters == {"captions": 4, "distinct": 3, "tokens": 18, "truncated": 1, "codec_low_tokens": 0}
    assert 0 < error < (1000 if name == "float16" else 20_000)
    rows = read_table(tmp_path / "e.parquet", "embeddings").to_pylist()
    assert [(row["key"], row["caption"]) for row in rows] == list(zip("abcd", CAPTIONS, strict=True))
    assert [row["length"] for row in rows] == [4, 8, 2, 4]
    for row, expected in zip(rows, encoder.encode(CAPTIONS), strict=True):
        decoded = codec.decode(row["embedding"], row["scale"], row["length"], row["dim"], row["codec"])
        cosine = (decoded * expected).sum(1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > 0.999


def test_several_captions_a_picture_have_a_row_each_in_its_row_group(t5, tmp_path):
    several = [["a red circle", "circle"], ["a red circle", "a blue square"], ["of", "of"]]
    columns = {"key": ["a", "b", "c"], "caption": [texts[0] for texts in several], "captions": several}
    write_table(pa.table(columns), tmp_path / "p.parquet", "pack", [2, 1])
    config = EmbedConfig()
    counters = embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", load_encoder(t5, config), config)
    assert (counters["captions"], counters["distinct"]) == (6, 4)
    table = read_table(tmp_path / "e.parquet", "embeddings")
    assert table["key"].to_pylist() == list("aabbcc")
    assert table["caption"].to_pylist() == [text for texts in several for text in texts]
    metadata = pq.read_metadata(tmp_path / "e.parquet")
    assert [metadata.row_group(at).num_rows for at in range(2)] == [4, 2]


def test_tokens_that_int8_stores_badly_are_counted():
    tokens = np.full((3, 512), 0.1, np.float32)
    tokens[1, 0] = 26.0  # one channel so large that the others round to nothing
    stored = Stored()
    stored.add(Encoded([0, 1], [1, 2], tokens), "int8")
    lost = np.linalg.norm(tokens[1, 1:]) / np.linalg.norm(tokens[1:])
    assert stored.low == 1 and abs(stored.error - lost) < 1e-3
    assert [length for length, _, _ in stored.rows.values()] == [1, 2]


def test_embedding_an_empty_shard(t5, tmp_path):
    empty = pa.table({"key": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    write_table(empty, tmp_path / "p.parquet", "pack")
    config = EmbedConfig()
    assert (
        embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", load_encoder(t5, config), config)["captions"] == 0
    )
    assert read_table(tmp_path / "e.parquet", "embeddings").num_rows == 0


def test_config_errors():
    with pytest.raises(ValidationError):
        EmbedConfig.model_validate({"codec": "int4"})
