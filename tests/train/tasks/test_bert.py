"""Task `bert`: tokenizer, masking, and the export, which is an encoder like any other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from dataprep.text.encoder import TextEncoder
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import make_caption
from tests.helpers.toys import short_config
from train.init_config import InitConfig
from train.loader.loader import CaptionLoader
from train.loader.sampler import SampleRandom
from train.loop import build_model, train
from train.models.caption_tokenizer import CaptionTokenizer
from train.tasks.bert import MASK_ID, SEP_ID, BertTask, train_wordpieces
from train.tasks.bert_config import BertTaskConfig
from train.tasks.caption_tokens import IGNORE

CAPTIONS = [make_caption(index) for index in range(64)]
SIZES = BertTaskConfig(d_model=32, d_ff=64, heads=2, layers=1, vocabulary=200, max_tokens=16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, pretrained for a moment and exported."""
    folder = tmp_path_factory.mktemp("bert")
    config = short_config(80, 16, 1e-2).model_copy(update={"peak_tflops": 1e-3})
    train(BertTask(SIZES, CAPTIONS), config, CaptionLoader(CAPTIONS, 0, 16), str(folder), 0)
    log = read_json_lines(f"{folder}/log.jsonl")
    assert all(row["mfu"] > 0 for row in log)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"] and log[-1]["accuracy"] > 0.5
    return folder / "export"


def test_the_export_is_a_text_encoder(encoder: Path) -> None:
    """All weights are in it, and a text is what a masked one makes likely: words change the tokens beside them."""
    loaded = TextEncoder.from_folder(str(encoder))
    red, blue, long = loaded.encode(["a red square", "a blue square", "red " * 40])
    assert red.shape == (5, 32) and loaded.dim == 32  # with [CLS] and [SEP]
    assert loaded.pieces("a red square") == ["[CLS]", "a", "red", "square", "[SEP]"]
    assert abs(red[0] - blue[0]).max() > 1e-3
    assert long.shape == (16, 32)  # what it has positions for
    assert CaptionTokenizer(loaded.tokenizer, 8).end_id == SEP_ID


def test_it_goes_on_from_its_checkpoint_with_its_tokenizer(encoder: Path) -> None:
    """Other captions would make another tokenizer, under which the weights would mean nothing."""
    task = BertTask(SIZES, ["something else altogether"], str(encoder))
    assert task.tokenizer.get_vocab() == BertTask(SIZES, CAPTIONS).tokenizer.get_vocab()
    whole = short_config(1, 16, 1e-9).model_copy(
        update={"init": InitConfig(source=str(encoder.parent / "checkpoints"))}
    )
    begun, exported = build_model(task, whole, 0).state_dict(), load_file(encoder / "model.safetensors")
    assert all(torch.equal(begun[f"bert.{name}"], value) for name, value in exported.items())
    with pytest.raises(UserError, match=r"has no \[MASK\]"):
        BertTask(SIZES, [], save_encoder(encoder.parent / "other", "bert"))


def test_the_tokenizer_is_deterministic_and_knows_its_special_tokens() -> None:
    one, other = train_wordpieces(CAPTIONS, SIZES), train_wordpieces(CAPTIONS, SIZES)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    assert (one.pad_token_id, one.unk_token_id, one.cls_token_id) == (0, 1, 2)
    assert (one.sep_token_id, one.mask_token_id) == (3, 4)
    assert one("A RED square")["input_ids"] == one("a red square")["input_ids"]
    assert one("正方形")["input_ids"][0] == 2 and len(one("正方形")["input_ids"]) == 5  # a character each
    few = train_wordpieces(["abc ab", "cba"], BertTaskConfig(vocabulary=100).model_copy(update={"vocabulary": 9}))
    assert few.convert_ids_to_tokens(range(9)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "b", "##b"]
    assert few.tokenize("ab c") == ["a", "##b", "[UNK]"]  # the rarest letter has no room
    with pytest.raises(UserError, match="no captions"):
        train_wordpieces(["", ""], SIZES)


def test_the_share_of_tokens_that_is_hidden_and_how() -> None:
    task = BertTask(SIZES, CAPTIONS)
    ids = [2, *range(10, 50), 3]
    shown: Counter[str] = Counter()
    for seed in range(300):
        source, target = task.mask(ids, seed)
        places = [place for place, token in enumerate(target) if token != IGNORE]
        assert len(places) == round(42 * 0.3) - 1 and len(source) == len(target) == 42  # of 40 words
        assert all(target[place] == ids[place] and 0 < place < 41 for place in places)
        assert all(source[place] == ids[place] for place in range(42) if place not in places)
        kinds = {MASK_ID: "mask"}
        shown.update(kinds.get(source[p], "kept" if source[p] == ids[p] else "other") for p in places)
        assert all(source[place] >= MASK_ID for place in places)
    total = shown.total()
    assert shown["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert shown["kept"] / total == pytest.approx(0.1, abs=0.02)
    assert task.mask([2, 3], 0) == ([2, 3], [IGNORE, IGNORE])  # an empty caption has nothing to hide
    assert task.mask([2, 20, 3], 0).target == [IGNORE, 20, IGNORE]
    assert task.mask(ids, 5) == task.mask(ids, 5) != task.mask(ids, 6)


def test_an_empty_caption_has_no_loss() -> None:
    task = BertTask(SIZES, CAPTIONS)
    torch.manual_seed(0)
    model = task.build().eval()
    some, none = ({"caption": texts, "index": torch.arange(1)} for texts in (["a red square"], [""]))
    random = SampleRandom(0, 0, [0])
    with torch.no_grad():
        assert float(task.loss(model, none, random)[0]) == 0 < float(task.loss(model, some, random)[0])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="d_model=128 is not a multiple of heads=5"):
        BertTaskConfig(heads=5)
