"""``export``: a trained cascade as a folder that samples by itself, and on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataprep.io.errors import UserError
from pipeline.cli.options import Model, Then


def export_model(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="folder to create; none with --push of a folder exported before"),
    ] = None,
    then: Then = None,
    layout: Annotated[
        str, typer.Option(help="imagen-ray; diffusers: a folder for each stage, which its pipelines load")
    ] = "imagen-ray",
    weights: Annotated[str, typer.Option(help="ema: moving average, samples better; raw: last step")] = "ema",
    dtype: Annotated[str, typer.Option(help="that weights are stored in: float32, bfloat16, float16")] = "float32",
    shard_size: Annotated[str, typer.Option(help="greatest file of weights; larger ones are split")] = "5GB",
    licence: Annotated[str | None, typer.Option(help="licence of the weights, for the model card")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="training data on a hub, for the model card; repeatable")
    ] = None,
    watermark: Annotated[
        str | None, typer.Option(metavar="TEXT", help="embed this text in all its images as an invisible watermark")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[STAGE=]FILE[:WEIGHT]", help="LoRA file or run to merge into the weights; repeatable"),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="also upload it to this repository of a hub")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="with --push: a new repository is private")] = False,
) -> None:
    """Export the cascade to a folder. It samples without the run: weights, encoder, CLIP, model card."""
    from pipeline.inference.push import check_hub_name, push_folder

    if push:
        check_hub_name(push)
    if out is None and push is None:
        raise UserError("OUT is missing; give the name of a new folder")
    if out is not None:
        from pipeline.inference.export import ExportOptions, export_run
        from pipeline.inference.export_stages import check_stage_options, export_stages, is_run_export

        options = ExportOptions(
            weights=weights,
            dtype=dtype,
            shard_size=shard_size,
            licence=licence,
            datasets=tuple(dataset or ()),
            watermark=watermark,
            adapters=tuple(adapter or ()),
        )
        if is_run_export(model, then or [], layout):
            print(export_run(model, out, options))
        else:
            check_stage_options(options, layout)
            print(export_stages(model, then or [], out, layout, watermark))
    if push:
        print(push_folder(out or Path(model), push, private))
