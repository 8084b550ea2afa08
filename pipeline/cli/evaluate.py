"""``evaluate``: the metrics of a run for any folder of images, and for any model."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dataprep.io.garbage import postpone_collection
from dataprep.io.seeds import MAX_SEED
from pipeline.cli.options import AsJson, complete_run, print_json, takes

if TYPE_CHECKING:
    from pipeline.inference.evaluate import EvaluateRequest


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """The arguments and options of `evaluate`."""

    path: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES|MODEL",
            help="folder of images; or a run, an exported folder, or a pipeline folder of diffusers",
            autocompletion=complete_run,
        ),
    ]
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="prompts, one per line, or a table; of images in the order of their names"),
    ] = None
    reference: Annotated[
        str | None, typer.Option(metavar="DIR", help="real images to measure distances to: images, tars, or a run")
    ] = None
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for metrics.json and report.html")] = Path(
        "evaluation"
    )
    training: Annotated[
        str | None, typer.Option(metavar="DIR", help="training images: look for near copies of them; or a run")
    ] = None
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="look for the faces, text and labels that this run looked for, and show its data beside"
        ),
    ] = None
    clip: Annotated[
        str | None,
        typer.Option(metavar="NAME:WEIGHTS", help="CLIP that scores; default: the model's own, else ViT-B-32:openai"),
    ] = None
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="feature space of distances: clip, inception:FILE, NAME:WEIGHTS of open_clip, or a folder of "
            "transformers such as DINOv2; repeatable",
        ),
    ] = None
    judge: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=PATH", help="pickscore, hps, imagereward, aesthetic, geneval, dpg; repeatable"),
    ] = None
    num: Annotated[int, typer.Option(min=1, help="images per prompt that a model samples")] = 1
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="prompts to take at most, drawn by the seed; of images without prompts, images to take at most"
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of the samples")] = 0
    steps: Annotated[int | None, typer.Option(min=1, help="network evaluations of a model's sampler")] = None
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance weight of a model's sampler")] = None
    size: Annotated[
        int | None, typer.Option(min=8, help="pixels that images are compared at; default: their own most frequent")
    ] = None
    threshold: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="distance up to which a sample is a near copy")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="images sampled at a time")] = 16
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1")] = "cpu"
    dtype: Annotated[str, typer.Option(help="of a diffusers pipeline: float32, float16, bfloat16")] = "float32"
    as_json: AsJson = False


@takes(EvaluateArguments)
def evaluate_images(given: EvaluateArguments) -> None:
    """Evaluate a folder of images or a model. Gives the metrics, the page and the JSON of a run."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, see `sample`
    with postpone_collection():
        from pipeline.inference.evaluate import evaluate_path

    metrics = evaluate_path(_make_request(given))
    if given.as_json:
        print_json(metrics)
        return
    print(given.out / "metrics.json")
    print(given.out / "report.html")


def _make_request(given: EvaluateArguments) -> EvaluateRequest:
    from eval.sampling.options import SamplingOptions
    from pipeline.inference.evaluate import EvaluateRequest

    options = SamplingOptions(
        num=given.num,
        seed=given.seed,
        batch_size=given.batch_size,
        changes={"steps": given.steps, "guidance": given.guidance},
    )
    return EvaluateRequest(
        path=given.path,
        out=given.out,
        prompts=given.prompts,
        reference=given.reference,
        training=given.training,
        audit=given.audit,
        clip=given.clip,
        features=given.features or [],
        judges=given.judge or [],
        limit=given.limit,
        size=given.size,
        threshold=given.threshold,
        options=options,
        device=given.device,
        dtype=given.dtype,
        command=shlex.join(["imagen-ray", *sys.argv[1:]]),
    )
