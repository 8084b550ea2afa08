"""The evaluate stage on made-up runs: its keys, how its figures react, its workers, references and sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judged_fakes import SIZE, context, fake_clip, make_run
from PIL import Image

from dataprep import storage
from dataprep.drawing import draw
from dataprep.grammar import parse
from dataprep.schema import UserError, read_table
from eval.clip import ClipScorer
from eval.features import FeaturesConfig, check_features, describe_features, distance_name, load_extractor
from eval.generate import Stage
from eval.protocol import EvaluateConfig, SweepConfig, sweep_points
from eval.settings import SamplingConfig, StageEntry
from pipeline.config import DTYPE, MAX_LENGTH
from pipeline.report import charts
from pipeline.report.measures import measures
from pipeline.steps import measure
from pipeline.steps.evaluate import collect, distances, evaluate

INPUTS = ("sample", "clip", "pack")


@pytest.fixture(autouse=True)
def clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScorer, "load", fake_clip)


def judged(root: Path, right: float, config: EvaluateConfig | None = None, **more: Any) -> dict[str, Any]:
    config = config or EvaluateConfig()
    run = make_run(root, right, **more)
    inputs = (*INPUTS, "train.base", "encoder") if config.sweep else INPUTS
    ctx = context(run, "evaluate", {"evaluate": config, MAX_LENGTH: 256, DTYPE: "float32"}, inputs)
    evaluate(ctx)
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
        assert "40 pictures for 48 dimensions" in metrics["distances"]["clip"]["note"]
        assert metrics["retrieval"]["n"] == 60
        assert metrics["sweep"] == []
        assert metrics["validation_loss"] == {"train.base": {"loss": 0.5, "loss_noise_1of4": 0.25}}
        values, figures = measures(metrics)
        assert set(figures) == {"composition_split", "composition_language", "scores", "best_of"}
        assert [row["group"] for row in values["composition"] if row["attribute"] == "all"] == [
            "seen",
            "heldout",
            "en",
            "zh",
        ]
        assert all(charts.to_json(figure) for figure in figures.values())
        for entry in metrics["composition_table"]:
            assert entry["ceiling"] >= 0.9, entry  # few pictures of 32 pixels
            assert entry["low"] <= entry["accuracy"] <= entry["high"]
        assert {entry["language"] for entry in metrics["composition_language_table"]} == {"en", "zh"}
    assert bad["best_of"][1]["accuracy"]["value"] > bad["best_of"][0]["accuracy"]["value"]
    documented = set(re.findall(r"`(\w+)", (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()))
    assert sorted(key for key in good if key not in documented) == ["fd_clip", "kid_clip"]  # `fd_<key>`


def test_prompts_outside_of_the_grammar_have_no_composition(tmp_path: Path) -> None:
    from eval.prompts import EvalPrompt

    other = [EvalPrompt("a photograph of a dog", "animals", "en", None)]
    metrics = judged(tmp_path, 1.0, more=other)
    assert metrics["clip_score_by"]["animals"]["n"] == 1
    assert set(metrics["composition"]) == {"seen", "heldout"}
    assert metrics["best_of"][0]["accuracy"] is None


def test_nothing_to_judge(tmp_path: Path) -> None:
    metrics = judged(tmp_path, 1.0, count=0)
    assert (metrics["images"], metrics["clip_score"], metrics["reference"]) == (0, None, None)
    assert metrics["composition"] == {} and metrics["best_of"] == []


def test_a_reference_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    for index in range(7):
        image = draw(parse("a red circle"), np.random.default_rng(index), 48)
        Image.fromarray(image).save(folder / f"{index}.png")
    metrics = judged(tmp_path / "run", 1.0, EvaluateConfig(reference=str(folder)))
    assert metrics["reference"] == {"what": str(folder), "images": 7, "size": SIZE}
    assert metrics["retrieval"]["n"] == 60  # still of the run's own pairs
    far = metrics["distances"]["clip"]
    assert far["reference_images"] == 7
    assert far["coverage"] is not None
    with pytest.raises(UserError, match="no images and no tars"):
        measure.reference_files(str(tmp_path / "none"))


def test_a_reference_of_tars(tmp_path: Path) -> None:
    import tarfile

    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for index in range(3):
                path = tmp_path / f"{shard}{index}.png"
                Image.new("RGB", (40, 40), (60 * index, 9, 9)).save(path)
                tar.add(path, path.name)
                path.unlink()
    shards = measure.numbered(measure.reference_shards(str(tmp_path)), measure.REFERENCE)
    worker = measure.FeatureWorker({}, [FeaturesConfig()], [16], {})
    out = tmp_path / "out"
    out.mkdir()
    assert [worker(shard, out) for shard in shards] == [{"reference_pictures": 3}] * 2
    table = read_table(out / f"{shards[1].id:05d}.parquet", "features")
    assert table["id"].to_pylist() == ["00001.tar/10", "00001.tar/11", "00001.tar/12"]
    assert len({shard.id for kind in measure.KINDS for shard in measure.numbered(shards, kind)}) == 6


def test_collecting_is_the_same_for_any_split_into_files(tmp_path: Path) -> None:
    from dataprep.schema import write_table

    rng, models = np.random.default_rng(0), {"clip": fake_clip()}
    images = [rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for _ in range(30)]
    ids = [str(index) for index in range(30)]
    whole = measure.features_table(models, measure.SAMPLE, 8, ids, images, ["a red circle"] * 30)

    def files(*cuts: int) -> list[str]:
        paths = []
        for start, stop in zip((0, *cuts), (*cuts, 30), strict=True):
            path = tmp_path / f"{len(cuts)}-{start}.parquet"
            write_table(whole.slice(start, stop - start), path, "features")
            paths.append(str(path))
        return paths[::-1]

    one, pairs = collect(files(), 10, 8)
    other, same_pairs = collect(files(1, 9, 20), 10, 8)
    a, b = one["sample", 8, "clip"], other["sample", 8, "clip"]
    assert np.array_equal(a.moments.covariance(), b.moments.covariance())
    assert [row[2] for row in pairs["sample"].taken()] == [row[2] for row in same_pairs["sample"].taken()]
    assert len(pairs["sample"].taken()) == 10
    config = FeaturesConfig()
    assert distances(a, b, config, "x") == distances(b, a, config, "x")
    assert distances(None, b, config, "x")["fd"] is None
    assert "fewer than two" in distances(None, b, config, "x")["note"]


# ---------------------------------------------------------------------------------------------- names


def test_only_the_weights_of_the_fid_make_an_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"something else")
    config = FeaturesConfig(model="inception", pretrained=str(weights))
    assert distance_name(config) == "fd_inception"
    assert "weights of w.pth" in describe_features(config, "")
    monkeypatch.setattr("eval.features.sha256_file", lambda path: ("6726825d" + "0" * 56, 1))
    assert distance_name(config) == "fid"
    assert distance_name(FeaturesConfig()) == "fd_clip"
    assert distance_name(FeaturesConfig(model="ViT-B-32", pretrained="openai")) == "fd_vit_b_32"
    assert check_features([config]) == [str(weights)]


def test_inception_gives_its_last_pooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the FID, with random weights from a file, on pictures of two sizes."""
    import torch

    from dataprep.torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.save(network("inception", ["2048"]).state_dict(), tmp_path / "weights.pth")
    config = FeaturesConfig(model="inception", pretrained=str(tmp_path / "weights.pth"))
    images = [np.full((side, side, 3), 40 * side, np.uint8) for side in (3, 3, 4)]
    found = load_extractor(config, fake_clip()).image_features(images)
    assert found.shape == (3, 2048)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not the weights of Inception"):
        load_extractor(config, fake_clip())


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([FeaturesConfig(model="inception")], "inception's pretrained=None is no local file"),
        ([FeaturesConfig(model="ViT-B-33")], r"evaluate.features.model=ViT-B-33.*did you mean"),
        ([FeaturesConfig(), FeaturesConfig()], "two models have the same name"),
    ],
)
def test_wrong_features(configs: list[FeaturesConfig], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_features(configs)


# ---------------------------------------------------------------------------------------------- sweep


class Painter:
    """A cascade that shows what was asked where its guidance is above 1."""

    def __init__(self, stages: list[Any], encoder: object, device: object) -> None:
        self.stages, self.encoder, self.device = stages, encoder, device

    def __call__(self, prompts: list[str], seed: int, stop_at: str) -> Any:
        settings = next(stage.entry.sampling for stage in self.stages if stage.entry.name == stop_at)
        asked = prompts if settings.guidance > 1 else ["a red circle"] * len(prompts)
        rng = np.random.default_rng(seed)
        return SimpleNamespace(images=[Image.fromarray(draw(parse(p), rng, SIZE)) for p in asked])


def test_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = StageEntry(name="base", resolution=SIZE, path="p")

    @contextmanager
    def opened(config: object, device: str) -> Iterator[Painter]:
        yield Painter([Stage(entry, None, None)], None, None)

    monkeypatch.setattr(measure, "open_cascade", opened)
    monkeypatch.setattr(measure, "Cascade", Painter)
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
    _, figures = measures({"sweep": rows, "composition_table": [], "composition_first": {}, "candidates": 2})
    assert set(figures) == {"guidance", "by_steps"}


def test_samples_keep_their_size_where_others_are_measured_at_several(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1.0, count=2)
    (shard, _) = measure.numbered(run.artifacts()["sample"].shards, measure.SAMPLE)
    shard.files["sample.parquet"] = shard.files["parquet"]
    out = tmp_path / "out"
    out.mkdir()
    measure.FeatureWorker({}, [FeaturesConfig()], [16, SIZE], {})(shard, out)
    table = read_table(out / f"{shard.id:05d}.parquet", "features")
    assert table["size"].to_pylist() == [SIZE, SIZE]


def test_sweep_points_replace_one_key_each() -> None:
    base = SamplingConfig(guidance=3.0, steps=7)
    points = sweep_points(SweepConfig(guidance=(1.0,), samplers=("ddim",)), base)
    assert [point.settings for point in points] == [
        base.model_copy(update={"guidance": 1.0}),
        base.model_copy(update={"sampler": "ddim"}),
    ]
    curves = sweep_points(SweepConfig(steps=(2, 4), samplers=("ddim", "ddpm")), base)
    assert [(point.swept, point.settings.sampler, point.settings.steps) for point in curves] == [
        ("steps", sampler, steps) for sampler in ("ddim", "ddpm") for steps in (2, 4)
    ]
