"""The evaluate stage on made-up runs: documented keys, plausible values, feature workers, references, sweep."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dataprep.images.faces import FacesConfig
from dataprep.images.text_area import TextConfig
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from eval.clip.scorer import ClipScorer
from eval.metrics.config import EvaluateConfig, FeaturesConfig, LikelihoodConfig, MemorisationConfig, SweepConfig
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.samples_table import read_samples, write_samples
from eval.sampling.config import StageEntry
from eval.sampling.options import SamplingOptions
from eval.sampling.stage_sampler import LoadedStage
from pipeline.report import charts
from pipeline.report.sections.audit import show_audit
from pipeline.report.sections.metrics import show_metrics
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages import evaluate, image_features, image_likelihood, reference_images
from tests.helpers.judged import SIZE, draw_caption, fake_clip, make_evaluate_context, make_run
from tests.helpers.paths import ROOT
from tests.helpers.text_networks import write_db_network
from train.diffusion.config import DiffusionConfig
from train.models.base import Conditions, DenoiserConfig


@pytest.fixture(autouse=True)
def clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScorer, "load", fake_clip)


def judged(root: Path, right: float, config: EvaluateConfig | None = None, **more: Any) -> dict[str, Any]:
    ctx = make_evaluate_context(make_run(root, right, **more), config or EvaluateConfig())
    evaluate.run(ctx)
    metrics = storage.read_json(ctx.path("metrics.json"))
    assert isinstance(metrics, dict)
    return metrics


def test_figures_react_and_every_key_is_documented(tmp_path: Path) -> None:
    good, bad = judged(tmp_path / "good", 1.0), judged(tmp_path / "bad", 0.4)
    assert (good["images"], good["candidates"]) == (40, 2)
    assert good["composition"]["seen"]["all"] > 0.95 > bad["composition"]["seen"]["all"]
    assert good["clip_score"] > bad["clip_score"]
    for metrics in (good, bad):
        assert metrics["clip_score_interval"]["low"] < metrics["clip_score"] < metrics["clip_score_interval"]["high"]
        assert metrics["clip_score_chance"] < metrics["clip_score_first"]["value"] <= metrics["clip_score"]
        assert metrics["reference"] == {"what": "validation images of the run", "images": 60, "size": SIZE}
        assert metrics["distances"]["clip"]["name"] == "fd_clip"
        assert metrics["fd_clip"] == metrics["distances"]["clip"]["fd"] > 0
        assert "40 images for 48 dimensions" in metrics["distances"]["clip"]["note"]
        assert metrics["retrieval"]["n"] == 60
        assert metrics["sweep"] == []
        assert metrics["validation_loss"] == {"train.base": {"loss": 0.5, "loss_noise_1of4": 0.25}}
        content = show_metrics(metrics)
        values, figures = content.values, content.charts
        assert set(figures) == {"composition_split", "composition_language", "scores", "best_of"}
        assert [row["group"] for row in values["composition"] if row["attribute"] == "all"] == [
            "seen",
            "heldout",
            "en",
            "zh",
        ]
        assert all(charts.encode_figure(figure) for figure in figures.values())
        for entry in metrics["composition_table"]:
            assert entry["ceiling"] >= 0.9, entry  # few pictures of 32 pixels
            assert entry["low"] <= entry["accuracy"] <= entry["high"]
        assert {entry["language"] for entry in metrics["composition_language_table"]} == {"en", "zh"}
    assert bad["best_of"][1]["accuracy"]["value"] > bad["best_of"][0]["accuracy"]["value"]
    documented = set(re.findall(r"`(\w+)", (ROOT / "docs" / "metrics.md").read_text()))
    assert sorted(key for key in good if key not in documented) == ["cmmd_clip", "fd_clip"]  # `fd_<key>`


def test_prompts_outside_of_the_grammar_have_no_composition(tmp_path: Path) -> None:
    from eval.sampling.prompts import EvalPrompt

    other = [EvalPrompt("a photograph of a dog", "animals", "en", None)]
    metrics = judged(tmp_path, 1.0, more=other)
    assert metrics["clip_score_by"]["animals"]["n"] == 1
    assert set(metrics["composition"]) == {"seen", "heldout"}
    assert metrics["best_of"][0]["accuracy"] is None


def test_samples_are_audited_as_the_training_images(tmp_path: Path) -> None:
    text = TextConfig(model=str(write_db_network(tmp_path / "db.onnx", 64)), side=64)
    looked_for = {"faces": FacesConfig(), "text": text, "labels": {"what": ("a red circle", "a blue square")}}
    ctx = make_evaluate_context(make_run(tmp_path / "run", 1.0), EvaluateConfig(), **looked_for)
    evaluate.run(ctx)
    audit = storage.read_json(ctx.path("metrics.json"))["audit"]
    assert ctx.counters["audited"] == audit["captions"] == 40  # first candidates alone
    assert sum(audit["faces"].values()) == sum(audit["text"].values()) == 40
    what = audit["labels"]["what"]
    assert list(what) == ["a red circle", "a blue square"] and sum(what.values()) == 40 and min(what.values()) > 0
    section = show_audit({"captions": 5, "faces": {"0": 4, "1": 1}}, audit)
    assert section is not None
    faces = next(table for table in section.values["tables"] if table["title"] == "Faces")
    assert faces["rows"][1][1:3] == [1, "20.0%"]


def test_nothing_to_judge(tmp_path: Path) -> None:
    metrics = judged(tmp_path, 1.0, count=0)
    assert (metrics["images"], metrics["clip_score"], metrics["reference"]) == (0, None, None)
    assert metrics["composition"] == {} and metrics["best_of"] == []


def test_a_reference_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    for index in range(7):
        image = draw_caption("a red circle", np.random.default_rng(index), 48)
        Image.fromarray(image).save(folder / f"{index}.png")
    metrics = judged(tmp_path / "run", 1.0, EvaluateConfig(reference=str(folder)))
    assert metrics["reference"] == {"what": str(folder), "images": 7, "size": SIZE}
    assert metrics["retrieval"]["n"] == 60  # still of the run's own pairs
    far = metrics["distances"]["clip"]
    assert far["reference_images"] == 7
    assert far["coverage"] is not None
    with pytest.raises(UserError, match="no images and no tars"):
        reference_images.find_reference_files(str(tmp_path / "none"))


def test_a_reference_of_tars(tmp_path: Path) -> None:
    import tarfile

    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for index in range(3):
                path = tmp_path / f"{shard}{index}.png"
                Image.new("RGB", (40, 40), (60 * index, 9, 9)).save(path)
                tar.add(path, path.name)
                path.unlink()
    shards = reference_images.make_reference_shards(str(tmp_path))
    worker = image_features.FeatureWorker({}, [FeaturesConfig()], [16], {})
    out = tmp_path / "out"
    out.mkdir()
    assert [worker(ShardTask(shard.id, shard.files, out)) for shard in shards] == [{"reference_images": 3}] * 2
    table = read_table(out / f"{shards[1].id:05d}.parquet", "features")
    assert table["id"].to_pylist() == ["00001.tar/10", "00001.tar/11", "00001.tar/12"]


# ---------------------------------------------------------------------------------------------- sweep


class Painter:
    """A cascade that shows its prompts if guidance is above 1, else one fixed prompt."""

    def __init__(self, stages: list[Any], encoder: object, device: object) -> None:
        self.stages, self.encoder, self.device = stages, encoder, device

    def with_stages(self, stages: list[Any]) -> Painter:
        return Painter(stages, self.encoder, self.device)

    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Any:
        settings = next(stage.entry.sampling for stage in self.stages if stage.entry.name == options.stop_at)
        asked = prompts if settings.guidance > 1 else ["a red circle"] * len(prompts)
        rng = np.random.default_rng(options.seed)
        return SimpleNamespace(images=[Image.fromarray(draw_caption(prompt, rng, SIZE)) for prompt in asked])


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = StageEntry(name="base", resolution=SIZE, path="p")

    def build(config: object, device: str) -> Painter:
        stage = LoadedStage(entry, None, None)  # type: ignore[arg-type]
        return Painter([stage], None, None)

    monkeypatch.setattr(image_features, "build_cascade", build)
    sweep = SweepConfig(guidance=(1.0, 4.0), steps=(3,), prompts=12)
    rows = judged(tmp_path, 1.0, EvaluateConfig(sweep=sweep), guidance=3.0)["sweep"]
    assert [(row["swept"], row["guidance"], row["steps"]) for row in rows] == [
        ("guidance", 1.0, 20),
        ("guidance", 4.0, 20),
        ("steps", 3.0, 3),
    ]
    assert rows[0]["clip_score"]["value"] < rows[1]["clip_score"]["value"]
    assert rows[0]["accuracy"] < 0.5 < rows[1]["accuracy"]
    assert rows[0]["fd_clip"] > rows[1]["fd_clip"]
    assert {row["images"] for row in rows} == {12}
    assert set(show_metrics({"sweep": rows}).charts) == {"guidance", "by_steps"}


# ---------------------------------------------------------------------------------------------- likelihood


class CountingDenoiser(nn.Module):
    """Predicts white as x_0, which drawings mostly are; counts the images of each call."""

    config = DenoiserConfig()

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.text_BLD is not None and len(conditions.text_BLD) == len(x_BCHW)
        self.rows.append(len(x_BCHW))
        return torch.ones_like(x_BCHW) + 0 * x_BCHW


def test_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CountingDenoiser()
    stage = LoadedStage(StageEntry(name="base", resolution=SIZE, path="p"), model, DiffusionConfig(prediction="x0"))
    encoder = SimpleNamespace(encode=lambda captions: [np.ones((2, 3), np.float32) for _ in captions])
    cascade = SimpleNamespace(stages=[stage], encoder=encoder, device="cpu")
    monkeypatch.setattr(image_likelihood, "build_cascade", lambda config, device: cascade)
    config = LikelihoodConfig(images=40, batch_size=32, levels=2, steps=1)
    metrics = judged(tmp_path, 1.0, EvaluateConfig(likelihood=config), count=2)
    values = metrics["more"]["likelihood"]["values"]
    assert set(values) >= {"base: bound", "base: ODE", "base: prior", "base: reconstruction"} and len(values) == 6
    assert values["base: bound"]["low"] < values["base: bound"]["value"] < values["base: bound"]["high"]
    # The first 40 of 60, in two batches: reconstruction, two levels, and an ODE of one step.
    assert model.rows == [32] * 5 + [8] * 5


def test_samples_keep_their_size_where_others_are_measured_at_several(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1.0, count=2)
    (shard, _) = run.artifacts()["sample"].shards
    shard.files["sample.parquet"] = shard.files["parquet"]
    out = tmp_path / "out"
    out.mkdir()
    image_features.FeatureWorker({}, [FeaturesConfig()], [16, SIZE], {})(ShardTask(shard.id, shard.files, out))
    table = read_table(out / f"{shard.id:05d}.parquet", "features")
    assert table["size"].to_pylist() == [SIZE, SIZE]


# ---------------------------------------------------------------------------------------------- judges and copies


def test_near_copies_of_training_images_are_found(tmp_path: Path) -> None:
    """The stage searches the pack's training rows; a sample that is one of them bit by bit warns."""
    config = EvaluateConfig(memorisation=MemorisationConfig(threshold=0.03))
    quiet = judged(tmp_path / "quiet", 1.0, config, candidates=1)["memorisation"]
    assert (quiet["training_images"], quiet["size"], quiet["samples"]["images"]) == (20, SIZE, 40)
    assert quiet["held_out"]["images"] == 60 and quiet["held_out"]["what"] == "validation images"
    assert quiet["samples"]["exact"] == 0 and quiet["warning"] is None

    run = make_run(tmp_path / "copied", 1.0, candidates=1)
    pack = run.artifacts()["pack"].files()
    rows = (row for path in pack for row in image_features.read_packed_images(path, SIZE, "train"))
    trained = {name: image for name, image, _ in rows}
    names = sorted(trained)[:3]
    path = run.artifacts()["sample"].files()[0]
    samples = list(read_samples([path], images=True))
    for number, name in enumerate(names):
        samples[number] = replace(samples[number], png=encode_png(trained[name]))
    write_samples(samples, path)
    ctx = make_evaluate_context(run, config)
    evaluate.run(ctx)
    found = storage.read_json(ctx.path("metrics.json"))["memorisation"]
    assert {pair["training"] for pair in found["closest"][:3]} == set(names)
    assert [pair["prompt"] for pair in found["closest"][:3]] and found["samples"]["exact"] == 3
    assert "samples are near copies of training images" in found["warning"]
    assert storage.list_files(ctx.path("features", "neighbours")) == ["00000.parquet", "00001.parquet"]
    assert not storage.exists(ctx.path("features", image_features.QUERIES))  # held images


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_judges_look_at_every_candidate(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((1, 48), 0.5)}, tmp_path / "head.pth")
    judge = JudgeConfig(kind="aesthetic", model=str(tmp_path / "head.pth"))
    found = judged(tmp_path / "run", 1.0, EvaluateConfig(judges=(judge,)), count=5)["judges"]["aesthetic"]
    assert found["images"] == 20  # 10 prompts of 2 candidates
    assert found["values"]["mean score"]["low"] < found["values"]["mean score"]["high"]
    assert show_metrics({"judges": {"aesthetic": found}}).values["more"][0]["title"] == "Aesthetic score"
