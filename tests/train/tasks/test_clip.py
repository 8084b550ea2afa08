"""Task `clip`: a tiny model learns, and its export loads in the scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.io.storage import read_json_lines
from eval.clip.scorer import ClipScorer
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import make_caption, make_image, write_pack
from tests.helpers.toys import short_config
from train.config import TrainConfig, run_identity
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.loop import train
from train.models.clip import encode_tokens
from train.models.end_token import check_tokenizer, describe_tokenizer, load_tokenizer
from train.tasks.clip import MAX_SCALE, ClipTask, bound_scale, check_vocabulary
from train.tasks.clip_config import ClipTaskConfig, ClipTrainingConfig
from train.tasks.t5 import train_tokenizer
from train.tasks.t5_config import T5TaskConfig

CAPTIONS = [make_caption(index) for index in range(64)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5-type tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, T5TaskConfig(vocabulary=400)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> ClipScorer:
    """A tiny CLIP trained for a moment, exported and loaded."""
    folder = tmp_path_factory.mktemp("clip")
    pack = write_pack(folder / "p.parquet", 0, 64)
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16)
    task = ClipTask(config, str(tokenizer))
    train(task, short_config(40, 32, 5e-3), Loader([pack], None, task.columns, None, 0, 32), str(folder), 0)
    return ClipScorer.load(str(folder / "export"))


def test_clip_tells_right_from_wrong(scorer: ClipScorer) -> None:
    images = [make_image(index, 64) for index in range(8)]
    right = scorer.similarity(images, [make_caption(index + 40) for index in range(8)])
    wrong = scorer.similarity(images, [make_caption(index + 45) for index in range(8)])
    assert right.shape == (8,) and right.dtype == np.float32
    assert (right > wrong).mean() >= 7 / 8
    assert np.abs(right).max() <= 1.0001


def test_a_bert_tokenizer_ends_texts_with_sep(tmp_path: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({word for text in CAPTIONS for word in text.split()}),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    import_transformers().BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=6)
    task = ClipTask(config, str(tmp_path / "bert"))
    assert task.tokenizer.eos_token_id is None and describe_tokenizer(task.tokenizer) == (len(words), 3, 0)
    pack = write_pack(tmp_path / "p.parquet", 0, 64)
    counted = short_config(4, 32, 5e-3).model_copy(update={"peak_tflops": 1e-3})
    train(task, counted, Loader([pack], None, task.columns, None, 0, 32), str(tmp_path), 0)
    assert all(row["mfu"] > 0 for row in read_json_lines(f"{tmp_path}/log.jsonl"))
    scorer = ClipScorer.load(str(tmp_path / "export"))
    # Pooled at [SEP], which the tower reads last: every word counts, and what is beyond the length does not.
    texts = ["a", "a a", CAPTIONS[0], CAPTIONS[0] + " a", "a a a a a a", "a a a a a a a"]
    features = np.asarray(scorer.text_features(texts))
    same = np.abs(features[:, None] - features[None]).max(-1) < 1e-6
    assert not same[0, 1] and not same[0, 2] and same[4, 5]


def test_clip_needs_a_tokenizer_that_ends_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        ClipTask(ClipTaskConfig(), str(tmp_path))
    save_encoder(tmp_path, "bert", ends=False)
    for load in (check_tokenizer, load_tokenizer):
        with pytest.raises(UserError, match="does not end a text with a token"):
            load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"its tokenizer.json cannot be read"):
        check_tokenizer(str(tmp_path))


def test_the_tokenizer_of_a_folder_in_diffusers_layout(tmp_path: Path) -> None:
    save_encoder(tmp_path / "tokenizer", "t5")
    (tmp_path / "model_index.json").write_text("{}")
    check_tokenizer(str(tmp_path))
    assert encode_tokens(load_tokenizer(str(tmp_path)), ["a red"], 5).tolist() == [[3, 4, 1, 0, 0]]


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    save_encoder(tmp_path, "bert")
    loaded = import_transformers().AutoTokenizer.from_pretrained(str(tmp_path))
    loaded.pad_token = None
    loaded.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert describe_tokenizer(tokenizer)[1:] == (1, 1)
    assert encode_tokens(tokenizer, ["a red"], 5).tolist() == [[3, 4, 1, 1, 1]]


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="text_width=96 is not a multiple of text_heads=5"):
        ClipTaskConfig(text_heads=5)
    with pytest.raises(ValidationError, match="d_model=128 is not a multiple of heads=5"):
        T5TaskConfig(heads=5)


def test_clip_loss_ignores_captions_that_recur() -> None:
    """Two pairs of one caption are no negatives of each other: a perfect model reaches the entropy of the tie."""
    task = ClipTask.__new__(ClipTask)
    task.config = ClipTaskConfig(shift=0, context_length=4)
    task.columns = ("pixels_64",)
    task.tokenizer = lambda texts, **_: {"input_ids": torch.tensor([[len(text), 1, 0, 0] for text in texts])}
    features = torch.eye(3)[[0, 0, 1]]
    batch = {"pixels_64": torch.zeros(3, 64, 64, 3, dtype=torch.uint8), "caption": ["a", "a", "bb"]}
    loss, metrics = task.loss(
        lambda *_: (features, features, torch.tensor(100.0)), batch, SampleRandom(0, 0, [0, 1, 2])
    )
    assert float(loss) == pytest.approx(2 / 3 * np.log(2), abs=1e-4) and float(metrics["accuracy"]) == 1.0


def test_accumulation_would_change_what_is_learned_so_it_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"accumulation=2: the contrastive loss .*set it to 1"):
        ClipTrainingConfig(accumulation=2)
    assert run_identity(ClipTrainingConfig())["accumulation"] == 1
    assert "accumulation" not in run_identity(TrainConfig())


@pytest.mark.parametrize(("start", "end"), [(MAX_SCALE * 1.2, 50.0), (MAX_SCALE * 0.9, 2 * MAX_SCALE)])
def test_the_scale_stays_at_its_bound_and_comes_back_from_above(start: float, end: float) -> None:
    """Descends on the distance from ``end``, in steps of at most 5."""
    scale = torch.tensor(start, requires_grad=True)
    seen = []
    for _ in range(40):
        bounded = bound_scale(scale)
        seen.append(bounded.item())
        (gradient,) = torch.autograd.grad((bounded - end).square(), scale)
        scale.data -= (0.1 * gradient).clamp(-5, 5)
    assert max(seen) <= MAX_SCALE
    assert seen[-1] == pytest.approx(min(end, MAX_SCALE), abs=1)
    assert scale.item() < max(start, MAX_SCALE + 5.1)


def test_a_prepared_batch_has_the_same_loss(tokenizer: Path, tmp_path: Path) -> None:
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16, flip=True)
    task = ClipTask(config, str(tokenizer))
    batch = Loader([write_pack(tmp_path / "p.parquet", 0, 16)], None, task.columns, None, 0, 8).batch(0)
    model, random = task.build(), SampleRandom(0, 3, batch["index"])
    prepared = task.prepare(batch, random)
    assert prepared["ids_BL"].shape[0] == 8 and prepared["image_BCHW"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(task.loss(model, batch, random)[0], task.loss(model, prepared, random)[0])


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    loaded = load_tokenizer(str(tokenizer))
    check_vocabulary(str(tokenizer), loaded)
    check_vocabulary(str(tmp_path), loaded)  # has none to compare with
    other = save_encoder(tmp_path / "other", "t5")
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        check_vocabulary(other, loaded)
