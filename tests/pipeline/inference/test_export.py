"""``imagen-ray export``: shards, other types, the metadata of the card, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder
from eval.sampling.config import CascadeConfig, StageEntry, read_cascade, resolve_paths
from eval.sampling.loading import load_stages
from pipeline.inference import export
from pipeline.inference.export import ExportOptions, export_run, parse_size
from pipeline.store.run import Run
from tests.helpers.cascades import BASE, FAST, trained
from tests.helpers.cascades import export as export_cascade
from tests.helpers.encoders import save_encoder, word_tokenizer
from tests.helpers.judged import make_run
from tests.helpers.trained_runs import commit_stage
from tests.train.models.adapters.test_lora import adapt
from train.models.weight_files import count_parameters

METRICS: dict[str, Any] = {
    "images": 40,
    "candidates": 1,
    "clip_score": 0.31234,
    "clip_score_interval": {"low": 0.3, "high": 0.32},
    "reference": {"what": "validation images of the run", "images": 60, "size": 8},
    "distances": {
        "clip": {"name": "fd_clip", "model": "CLIP", "fd": 0.25, "images": 40, "reference_images": 60},
        "dino": {"name": "fd_dino", "model": "DINOv2", "fd": None, "images": 40, "reference_images": 60},
    },
    "cmmd_clip": 0.5,
    "composition": {"seen": {"all": 0.9, "count": 1.0}},
    "judges": {"hps": {"title": "HPS v2", "values": {"mean score": {"value": 0.25, "low": 0.2, "high": 0.3}}}},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose cascade is one of 8 and 16 pixels, with an encoder from a hub."""
    made = make_run(tmp_path / "run", 1.0, count=1)
    folder = export_cascade(tmp_path / "trained")
    stages = [
        StageEntry(name="base", resolution=8, path=str(folder / "base"), sampling=FAST),
        StageEntry(name="sr", resolution=16, low_resolution=8, path=str(folder / "sr"), sampling=FAST),
    ]
    config = CascadeConfig(stages=stages, encoder="google/t5-v1_1-xxl", clip="ViT-L-14", clip_pretrained="openai")
    monkeypatch.setattr(export, "run_cascade", lambda run: config)
    source = {"listing": {"source": "hf://datasets/me/birds/*.parquet"}}
    record = {**made.record(), "started": "2026-01-02T03:04:05", "config": source}
    storage.write_json(made.path("run.json"), record)
    storage.write_json(made.path("metrics.json"), METRICS)
    return made


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    stages = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    return {f"{s.entry.name}.{name}": value for s in stages for name, value in s.model.state_dict().items()}


def test_shards_and_types_load_as_the_same_cascade(run: Run, tmp_path: Path) -> None:
    whole = export_run(run.root, tmp_path / "whole", ExportOptions())
    shards = export_run(run.root, tmp_path / "shards", ExportOptions(shard_size="100KB"))
    half = export_run(run.root, tmp_path / "half", ExportOptions(dtype="bfloat16"))
    assert (whole / "base" / "model.safetensors").read_bytes() == Path(
        tmp_path / "trained" / "base" / "model.safetensors"
    ).read_bytes()
    assert len(list((shards / "base").glob("model-*.safetensors"))) > 1
    assert (shards / "base" / "model.safetensors.index.json").exists()
    expected, found, rounded = (weights_of(folder) for folder in (whole, shards, half))
    for name, value in expected.items():
        assert torch.equal(value, found[name])
        assert torch.equal(value.to(torch.bfloat16).float(), rounded[name])
    assert count_parameters(half / "sr")[1] == "bfloat16"
    assert sum(path.stat().st_size for path in half.rglob("*.safetensors")) < 0.6 * sum(
        path.stat().st_size for path in whole.rglob("*.safetensors")
    )
    assert "Weights: EMA, bfloat16, safetensors." in (half / "README.md").read_text()


