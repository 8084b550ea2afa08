"""Task `t5`: tokenizer, span corruption, and the export."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.io.storage import read_json_lines
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import make_caption
from tests.helpers.toys import short_config
from train.init_config import InitConfig
from train.loader.loader import CaptionLoader
from train.loop import build_model, train
from train.tasks.t5 import T5Task, random_spans, train_tokenizer
from train.tasks.t5_config import T5TaskConfig

CAPTIONS = [make_caption(index) for index in range(64)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5, pretrained for a moment and exported."""
    folder = tmp_path_factory.mktemp("t5")
    task = T5Task(T5TaskConfig(d_model=32, d_ff=32, heads=2, layers=1, vocabulary=400), CAPTIONS)
    config = short_config(60, 16, 1e-2).model_copy(update={"peak_tflops": 1e-3})
    train(task, config, CaptionLoader(CAPTIONS, 0, 16), str(folder), 0)
    assert all(row["mfu"] > 0 for row in read_json_lines(f"{folder}/log.jsonl"))
    log = read_json_lines(f"{folder}/log.jsonl")
    assert log[-1]["loss"] < 0.6 * log[0]["loss"] and log[-1]["accuracy"] > 0.5
    return folder / "export"


def test_t5_export_is_a_transformers_folder(encoder: Path) -> None:
    transformers = import_transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model, info = transformers.T5EncoderModel.from_pretrained(encoder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = tokenizer(["a red square on the left"], return_tensors="pt")
    assert model(**ids).last_hidden_state.shape == (1, 7, 32)


def test_t5_goes_on_from_its_checkpoint_with_its_tokenizer_and_not_from_an_encoder_alone(encoder: Path) -> None:
    """Other captions would make another tokenizer, under which the weights would mean nothing."""
    sizes = T5TaskConfig(d_model=32, d_ff=32, heads=2, layers=1, vocabulary=400)
    task = T5Task(sizes, ["something else altogether"], str(encoder))
    before = import_transformers().AutoTokenizer.from_pretrained(encoder).get_vocab()
    assert task.tokenizer.get_vocab() == before
    config = short_config(1, 16, 1e-9)
    whole = config.model_copy(update={"init": InitConfig(source=str(encoder.parent / "checkpoints"))})
    begun, fresh = (build_model(task, each, 0).state_dict() for each in (whole, config))
    exported = load_file(encoder / "model.safetensors")
    assert all(torch.equal(begun[name], exported[name]) for name in exported)
    assert not any(torch.equal(begun[name], fresh[name]) for name in exported if "layer_norm" not in name)
    alone = config.model_copy(update={"init": InitConfig(source=str(encoder))})
    with pytest.raises(UserError, match=r"init=.*missing \(decoder\."):
        build_model(task, alone, 0)


def test_a_tokenizer_without_sentinels_cannot_corrupt_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no <extra_id_0>, by which text is hidden; name a T5"):
        T5Task(T5TaskConfig(), [], save_encoder(tmp_path, "t5"))


def test_tokenizer_covers_everything_and_is_deterministic() -> None:
    config = T5TaskConfig(vocabulary=400)
    one, other = train_tokenizer(CAPTIONS, config), train_tokenizer(CAPTIONS, config)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert (one.pad_token_id, one.eos_token_id, one.unk_token_id) == (0, 1, 2)
    for text in ("a red square", "左 一个 red 正方形", "zèbre 🐶 №"):
        ids = one(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
    assert one.decode(one("left 一个 red 正方形")["input_ids"], skip_special_tokens=True) == "left 一个 red 正方形"
    assert len(one("正方形")["input_ids"]) == 4  # a character each, and the end
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(["", ""], config)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 57, 500])
def test_spans_mask_their_share_and_are_reversible(length: int) -> None:
    config = T5TaskConfig(vocabulary=400, target="spans")
    task, whole = T5Task(config, CAPTIONS), T5Task(T5TaskConfig(vocabulary=400, target="whole"), CAPTIONS)
    ids = list(np.random.default_rng(0).integers(3, 250, length))
    for seed in range(20):
        spans = random_spans(length, config, np.random.default_rng(seed))
        flat = [at for span in spans for at in span]
        assert flat == sorted(flat) and all(start < stop for start, stop in spans)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
        assert not flat or (flat[0] >= 0 and flat[-1] <= length)
        if length > 3:
            assert sum(stop - start for start, stop in spans) == round(0.3 * length)
        source, target = task.corrupt(ids, seed)
        assert source[-1] == target[-1] == 1
        filled: list[int] = []
        for token in source[:-1]:
            if token < task.first_sentinel:
                filled.append(token)
                continue
            start = target.index(token) + 1
            rest = [at for at in range(start, len(target)) if target[at] >= task.first_sentinel or target[at] == 1]
            filled += target[start : rest[0]]
        assert filled == ids
        assert whole.corrupt(ids, seed) == (source, [*ids, 1])
