"""The cascade: export and load, the same image in any batch, stages chained, and a refusal of each broken part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import eval.cascade as cascade_module
from dataprep.schema import UserError
from eval.cascade import Cascade
from eval.generate import pad_text
from eval.settings import CascadeConfig, SamplingConfig, StageEntry, resolve, write_cascade
from train.diffusion.objective import DiffusionConfig
from train.models.export import CONFIG_FILE, WEIGHTS_FILE, load_stage, save_stage
from train.models.presets import unet_config
from train.models.unet import UNet, UNetConfig

FAST = SamplingConfig(steps=3, guidance=2.0)
BASE, SR = unet_config("micro-base", text_dim=8), unet_config("micro-sr", text_dim=8)


class WordEncoder:
    """A fixed random vector a word."""

    dim = 8

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        rows = [
            [np.random.default_rng(list(word.encode())).normal(size=8) for word in text.split()] for text in captions
        ]
        return [np.asarray(row, np.float32).reshape(-1, 8) for row in rows]

    def beyond(self, caption: str) -> str:
        return " ".join(caption.split()[10:])


def trained(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    model = UNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def export(folder: Path) -> Path:
    for name, config in (("base", BASE), ("sr", SR)):
        diffusion = DiffusionConfig().model_dump(mode="json")
        save_stage(folder / name, trained(config), config, diffusion, trained_steps=5)
    stages = [
        StageEntry(name="base", resolution=8, path="base", sampling=FAST),
        StageEntry(name="sr", resolution=16, low_resolution=8, path="sr", sampling=FAST),
    ]
    write_cascade(folder, CascadeConfig(stages=stages, encoder="encoder"))
    (folder / "encoder").mkdir()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts the word encoder in the place of the real one; gives the list of folders that were asked for."""
    asked: list[str] = []

    class Loader:
        @staticmethod
        def from_folder(path: str, max_length: int, device: str) -> WordEncoder:
            asked.append(path)
            return WordEncoder()

    monkeypatch.setattr(cascade_module, "TextEncoder", Loader)
    return asked


def difference(one: object, other: object) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_images_sizes_and_order(folder: Path, encoder: list[str]) -> None:
    cascade = Cascade.from_pretrained(folder)
    assert encoder == [str(folder / "encoder")]
    samples = cascade(["a cat", "two dogs"], num=2)
    assert [image.size for image in samples.images] == [(16, 16)] * 4
    assert samples.prompts == ["a cat", "a cat", "two dogs", "two dogs"] and samples.indices == [0, 1, 0, 1]
    assert cascade("a cat", stop_at="base").images[0].size == (8, 8)


def test_same_image_in_any_batch(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    together = cascade(["a cat", "two big dogs in the rain", "a cat"], num=3, seed=7)
    alone = cascade("two big dogs in the rain", num=2, seed=7, batch_size=1)
    assert difference(together.images[3], alone.images[0]) <= 1
    assert difference(together.images[4], alone.images[1]) <= 1
    assert difference(together.images[0], together.images[6]) <= 1
    assert difference(together.images[0], together.images[1]) > 8
    assert difference(together.images[0], together.images[3]) > 8
    assert difference(together.images[0], cascade("a cat", seed=8).images[0]) > 8
    again = cascade(["a cat", "two big dogs in the rain", "a cat"], num=3, seed=7)
    assert all(difference(a, b) == 0 for a, b in zip(together.images, again.images, strict=True))


def test_the_call_overrides_defaults(folder: Path) -> None:
    cascade = Cascade.from_pretrained(folder)
    plain = cascade("a cat").images[0]
    assert difference(plain, cascade("a cat", guidance={"sr": 2.0}, steps={"base": 3}).images[0]) == 0
    assert difference(plain, cascade("a cat", guidance={"base": 5.0}).images[0]) > 0
    assert difference(plain, cascade("a cat", steps=5).images[0]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"num": 0}, "num 0 is too small"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"stop_at": "sr9"}, "stop_at 'sr9' is not a stage; take one of base, sr"),
        ({"guidance": {"sr9": 2.0}}, "stage 'sr9' is unknown; take one of base, sr"),
        ({"steps": 0}, "steps 0: .*greater than or equal to 1"),
        ({"guidance": -1.0}, "guidance -1.0"),
    ],
)
def test_wrong_calls(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Cascade.from_pretrained(folder)(**({"prompts": "a cat"} | options))  # type: ignore[arg-type]


def test_stage_round_trip(tmp_path: Path) -> None:
    model = trained(BASE)
    save_stage(tmp_path, {k: v.bfloat16() for k, v in model.state_dict().items()}, BASE, {"a": 1}, 3)
    loaded, settings = load_stage(tmp_path)
    assert loaded.config == BASE and settings["diffusion"] == {"a": 1} and settings["trained_steps"] == 3
    assert not loaded.training and loaded.out.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.out.weight, model.out.weight, atol=1e-2, rtol=1e-2)