def test_a_weaker_network_goes_along(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = export.run_cascade(run)
    base = config.stages[0].model_copy(update={"guide": config.stages[0].path})
    guided = config.model_copy(update={"stages": [base, config.stages[1]]})
    monkeypatch.setattr(export, "run_cascade", lambda run: guided)
    folder = export_run(run.root, tmp_path / "out", ExportOptions()).rename(tmp_path / "moved")
    guided_stage, plain = load_stages(resolve_paths(read_cascade(folder), folder), "cpu")
    assert (folder / "base_guide").is_dir() and guided_stage.guide is not None and plain.guide is None
    assert guided_stage.guide_digest == guided_stage.digest


def test_raw_weights_of_an_adapter_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(BASE)
    adapt(model, rank=2)
    raw = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    monkeypatch.setattr("train.resume.read_weights", lambda *_: (raw, 3))
    commit_stage(run, "train.base", "f" * 20)
    with pytest.raises(UserError, match=r"--weights raw: stage base was trained as an adapter.*; leave --weights out"):
        export_run(run.root, tmp_path / "out", ExportOptions(weights="raw"))
    assert not (tmp_path / "out").exists()


def test_of_a_pipeline_folder_only_the_text_encoder_is_copied(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "IF-I"
    save_encoder(source / "text_encoder", "t5")
    word_tokenizer().save_pretrained(source / "tokenizer")
    for name in ("unet/model.bin", "safety_checker/model.bin", ".git/HEAD", "text_encoder/.git/HEAD"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    for name in ("model_index.json", "LICENSE", "model.ckpt"):
        (source / name).write_text("{}")
    config = export.run_cascade(run).model_copy(update={"encoder": str(source)})
    monkeypatch.setattr(export, "run_cascade", lambda run: config)
    encoder = export_run(run.root, tmp_path / "out", ExportOptions()) / "encoder"
    copied = {path.name for path in encoder.iterdir()}
    assert copied == {"model_index.json", "text_encoder", "tokenizer", "LICENSE"}
    assert not list(encoder.rglob(".git"))
    texts = ["a red circle"]
    ours, theirs = (TextEncoder.from_folder(str(folder)).encode(texts)[0] for folder in (encoder, source))
    assert (ours == theirs).all()


def test_metadata_of_the_card_is_what_a_hub_reads(run: Run, tmp_path: Path) -> None:
    folder = export_run(run.root, tmp_path / "out", ExportOptions(licence="apache-2.0", datasets=("me/cats",)))
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "imagen-ray", "text-to-image")
    assert data.datasets == ["me/cats", "me/birds"]
    assert data.base_model == ["google/t5-v1_1-xxl"]
    assert {"text-to-image", "diffusion", "imagen-ray"} <= set(data.tags)
    assert data.metrics == ["clip_score", "fd_clip", "cmmd_clip", "composition_seen", "hps"]
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"clip_score": 0.3123, "fd_clip": 0.25, "cmmd_clip": 0.5, "composition_seen": 0.9, "hps": 0.25}
    assert json.loads((folder / "metrics.json").read_text()) == METRICS


def test_a_card_without_metrics_and_licence(run: Run, tmp_path: Path) -> None:
    storage.remove(run.path("metrics.json"))
    folder = export_run(run.root, tmp_path / "out", ExportOptions())
    text = (folder / "README.md").read_text().split("---")[1]
    assert "license" not in text and "metrics" not in text and "model-index" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(weights="best"), "--weights best is unknown; choose one of ema, raw"),
        (ExportOptions(dtype="int8"), "--dtype int8 is unknown; choose one of float32, bfloat16, float16"),
        (ExportOptions(shard_size="5 apples"), "--shard-size 5 apples: is no size; give one such as 5GB"),
        (ExportOptions(shard_size="0GB"), "--shard-size 0GB: is no size"),
    ],
)
def test_wrong_options(run: Run, tmp_path: Path, options: ExportOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_run(run.root, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5GB", "20 mb", "7KB")] == [5 * 10**9, 20 * 10**6, 7000]
