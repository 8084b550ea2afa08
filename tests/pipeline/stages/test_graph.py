"""The list of stages; a stage that is added from outside runs, and is known to trace, forget and the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import Field
from ray import cloudpickle

from dataprep.io.config import Config
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table, write_table
from pipeline.config_loading import load_config
from pipeline.config_schema import config_schema
from pipeline.execution.executor import run_pipeline
from pipeline.lineage.forget import forget_samples
from pipeline.lineage.trace import trace_sample
from pipeline.report.sections.run import describe_stage
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, Rows, StageConfig, StageInputs, StageType, TraceView, always
from pipeline.stages.graph import STAGES, list_stages
from pipeline.store.artifact import Artifact
from tests.helpers.plans import SMOKE

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import test modules


class VowelsConfig(Config):
    """Section `vowels`."""

    letters: str = Field(default="aeiou", description="letters to count")


class VowelsStageConfig(StageConfig):
    vowels: VowelsConfig


@dataclass(frozen=True, kw_only=True)
class VowelsInputs(StageInputs):
    listing: Artifact


class VowelsWorker:
    """Counts letters of the captions of a listing shard."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def __call__(self, task: ShardTask) -> dict[str, int]:
        table = read_table(task.table("listing"), "listing")
        counts = [sum(map(caption.count, self.letters)) for caption in table["caption"].to_pylist()]
        write_table(pa.table({"vowels": pa.array(counts, pa.int32())}), task.output_table(), "columns")
        return {"rows": len(counts)}


def run_vowels(ctx: Context[VowelsStageConfig, VowelsInputs]) -> None:
    arguments = {"letters": ctx.config.vowels.letters}
    ctx.map_shards(VowelsWorker, arguments, ctx.join_shards(ctx.inputs.listing))


VOWELS = StageType(
    name="vowels",
    run=run_vowels,
    config=VowelsStageConfig,
    inputs=VowelsInputs,
    placement=always(Placement.SHARDS),
    section=VowelsConfig,
    rows=Rows.ALIGNED,
    trace=TraceView("vowels of the caption"),
)


@pytest.fixture
def with_vowels() -> Iterator[None]:
    """Adds the stage after the listing."""
    before = dict(STAGES)
    STAGES.clear()
    for name, kind in before.items():
        STAGES[name] = kind
        if name == "listing":
            STAGES["vowels"] = VOWELS
    yield
    STAGES.clear()
    STAGES.update(before)


@pytest.mark.usefixtures("local_ray", "with_vowels")
def test_a_stage_from_outside_runs_and_is_traced_and_redacted(tmp_path: Path) -> None:
    config = load_config(
        SMOKE, [f"run={tmp_path}/run", "vowels.letters=ae", "listing.scenes.count=50", "cluster.cpus=1"]
    )
    run = run_pipeline(config, "run", until="vowels")
    artifact = run.artifacts()["vowels"]
    assert artifact.manifest.counters["rows"] == 50 and artifact.manifest.config == {"vowels": {"letters": "ae"}}
    assert describe_stage(artifact).note.startswith("50 rows")
    (trace,) = trace_sample(run.root, "000010003")
    assert trace["vowels of the caption"]["vowels"] == sum(map(trace["caption"].count, "ae")) > 0
    forget_samples(run.root, ["000010003"])
    assert trace_sample(run.root, "000010003")[0]["vowels of the caption"]["vowels"] is None
    assert trace_sample(run.root, "000010002")[0]["vowels of the caption"]["vowels"] is not None


@pytest.mark.usefixtures("with_vowels")
def test_a_stage_brings_its_config_section(tmp_path: Path) -> None:
    assert "vowels" in config_schema()["properties"]
    with pytest.raises(UserError, match=r"vowels\.leters='ae': unknown key; did you mean letters\?"):
        load_config(SMOKE, ["vowels.leters=ae"])
    stage = next(stage for stage in list_stages(load_config(SMOKE)) if stage.name == "vowels")
    assert stage.inputs == ("listing",) and stage.config.to_json() == {"vowels": {"letters": "aeiou"}}


def test_every_stage_stands_after_its_inputs() -> None:
    before: list[str] = []
    for stage in list_stages(load_config(SMOKE)):
        assert set(stage.inputs) <= set(before), stage.name
        before.append(stage.name)


@pytest.mark.parametrize("trained", [True, False])
def test_models_that_are_given_need_no_download(trained: bool) -> None:
    """So with `cluster.stream` annotate and score take the shards of a first download while it runs."""
    models = [] if trained else ["encoder.pretrain=null", "encoder.model=hf://t5-small"]
    models += [] if trained else ["clip.train=null", "clip.model=ViT-B-32", "clip.pretrained=openai"]
    stages = {stage.name: stage for stage in list_stages(load_config(str(SMOKE), models))}
    assert stages["encoder"].inputs == (("download",) if trained else ())
    assert stages["clip"].inputs == (("download", "encoder") if trained else ())
    assert set(stages["score"].inputs) == {"download", "clip"}
