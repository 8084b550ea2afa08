from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dataprep import codec
from dataprep.embed import EmbedConfig, embed_shard, load_encoder
from dataprep.schema import UserError, read_table, write_table
from dataprep.text import TextEncoder, length_batches
from dataprep.torchvision_operators import declare_torchvision_operators

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "left", "of")
CAPTIONS = ["a red circle", "a blue square left of a red circle", "circle", "a red circle"]


def save(folder, model):
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    declare_torchvision_operators()
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("t5")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    save(folder, T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **sizes)))
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    declare_torchvision_operators()
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    save(folder, BertModel(BertConfig(vocab_size=len(WORDS), **sizes)))
    return str(folder)


def test_true_lengths_order_and_one_array_a_caption(t5):
    encoder = TextEncoder.from_folder(t5)
    embeddings = encoder.encode(CAPTIONS)
    assert [array.shape for array in embeddings] == [(4, 32), (9, 32), (2, 32), (4, 32)]
    assert all(array.dtype == np.float32 for array in embeddings)
    assert embeddings[0] is embeddings[3]
    assert encoder.encode([]) == []


@pytest.mark.parametrize("budget", [1, 10, 10_000])
def test_padding_does_not_change_an_embedding(t5, budget):
    encoder = TextEncoder.from_folder(t5, token_budget=budget)
    reference = encoder.model(input_ids=torch.tensor([encoder.tokenize([CAPTIONS[2]])[0][0]])).last_hidden_state[0]
    assert np.allclose(encoder.encode(CAPTIONS)[2], reference.detach().numpy(), atol=1e-5)


def test_long_captions_are_cut_and_keep_their_end_token(t5):
    encoder = TextEncoder.from_folder(t5, max_length=5)
    ids, cut = encoder.tokenize(CAPTIONS)
    assert cut == 1 and len(ids[1]) == 5 and ids[1][-1] == 1


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
