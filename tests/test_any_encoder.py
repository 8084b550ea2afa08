"""Folders of other encoders go through embed into a training step; a folder of no encoder ends with exit 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from dataprep.text.config import EmbedConfig
from dataprep.text.embed import embed_shard, load_encoder
from pipeline.cli.main import main
from pipeline.runtime import ray_session
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import COLOURS, SIDES, write_pack
from tests.helpers.paths import ROOT
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig

WORDS = ("<pad>", "</s>", "<unk>", "a", "square", "on", "the", "一个", "正方形", *COLOURS, *SIDES)


@pytest.mark.parametrize(("kind", "codec", "width"), [("bert", "int8", 16), ("mt5", "float16", 32)])
def test_an_encoder_of_another_kind_trains_a_step(
    tmp_path: Path, kind: str, codec: Literal["int8", "float16"], width: int
) -> None:
    encoder = save_encoder(tmp_path / "encoder", kind, WORDS)
    pack = write_pack(tmp_path / "p", 0, 16, rows=8)
    config = EmbedConfig(codec=codec)
    counters = embed_shard(pack, tmp_path / "e", load_encoder(encoder, config), config)
    assert counters["captions"] == 16 and counters["codec_low_tokens"] == 0
    data = Loader([pack], [str(tmp_path / "e")], ("pixels_16",), "train", 0, 8)
    task = DiffusionTask(DiffusionStageConfig(resolution=16, model="micro-base"), width)
    model = task.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = data.batch(0)
    assert batch["text_BLD"].shape[-1] == width
    loss, _ = task.loss(model, batch, SampleRandom(0, 0, batch["index"].tolist()))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_of_no_encoder_ends_with_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(ray_session, "connect_ray", lambda config: pytest.fail("Ray was started"))
    folder = Path(save_encoder(tmp_path / "gpt", "gpt2"))
    described = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(described))
    capsys.readouterr()  # transformers' progress bars
    words = ["run", str(ROOT / "configs" / "smoke.yaml"), f"run={tmp_path}/run", "encoder.pretrain=null"]
    with pytest.raises(SystemExit) as caught:
        main([*words, f"encoder.model={folder}"])
    printed = capsys.readouterr().err
    assert caught.value.code == 2, printed
    assert "is a GPT2LMHeadModel, not a text encoder" in printed and len(printed.strip().splitlines()) == 1


def test_a_tokenizer_that_cannot_be_read_ends_with_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "connect_ray", lambda config: pytest.fail("Ray was started"))
    folder = save_encoder(tmp_path / "bert", "bert")
    (tmp_path / "bert/tokenizer.json").write_text("{}")
    capsys.readouterr()  # transformers' progress bars
    words = ["run", str(ROOT / "configs" / "smoke.yaml"), f"run={tmp_path}/run", "encoder.pretrain=null"]
    with pytest.raises(SystemExit) as caught:
        main([*words, f"encoder.model={folder}"])
    printed = capsys.readouterr().err
    assert caught.value.code == 2, printed
    assert "its tokenizer.json cannot be read" in printed and len(printed.strip().splitlines()) == 1
