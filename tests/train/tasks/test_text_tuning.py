"""Task `text_tuning`: words and LoRA are learned through a frozen stage, resume, and are exported as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from dataprep.text.encoder import TextEncoder
from eval.sampling.adapters import AdapterChoice, apply_adapters
from tests.helpers.cascades import trained
from tests.helpers.encoders import WORDS, save_encoder
from tests.helpers.packs import write_pack
from tests.helpers.toys import StopError, rows, stop_after
from tests.helpers.unets import unet_config
from train.diffusion.config import DiffusionConfig
from train.loader.loader import Loader
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom
from train.loader.shard_index import index_shards
from train.loop import build_model, train
from train.models.export import save_stage
from train.tasks import text_tuning
from train.tasks.text_tuning import TextOptions, TextTuningTask, train_text_tuning
from train.tasks.text_tuning_config import TextTuningConfig

COLUMNS = ("pixels_16",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that reads text 32 wide, an encoder that knows red but not yellow, and a pack with both."""
    folder = tmp_path_factory.mktemp("tuning")
    base = unet_config("micro-base", text_dim=32)
    save_stage(folder / "stage", trained(base), base, DiffusionConfig().model_dump(mode="json"), 5)
    save_encoder(folder / "encoder", "t5")
    write_pack(folder / "pack.parquet", 0, 32)
    return folder


def make_config(**changes: Any) -> TextTuningConfig:
    given = {"model": "stage", "resolution": 16, "tokens": {"yellow": "red"}, "steps": 20, "batch_size": 8}
    given |= {"learning_rate": 0.05, "warmup_steps": 2, "checkpoint_every": 6, "log_every": 4, "ema_decay": 0.8}
    return TextTuningConfig.model_validate(given | changes, strict=False)


def make_task(folder: Path, config: TextTuningConfig, **options: Any) -> TextTuningTask:
    return TextTuningTask(config, TextOptions(str(folder / "encoder"), **options), str(folder / "stage"))


def make_loader(folder: Path) -> Loader:
    return Loader([str(folder / "pack.parquet")], None, COLUMNS, "train", 0, 8)


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Path:
    """A finished tuning of one word."""
    config = make_config()
    train(make_task(folder, config), config, make_loader(folder), str(folder / "tuned"), 0)
    return folder / "tuned"


def test_a_word_is_learned_and_nothing_else_of_the_encoder(folder: Path, tuned: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (folder / "encoder", tuned / "export"))
    encoder = {name for name in after if name != "shared.weight"}
    assert encoder and all(torch.equal(after[name], before[name]) for name in encoder)
    row_D, known_ND = after["shared.weight"][-1], before["shared.weight"]
    assert torch.equal(after["shared.weight"][:-1], known_ND) and len(known_ND) == len(WORDS)
    moved = (row_D - known_ND[WORDS.index("red")]).abs().max()  # it began there
    assert moved > 0.05
    assert torch.equal(load_file(tuned / "export/learned_tokens.safetensors")["yellow"], row_D)
    plain, exported = TextEncoder.from_folder(str(folder / "encoder")), TextEncoder.from_folder(str(tuned / "export"))
    np.testing.assert_array_equal(plain.encode(["a red circle"])[0], exported.encode(["a red circle"])[0])
    assert len(exported.tokenize(["a yellow circle"])[0][0]) == 4


def test_the_loss_of_captions_with_the_word_falls(folder: Path, tuned: Path) -> None:
    task = make_task(folder, make_config())
    loader = make_loader(folder)
    batch = loader.batch(0)
    kept = [index for index, caption in enumerate(batch["caption"]) if "yellow" in caption]
    assert kept
    batch = {
        name: value[kept] if isinstance(value, torch.Tensor) else [value[index] for index in kept]
        for name, value in batch.items()
    } | {"index_B": batch["index"][kept]}
    model = build_model(task, make_config(), 0)
    before, _ = task.loss(model, batch, SampleRandom.of_batch(0, 3, batch))
    learned_D = load_file(tuned / "export/learned_tokens.safetensors")["yellow"]
    model.load_state_dict({"tokens": (learned_D / task.unit)[None]}, strict=False)
    after, _ = task.loss(model, batch, SampleRandom.of_batch(0, 3, batch))
    assert float(after) < float(before)


