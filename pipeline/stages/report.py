"""Stage `report`: everything that was made, on one HTML page."""

from __future__ import annotations

from dataprep.io import storage
from pipeline.runtime.context import Context
from pipeline.stages.base import EveryStage, StageConfig, StageType


def run(ctx: Context[StageConfig, EveryStage]) -> None:
    """Writes the page and a Markdown summary; metrics.json stands beside them."""
    from pipeline.report.build import build_pages

    for name, text in build_pages(ctx.inputs.stages, ctx.run.record(), ctx.run.events()).items():
        storage.write_bytes(ctx.path(name), text.encode())
    metrics = ctx.inputs.stages["evaluate"].read_json("metrics.json")
    storage.write_json(ctx.path("metrics.json"), metrics)


STAGE = StageType(
    name="report",
    run=run,
    config=StageConfig,
    inputs=EveryStage,
    kind="evaluation",
    published=("report.html", "report.md", "metrics.json"),
)
