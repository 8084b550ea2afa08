"""Stage `subject`: the folder of a subject and its class, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table, write_table
from dataprep.synthetic.grammar import WIDE_PALETTE
from dataprep.synthetic.subject import SUBJECT, SUBJECT_IMAGES, draw_subject
from eval.metrics.composition import find_shapes
from pipeline.config_loading import load_config
from pipeline.execution.plan import plan_run
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages import subject
from pipeline.stages.graph import list_stages
from pipeline.stages.subject import ClassImageWorker, SubjectConfig, SubjectStageConfig
from pipeline.store.markers import Marker
from pipeline.store.run import Run
from tests.helpers.contexts import make_context
from tests.helpers.paths import ROOT

CONFIG = str(ROOT / "configs" / "dreambooth.yaml")
CLASS = {"class_prompts": ["a red square", "a blue square"], "model": "runs/demo"}


class SampledContext(Context[Any, Any]):
    """Two class images of each prompt were sampled."""

    def map_shards(self, worker: Any, arguments: Mapping[str, Any], shards: Any, **_: Any) -> None:
        self.arguments = arguments
        for shard in shards:
            rows = {"prompt": [arguments["prompts"][shard.id]] * 2, "png": [b"one", b"two"]}
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            write_table(pa.table(rows), self.path(f"{shard.id:05d}.parquet"), "columns")
        self.finished = [Marker(shard.id, "w", {}, [], {}) for shard in shards]
        self.counters["class_images"] = 2 * len(shards)


def run_stage(root: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[Path, Any]:
    """Runs the stage without Ray; returns its folder of images and its context."""
    monkeypatch.setattr(subject, "find_cascade", lambda model, key: f"cascade of {model}")
    ctx = make_context(root, "subject")
    ctx.__class__ = SampledContext
    ctx.config = SubjectStageConfig(subject=SubjectConfig.model_validate({"prompt": "a zwx square", **config}), seed=3)
    subject.run(ctx)
    return Path(ctx.path("images")), ctx


def test_the_subject_is_repeated_until_it_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "mine"
    shown.mkdir()
    (shown / "a.png").write_bytes(b"a")
    (shown / "b.JPG").write_bytes(b"b")
    (shown / "b.txt").write_text("a zwx square outside\n")
    (shown / "notes.txt").write_text("no caption of any image")
    folder, ctx = run_stage(tmp_path, monkeypatch, images=str(shown), class_images=3, share=0.75, **CLASS)
    captions = {path.name: path.read_text() for path in folder.glob("*.txt")}
    ours = {name: text for name, text in captions.items() if name.startswith("subject")}
    assert len(captions) == 4 + len(ours) and len(ours) == 12  # 12 of 16 images
    assert sorted(ours.values()) == ["a zwx square"] * 6 + ["a zwx square outside"] * 6
    assert captions["class-01-0001.txt"] == "a blue square"
    assert (folder / "class-01-0001.png").read_bytes() == b"two"
    assert {path.suffix for path in folder.glob("subject*")} == {".png", ".JPG", ".txt"}
    assert ctx.counters == {"class_images": 4, "subject_images": 2, "repeats": 6, "rows": 16}
    assert ctx.arguments == {
        "cascade": "cascade of runs/demo",
        "prompts": ["a red square", "a blue square"],
        "each": 2,
        "seed": 3,
    }


def test_without_class_images_the_subject_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ctx = run_stage(tmp_path, monkeypatch, class_images=0)
    assert len(list(folder.glob("*.png"))) == SUBJECT_IMAGES == ctx.counters["rows"]
    assert Image.open(folder / "subject-0000-00.png").size == (256, 256)


def test_the_drawn_subject_is_what_the_checker_reads() -> None:
    for number in range(SUBJECT_IMAGES):
        (shape,) = find_shapes(draw_subject(number, 64), WIDE_PALETTE)
        assert (shape.colour, shape.shape, shape.texture) == (SUBJECT.colour, SUBJECT.shape, SUBJECT.texture)
    assert not np.array_equal(draw_subject(0, 64), draw_subject(1, 64))


def test_a_worker_samples_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Fake:
        def sample(self, prompts: list[str], options: Any) -> Any:
            asked.append((prompts, options.num, options.seed))
            images = [Image.new("RGB", (4, 4))] * options.num
            return type("Samples", (), {"images": images})()

    monkeypatch.setattr(subject, "build_cascade", lambda cascade, device: Fake())
    worker = ClassImageWorker(None, ["a", "b"], 3, 5)  # type: ignore[arg-type]
    assert worker(ShardTask(1, {}, tmp_path)) == {"class_images": 3}
    assert asked == [(["b"], 3, 5)]
    assert read_table(str(tmp_path / "00001.parquet"), "columns")["prompt"].to_pylist() == ["b"] * 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no such folder, or an empty one"),
        (["notes.txt"], "0 images"),
        ([f"{n}.png" for n in range(51)], "51 images"),
    ],
)
def test_a_folder_that_is_no_subject_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    config = load_config(CONFIG, [f"subject.images={tmp_path}", "subject.class_images=0"])
    with pytest.raises(UserError, match=rf"subject\.images={tmp_path}: {message}; give a folder of 3 to 8 images"):
        subject.list_sources(config)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_captions_are_decoded_as_those_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"a")
    (tmp_path / "mine" / "a.txt").write_bytes("a zwx café\n".encode(encoding))
    folder, _ = run_stage(tmp_path, monkeypatch, images=str(tmp_path / "mine"), class_images=0)
    assert (folder / "subject-0000-00.txt").read_text(encoding="utf-8") == "a zwx café"


def test_a_caption_of_unknown_encoding_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "a.txt").write_bytes("красная кошка".encode("cp1251"))
    config = load_config(CONFIG, [f"subject.images={tmp_path}", "subject.class_images=0"])
    with pytest.raises(UserError, match=r"caption .*a\.txt is neither UTF-8 nor Windows-1252; save it as UTF-8"):
        subject.list_sources(config)


def test_a_model_that_is_missing_is_one_line(tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"subject.model={tmp_path}/none"])
    with pytest.raises(
        UserError, match=r"subject\.model=.*none: neither a run nor an exported folder; make that model"
    ):
        plan_run(config, Run(str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["subject=null"], "go together"),
        (["listing.source=scenes"], "go together"),
        (["subject.class_prompts=[]"], "class_images=96 are made from class_prompts by model"),
        (["subject.model=null"], "class_images=96 are made from class_prompts by model"),
        (["subject.share=1.0"], "share"),
        (["listing.path=x"], "path 'x' is set while source is 'subject'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(CONFIG, changes)


def test_the_stage_exists_only_with_a_subject() -> None:
    with_subject, without = (
        {stage.name: stage for stage in list_stages(load_config(str(ROOT / "configs" / name)))}
        for name in ("dreambooth.yaml", "smoke.yaml")
    )
    assert next(iter(with_subject)) == "subject" and "subject" not in without
    assert with_subject["listing"].inputs == ("subject",) and without["listing"].inputs == ()
