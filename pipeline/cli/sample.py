"""``sample`` and ``inspect``: images of a trained cascade, and how they were made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dataprep.io.errors import UserError
from dataprep.io.garbage import postpone_collection
from dataprep.io.seeds import MAX_SEED
from pipeline.cli.options import AsJson, Model, Then, print_json, takes

if TYPE_CHECKING:
    from pipeline.inference.sample import SampleRequest


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """The arguments and options of `sample`."""

    folder: Model
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="what the image shows")] = None
    prompts_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="one prompt per line, or .csv, .tsv, .jsonl; --out is then a folder"),
    ] = None
    then: Then = None
    num: Annotated[int, typer.Option(min=1, help="images per prompt")] = 1
    best_of: Annotated[int, typer.Option(min=1, help="candidates per image; CLIP picks the best")] = 1
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="the same seed gives the same images")] = 0
    out: Annotated[Path, typer.Option(help="PNG to write; several images also make a grid")] = Path("sample.png")
    negative: Annotated[str, typer.Option(help="negative prompt: what the image must not show")] = ""
    image: Annotated[Path | None, typer.Option(help="image to start from; with --start-at: the image to upscale")] = (
        None
    )
    mask: Annotated[Path | None, typer.Option(help="mask for inpainting: white pixels are regenerated")] = None
    variations_of: Annotated[
        Path | None, typer.Option(metavar="FILE", help="image whose variations to make, with a prompt or without")
    ] = None
    to_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with --variations-of: --num images from that one to this one")
    ] = None
    to_prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="with --variations-of: --num images from that one to this caption")
    ] = ""
    strength: Annotated[
        float | None, typer.Option(help="of image-to-image, above 0: small values keep the image, 1 ignores it")
    ] = None
    start_at: Annotated[str | None, typer.Option(metavar="STAGE", help="first cascade stage to run")] = None
    stage: Annotated[str | None, typer.Option(help="last cascade stage to run")] = None
    size: Annotated[str | None, typer.Option(metavar="WxH", help="image size of the last stage in pixels")] = None
    aspect: Annotated[str | None, typer.Option(metavar="W:H", help="aspect ratio; the nearest size is used")] = None
    guidance: Annotated[float | None, typer.Option(min=0, help="guidance weight of every stage")] = None
    steps: Annotated[int | None, typer.Option(min=1, help="network evaluations per stage")] = None
    sampler: Annotated[str | None, typer.Option(help="sampler of every stage, such as ddim or dpmpp_2m")] = None
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[STAGE.]KEY=VALUE", help="any setting of docs/sampling.md; repeatable"),
    ] = None
    refuse_overlong: Annotated[
        bool, typer.Option("--refuse-overlong", help="fail if a prompt exceeds the encoder's maximum length")
    ] = False
    watermark: Annotated[str | None, typer.Option(metavar="TEXT", help="embed this text as an invisible watermark")] = (
        None
    )
    expand: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|no", help="language model that writes prompts out before they are drawn"),
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[STAGE=]FILE[:WEIGHT]", help="LoRA file, or a run that trained some; repeatable"),
    ] = None
    attention: Annotated[
        bool, typer.Option("--attention", help="also a picture of where each stage looked for each token of the prompt")
    ] = False
    batch_size: Annotated[int, typer.Option(min=1, help="images generated at a time")] = 16
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1")] = "auto"
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the stages: minutes at first, then faster; for many images")
    ] = False
    weights: Annotated[
        Literal["whole", "bfloat16", "int8"], typer.Option(help="how weights are kept in memory; int8: a quarter of it")
    ] = "whole"
    as_json: AsJson = False


@takes(SampleArguments)
def sample_images(given: SampleArguments) -> None:
    """Generate images from prompts. Also edits, inpaints, varies and upscales an image."""
    from dataprep.io.storage import is_local

    if is_local(given.folder) and not Path(given.folder).expanduser().exists():
        raise UserError(
            f"{given.folder}: no such folder; MODEL is a run, a folder written by `export`, or hf://owner/name"
        )
    # Read when torch is imported. Threads that spin while they wait multiply the CPU time of a small cascade.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with postpone_collection():
        from pipeline.inference.sample import sample_run

    written = sample_run(given.folder, _make_request(given))
    if given.as_json:
        images = _describe_images(given.out, written, given.prompts_file is not None)
        print_json({"files": written, "images": images})
        return
    for path in written:
        print(path)


def _make_request(given: SampleArguments) -> SampleRequest:
    from eval.sampling.options import SamplingOptions
    from pipeline.inference.sample import SampleRequest

    prompts = given.prompt or []
    if not prompts and given.prompts_file is None:
        if given.variations_of is None:
            raise UserError("PROMPT is missing; say what the image shows, or name a --prompts-file")
        prompts = [""]
    options = SamplingOptions(
        num=given.num,
        seed=given.seed,
        negative=given.negative,
        start_at=given.start_at,
        stop_at=given.stage,
        best_of=given.best_of,
        to_prompt=given.to_prompt,
        overlong="refuse" if given.refuse_overlong else "cut",
        batch_size=given.batch_size,
        attention=given.attention,
        changes={
            "strength": given.strength,
            "guidance": given.guidance,
            "steps": given.steps,
            "sampler": given.sampler,
        },
    )
    return SampleRequest(
        then=given.then or [],
        prompts=prompts,
        prompts_file=given.prompts_file,
        out=given.out,
        options=options,
        image=given.image,
        mask=given.mask,
        variations_of=given.variations_of,
        to_image=given.to_image,
        size=given.size,
        aspect=given.aspect,
        assignments=given.assign or [],
        watermark=given.watermark,
        expand=given.expand,
        adapters=given.adapter or [],
        device=given.device,
        compiled=given.compiled,
        weights=given.weights,
    )


def _describe_images(out: Path, written: list[Path], is_folder: bool) -> list[dict[str, Any]]:
    """Returns what each image says of itself. A grid, which is the first of several files, is left out."""
    if is_folder:
        from eval.sampling.batch_folder import read_lines

        return [{**entry, "file": str(out / entry["file"])} for entry in read_lines(out)]
    from eval.sampling.png_metadata import read_png_metadata
    from pipeline.inference.sample import ATTENTION

    images = [path for path in written if not path.stem.endswith(ATTENTION)]
    return [{"file": str(path), **read_png_metadata(path)} for path in (images[1:] or images)]


def inspect_images(
    files: Annotated[list[Path], typer.Argument(metavar="PNG...", help="images that `sample` wrote")],
) -> None:
    """Print how images were made. One JSON object per line: prompt, seed, model, settings."""
    from eval.sampling.png_metadata import read_png_metadata

    for path in files:
        print(json.dumps({"file": str(path), **read_png_metadata(path)}, ensure_ascii=False))