def test_bytes_are_a_function_of_the_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_stage(tmp_path / name, trained(BASE), BASE, {}, 1)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_untrained_and_broken_stages_are_refused(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_stage(tmp_path)

    refused("config.json is missing; train this stage first")
    save_stage(tmp_path, UNet(BASE), BASE, {}, 10)
    refused("was never trained")
    save_stage(tmp_path, trained(BASE), BASE, {}, 0)
    refused("was never trained")
    broken = trained(BASE)
    with torch.no_grad():
        broken.stem.weight[0] = float("nan")
    save_stage(tmp_path, broken, BASE, {}, 10)
    refused(r"1 tensors are not finite \(first: stem.weight\)")
    save_stage(tmp_path, trained(SR), BASE, {}, 10)
    refused("do not fit")
    save_stage(tmp_path, trained(BASE), BASE, {}, 10)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"torn")
    refused("do not fit")
    (tmp_path / WEIGHTS_FILE).unlink()
    refused("model.safetensors is missing")
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    save_stage(tmp_path, trained(BASE), BASE, {}, 10)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"format": 9}))
    refused("format 9, this imagen-ray reads 1")


def test_broken_cascades_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Cascade.from_pretrained(tmp_path)

    refused("has no cascade.json")
    export(tmp_path)
    whole = json.loads((tmp_path / "cascade.json").read_text())

    def rewrite(change: dict[str, object], stage: int | None = None) -> None:
        value = json.loads(json.dumps(whole))
        (value if stage is None else value["stages"][stage]).update(change)
        (tmp_path / "cascade.json").write_text(json.dumps(value))

    rewrite({"stages": []})
    refused("stages is empty")
    rewrite({"low_resolution": 4}, stage=1)
    refused("stage sr: low_resolution is 4; it must be 8")
    rewrite({"colour": 4}, stage=1)
    refused("cascade.json: .*Extra inputs are not permitted")
    (tmp_path / "cascade.json").write_text("[")
    refused("cascade.json: .*export again")
    rewrite({"path": "sr"}, stage=0)
    refused("stage base: low_resolution None does not fit its U-Net")
    rewrite({"resolution": 18}, stage=1)
    refused("resolution 18 is not a multiple of 4")
    rewrite({})
    save_stage(tmp_path / "sr", trained(SR), SR, {"schedule": "sine"}, 5)
    refused("stage sr: diffusion settings: ")
    save_stage(tmp_path / "sr", trained(SR), SR, {}, 5)
    monkeypatch.setattr(WordEncoder, "dim", 9)
    refused("encoder encoder: width 9, stage base was trained on width 8")


def test_pad_text_and_resolve(tmp_path: Path) -> None:
    text, mask = pad_text([np.ones((2, 3)), np.ones((0, 3)), np.ones((1, 3))])
    assert text.shape == (3, 2, 3) and mask.tolist() == [[True, True], [False, False], [True, False]]
    assert float(text[1].abs().max()) == 0
    assert pad_text([np.ones((0, 3))])[0].shape == (1, 1, 3)
    assert resolve(tmp_path, "google/t5-v1_1-small") == "google/t5-v1_1-small"