def test_checkpoints_hold_the_words_alone_and_resume(folder: Path, tuned: Path, tmp_path: Path) -> None:
    names = {name for file in (tuned / "checkpoints/step-00000020").glob("*.safetensors") for name in load_file(file)}
    assert names and all(name.startswith("tokens") for name in names)
    config = make_config()
    with pytest.raises(StopError):
        train(make_task(folder, config), config, make_loader(folder), str(tmp_path), 0, None, stop_after(16))
    result = train(make_task(folder, config), config, make_loader(folder), str(tmp_path), 0)
    assert result["resumed_from"] in (6, 12) and result["parameters"] == 32
    assert rows(tmp_path) == rows(tuned)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_the_same_words(folder: Path, tuned: Path, tmp_path: Path, stage: int) -> None:
    config = make_config(zero_stage=stage)
    train(make_task(folder, config), config, make_loader(folder), str(tmp_path), 0)
    found, wanted = (load_file(path / "export/learned_tokens.safetensors")["yellow"] for path in (tmp_path, tuned))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_over_the_encoder_alone_and_applies_to_it(folder: Path, tmp_path: Path) -> None:
    config = make_config(tokens={}, adapter={"rank": 2, "alpha": 4.0}, learning_rate=0.02)
    task = make_task(folder, config)
    model = build_model(task, config, 0)
    learned = [name for name, value in model.named_parameters() if value.requires_grad]
    assert learned and all(name.startswith("text_encoder.") and ".lora_" in name for name in learned)
    train(task, config, make_loader(folder), str(tmp_path), 0)
    path = tmp_path / "export/adapter.safetensors"
    assert all(name.startswith("text_encoder.encoder.block.") for name in load_file(path))
    encoder = TextEncoder.from_folder(str(folder / "encoder"))
    before = encoder.encode(["a red circle"])[0]
    apply_adapters([AdapterChoice(str(path))], [], lambda: encoder)
    exported = TextEncoder.from_folder(str(tmp_path / "export")).encode(["a red circle"])[0]
    np.testing.assert_allclose(encoder.encode(["a red circle"])[0], exported, rtol=1e-4, atol=1e-5)
    assert np.abs(exported - before).max() > 1e-3


def test_padding_and_case_are_those_of_the_run(folder: Path) -> None:
    task = make_task(folder, make_config(), max_length=9, pad=True, lowercase=True)
    batch = {**make_loader(folder).batch(0)}
    batch["caption"] = [caption.upper() for caption in batch["caption"]]
    batch["index_B"] = batch["index"]
    inputs = task.prepare(batch, SampleRandom.of_batch(0, 0, batch))["inputs"]
    assert inputs.ids_BL.shape == (8, 9) and inputs.kept_BL.all() and not inputs.mask_BL.all()
    assert (inputs.ids_BL == task.ids[0]).any() == any("YELLOW" in caption for caption in batch["caption"])


def test_the_whole_task_runs_from_an_index(folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.parquet"
    index_shards([str(folder / "pack.parquet")], None, COLUMNS).write(str(index))
    options, stage = TextOptions(str(folder / "encoder")), str(folder / "stage")
    config = make_config(steps=2, peak_tflops=1e-3)
    result = train_text_tuning(str(index), True, options, stage, config, str(tmp_path / "run"), 0)
    assert result["step"] == 2 and result["validation_loss"] > 0
    assert all(row["mfu"] > 0 for row in read_json_lines(f"{tmp_path}/run/log.jsonl"))


def test_captions_are_drawn_by_their_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, index, drawn = tmp_path / "pack.parquet", tmp_path / "index.parquet", list[str]()
    write_pack(pack, 0, 32, captions=2, source="one", names=("first", "second"))
    index_shards([str(pack)], None, COLUMNS).write(str(index))

    def note(task: Any, config: Any, loader: Loader, *_: Any) -> dict[str, Any]:
        drawn.extend(caption for step in range(4) for caption in loader.batch(step)["caption"])
        return {}

    monkeypatch.setattr(text_tuning, "train", note)
    mix = DataMix(sources={"one": 1.0}, captions={"one": {"first": 1.0, "second": 1e-9}})
    options, stage = TextOptions(str(folder / "encoder")), str(folder / "stage")
    train_text_tuning(str(index), False, options, stage, make_config(), str(tmp_path / "run"), 0, mix)
    assert len(drawn) == 32 and all(caption.endswith("#0") for caption in drawn)


def test_image_models_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, width, lowres, message in (
        ("wide", 9, False, "reads text 9 wide, the encoder's is 32; name the encoder"),
        ("sr", 32, True, "enlarges images; name the base stage, RUN:STAGE"),
    ):
        network = unet_config("micro-sr" if lowres else "micro-base", text_dim=width)
        save_stage(tmp_path / name, trained(network), network, DiffusionConfig().model_dump(mode="json"), 5)
        task = TextTuningTask(make_config(), TextOptions(str(folder / "encoder")), str(tmp_path / name))
        with pytest.raises(UserError, match=rf"text_tuning\.model=stage: {message}"):
            task.build()
