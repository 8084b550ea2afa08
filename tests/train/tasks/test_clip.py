"""Task `clip`: a tiny model learns, and its export loads in the scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from dataprep.text.encoder import TextEncoder
from eval.clip.scorer import ClipScorer
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import COLOURS, SIDES, make_caption, make_image, write_pack
from tests.helpers.toys import PairText, short_config
from train.config import TrainConfig, run_identity
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.loop import train
from train.models.clip_towers import IMAGE_TOWERS
from train.models.tokenizer_folder import load_tokenizer
from train.tasks.clip import MAX_SCALE, ClipTask, bound_scale, check_vocabulary
from train.tasks.clip_config import ClipTaskConfig, ClipTrainingConfig
from train.tasks.t5 import train_tokenizer
from train.tasks.t5_config import T5TaskConfig

CAPTIONS = [make_caption(index) for index in range(64)]
WORDS = ("<pad>", "</s>", "<unk>", "a", "square", "on", "the", "一个", "正方形", *COLOURS, *SIDES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a T5-type tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, T5TaskConfig(vocabulary=400)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 pairs at 64 pixels."""
    return write_pack(tmp_path_factory.mktemp("pack") / "p.parquet", 0, 64)


def train_scorer(config: ClipTaskConfig, encoder: Path | str, pack: str, folder: Path) -> ClipScorer:
    """Trains a tiny CLIP for a moment, and loads its export."""
    task = ClipTask(config, str(encoder))
    settings = short_config(40, 32, 5e-3).model_copy(update={"peak_tflops": 1e-3})
    train(task, settings, Loader([pack], None, task.columns, None, 0, 32), str(folder), 0)
    assert all(row["mfu"] > 0 for row in read_json_lines(f"{folder}/log.jsonl"))
    return ClipScorer.load(str(folder / "export"))


def share_right(scorer: ClipScorer) -> float:
    """Returns the share of images whose own caption scores above another one."""
    images = [make_image(index, 64) for index in range(8)]
    right = scorer.similarity(images, [make_caption(index + 40) for index in range(8)])
    wrong = scorer.similarity(images, [make_caption(index + 45) for index in range(8)])
    assert right.shape == (8,) and right.dtype == np.float32 and np.abs(right).max() <= 1.0001
    return float((right > wrong).mean())


@pytest.mark.parametrize("tower", IMAGE_TOWERS)
def test_clip_tells_right_from_wrong(tower: str, tokenizer: Path, pack: str, tmp_path: Path) -> None:
    sizes = {"embed_dim": 16, "text_width": 32, "text_heads": 2, "context_length": 16, "vit_width": 48}
    config = ClipTaskConfig.model_validate(sizes | {"image_tower": tower, "patch_size": 16})
    assert share_right(train_scorer(config, tokenizer, pack, tmp_path)) >= 7 / 8


@pytest.mark.parametrize(("kind", "ends"), [("t5", True), ("bert", True), ("bert", False)])
def test_an_image_tower_is_aligned_to_a_frozen_encoder(kind: str, ends: bool, pack: str, tmp_path: Path) -> None:
    """The encoder is in the export as it was, and not in what is trained."""
    encoder = save_encoder(tmp_path / "encoder", kind, WORDS, ends)
    config = ClipTaskConfig(embed_dim=16, text_tower="frozen", context_length=16)
    scorer = train_scorer(config, encoder, pack, tmp_path / "clip")
    assert share_right(scorer) >= 7 / 8
    before, after = (TextEncoder.from_folder(str(path)) for path in (encoder, tmp_path / "clip/export/frozen_text"))
    for one, other in zip(before.encode(CAPTIONS[:4]), after.encode(CAPTIONS[:4]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any("encoder" in name for name in load_file(tmp_path / "clip/export/model.safetensors"))


@pytest.mark.parametrize("ends", [True, False])
def test_a_bert_tokenizer_trains_a_text_tower(ends: bool, pack: str, tmp_path: Path) -> None:
    """Pooled at the end token, which the tower reads last: every word counts, and nothing beyond the length."""
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=6)
    encoder = save_encoder(tmp_path / "bert", "bert", WORDS, ends)
    scorer = train_scorer(config, encoder, pack, tmp_path / "clip")
    features = np.asarray(scorer.text_features(["a", "a a", "a red", "a a a a a", "a a a a a a", "a a a a a a a"]))
    same = np.abs(features[:, None] - features[None]).max(-1) < 1e-6
    assert not same[0, 1] and not same[0, 2] and not same[1, 3] and same[4, 5] and same[3, 4]


def test_clip_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        ClipTask(ClipTaskConfig(), str(tmp_path))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="text_width=96 is not a multiple of text_heads=5"):
        ClipTaskConfig(text_heads=5)
    with pytest.raises(ValidationError, match="vit_width=96 is not a multiple of vit_heads=5"):
        ClipTaskConfig(vit_heads=5)
    with pytest.raises(ValidationError, match="patch_size=24 does not divide image_size=64"):
        ClipTaskConfig(image_tower="vit", patch_size=24)
    with pytest.raises(ValidationError, match="d_model=128 is not a multiple of heads=5"):
        T5TaskConfig(heads=5)


def test_clip_loss_ignores_captions_that_recur() -> None:
    """Two pairs of one caption are no negatives of each other: a perfect model reaches the entropy of the tie."""
    task = ClipTask.__new__(ClipTask)
    task.config = ClipTaskConfig(shift=0, context_length=4)
    task.columns = ("pixels_64",)
    task.text = PairText()  # type: ignore[assignment]
    features = torch.eye(3)[[0, 0, 1]]
    batch = {"pixels_64": torch.zeros(3, 64, 64, 3, dtype=torch.uint8), "caption": ["a", "a", "b"]}
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


def test_a_prepared_batch_has_the_same_loss(tokenizer: Path, pack: str) -> None:
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16, flip=True)
    task = ClipTask(config, str(tokenizer))
    batch = Loader([pack], None, task.columns, None, 0, 8).batch(0)
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
