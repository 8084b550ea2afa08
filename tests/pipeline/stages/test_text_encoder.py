"""Stage `encoder`: which encoder is pretrained, by the config's task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dataprep.io import storage
from dataprep.io.parquet import write_table
from pipeline.config_loading import load_config
from pipeline.planner.encoders import estimate_text_cost
from pipeline.stages import text_encoder
from pipeline.stages.text_encoder import EncoderStageConfig, find_text_width
from tests.helpers.contexts import make_context
from tests.helpers.paths import ROOT
from train.tasks.bert_config import BertTrainingConfig
from train.tasks.t5_config import T5TrainingConfig

BERT = "encoder.pretrain={task: bert, d_model: 48, heads: 2, d_ff: 64, layers: 2, steps: 5, batch_size: 16}"


@pytest.mark.parametrize(
    ("changes", "rank", "kind"),
    [([], text_encoder.train_t5_rank, T5TrainingConfig), ([BERT], text_encoder.train_bert_rank, BertTrainingConfig)],
)
def test_the_task_chooses_the_encoder(
    changes: list[str], rank: object, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(ctx: object, function: object, arguments: object, config: object, seed: int) -> None:
        given.update(function=function, arguments=arguments, config=config)

    monkeypatch.setattr(text_encoder, "train_on_cluster", record)
    rows = {"caption": ["a red square", None, "gone"], "status": ["success", "success", "failed"]}
    write_table(pa.table(rows), tmp_path / "d.parquet", "download")
    ctx = make_context(tmp_path, "encoder")
    ctx.config = EncoderStageConfig.from_run(load_config(str(ROOT / "configs/smoke.yaml"), changes))
    ctx.inputs = SimpleNamespace(download=SimpleNamespace(files=lambda: [str(tmp_path / "d.parquet")]))
    text_encoder.run(ctx)
    assert given["function"] is rank and type(given["config"]) is kind
    assert given["arguments"] == {"captions": ["a red square"]}
    assert storage.read_json(ctx.path("model.json")) == {"model": None}


def test_the_width_and_cost_of_a_bert() -> None:
    """Six matrices a layer, where a T5's gated layers have seven."""
    config = load_config(str(ROOT / "configs/smoke.yaml"), [BERT]).encoder
    assert find_text_width(config) == 48
    cost = estimate_text_cost(config)
    assert cost.flops_per_token - 2 * 4 * 48 * 32 == 2 * 2 * (4 * 48 * 48 + 2 * 48 * 64)
