"""Folders of other encoders go through embed into a training step; a folder of no encoder ends with exit 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "dataprep"), str(ROOT / "tests" / "train")]
from encoder_fakes import save_encoder  # noqa: E402
from pack_fakes import COLOURS, SIDES, write_pack  # noqa: E402

from dataprep.embed import EmbedConfig, embed_shard, load_encoder  # noqa: E402
from pipeline.cli import main  # noqa: E402
from train.data import Loader  # noqa: E402
from train.order import SampleRandom  # noqa: E402
from train.tasks.diffusion import DiffusionStageConfig, DiffusionTask  # noqa: E402

WORDS = ("<pad>", "</s>", "<unk>", "a", "square", "on", "the", "一个", "正方形", *COLOURS, *SIDES)


@pytest.mark.parametrize(("kind", "codec", "width"), [("bert", "int8", 16), ("mt5", "float16", 32)])
def test_an_encoder_of_another_kind_trains_a_step(tmp_path: Path, kind: str, codec: str, width: int) -> None:
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
    from pipeline import cluster

    monkeypatch.setattr(cluster, "connect", lambda config: pytest.fail("Ray was started"))
    folder = Path(save_encoder(tmp_path / "gpt", "gpt2"))
    described = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (folder / "config.json").write_text(json.dumps(described))
    capsys.readouterr()  # transformers' progress bars
    words = ["run", str(ROOT / "configs" / "smoke.yaml"), f"run={tmp_path}/run", "encoder.pretrain=null"]
    with pytest.raises(SystemExit) as caught:
        main([*words, f"encoder.model={folder}"])
    printed = capsys.readouterr().err
    assert caught.value.code == 2, printed
    assert "is a GPT2LMHeadModel, no text encoder" in printed and len(printed.strip().splitlines()) == 1
