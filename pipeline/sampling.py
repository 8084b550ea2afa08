"""From finished training stages to images: the cascade as a folder, and ``imagen-ray sample``."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dataprep import storage
from dataprep.schema import UserError
from eval import editing
from eval.cascade import Cascade
from eval.folder import draw_folder
from eval.metadata import save_png
from eval.prompts import read_protocol
from eval.settings import CASCADE_FILE, CascadeConfig, SamplingConfig, StageEntry, write_cascade
from pipeline.config import RunConfig
from pipeline.progress import console, progress
from pipeline.steps.models import clip_spec, encoder_spec
from pipeline.store import Run

MOST_PROMPTS = 10**9  # of a file: all of them


def cascade_config(
    trained: Mapping[str, tuple[str, int, int | None]],
    sampling: Mapping[str, SamplingConfig],
    encoder: str,
    **more: Any,
) -> CascadeConfig:
    """The cascade of stage name -> (export folder, resolution, low resolution), base first; ``more``: other fields."""
    stages = [
        StageEntry(
            name=name, resolution=size, low_resolution=low, path=folder, sampling=sampling.get(name, SamplingConfig())
        )
        for name, (folder, size, low) in trained.items()
    ]
    return CascadeConfig(stages=stages, encoder=encoder, **more)


@contextmanager
def open_cascade(config: CascadeConfig, device: str = "cpu") -> Iterator[Cascade]:
    """The cascade, loaded on ``device``; folders may be URLs, which are copied here for the time being."""
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder:
        write_cascade(folder, _here(config))
        yield Cascade.from_pretrained(folder, device)


def _here(config: CascadeConfig) -> CascadeConfig:
    """The cascade with what lies in an object store copied to this machine, for this process."""
    stages = [stage.model_copy(update={"path": storage.local_folder(stage.path)}) for stage in config.stages]
    clip = storage.local_folder(config.clip) if config.clip else None
    return config.model_copy(update={"stages": stages, "encoder": storage.local_folder(config.encoder), "clip": clip})


def run_cascade(run: Run) -> CascadeConfig:
    """The cascade of a run whose training is finished, its parts on this machine; UserError where one is not there."""
    record, artifacts = run.record(), run.artifacts()
    config = RunConfig.model_validate(record["config"], strict=False)
    missing = [name for name in ["encoder", *(f"train.{stage}" for stage in config.train)] if name not in artifacts]
    if missing:
        raise UserError(
            f"{run.root}: stage {missing[0]} is not finished, there is nothing to draw with; `imagen-ray run` it first"
        )
    trained = {
        name: (artifacts[f"train.{name}"].path("export"), stage.resolution, stage.low_resolution)
        for name, stage in config.train.items()
    }
    more: dict[str, Any] = {"max_length": config.embed.max_length, "encoder_dtype": config.embed.dtype}
    more |= {"watermark": config.sample.watermark}
    if "clip" in artifacts:
        clip = clip_spec(artifacts["clip"])
        more |= {"clip": str(clip["model"]), "clip_pretrained": clip["pretrained"]}
    return _here(cascade_config(trained, config.sample.stages, encoder_spec(artifacts["encoder"]), **more))


@dataclass(frozen=True)
class Request:
    """What ``imagen-ray sample`` is asked for."""

    prompts: Sequence[str]
    out: Path
    prompts_file: str | None = None
    num: int = 1
    seed: int = 0
    image: Path | None = None
    mask: Path | None = None
    size: str | None = None
    aspect: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the sampler, as `Cascade` takes them
    assignments: Sequence[str] = ()  # the same as KEY=VALUE or STAGE.KEY=VALUE
    call: Mapping[str, Any] = field(default_factory=dict)  # what else `Cascade` takes
    watermark: str | None = None
    device: str = "cpu"


def sample_run(folder: str, request: Request) -> list[Path]:
    """Draws with the cascade of the run, or the exported cascade, at ``folder``; returns what was written.

    One image goes to ``out``; several go to ``out`` as a grid, a row a prompt, and each to its own file beside it. The
    images of a file of prompts go into ``out`` as a folder. Every PNG says how it was made.
    """
    many = request.prompts_file is not None
    if not many and request.out.suffix.lower() != ".png":
        raise UserError(f"--out {request.out}: images are written as PNG; give a name that ends in .png")
    if many and (request.prompts or request.out.suffix):
        what = "PROMPT" if request.prompts else f"--out {request.out}"
        raise UserError(
            f"{what}: the images of --prompts-file go into a folder; give --out FOLDER and no prompt beside"
        )
    cascade = load(folder, request.device, request.watermark)
    call = dict(request.call) | _settings(request.settings, request.assignments)
    call |= {name: _open(name, path) for name in ("image", "mask") if (path := getattr(request, name))}
    if request.size or request.aspect:
        call["size"] = _size(cascade, request)
    # One warning a prompt, each as a line of its own.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        written = _into_folder(cascade, request, call) if many else _into_files(cascade, request, call, folder)
    for warning in told:
        console.print(f"warning: {warning.message}", markup=False)
    return written


def load(folder: str, device: str = "cpu", watermark: str | None = None) -> Cascade:
    """The cascade of a run, or one that was exported; ``watermark`` replaces the one that it has."""
    if storage.exists(storage.join(folder, CASCADE_FILE)):
        return Cascade.from_pretrained(storage.local_folder(folder), device, watermark)
    config = run_cascade(Run(folder))
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as described:
        write_cascade(described, config)
        return Cascade.from_pretrained(described, device, watermark)


def _into_files(cascade: Cascade, request: Request, call: Mapping[str, Any], folder: str) -> list[Path]:
    samples = cascade(list(request.prompts), num=request.num, seed=request.seed, **call)
    out = request.out
    out.parent.mkdir(parents=True, exist_ok=True)
    samples = replace(samples, making={**samples.making, "run": folder})
    if len(samples.images) == 1:
        return [save_png(out, samples.images[0], samples.info(0))]
    sheet = grid(samples.images, request.num)
    written = [save_png(out, sheet, {"prompt": " | ".join(request.prompts), **samples.making})]
    for number, image in enumerate(samples.images):
        written.append(save_png(out.with_name(f"{out.stem}-{number:03d}.png"), image, samples.info(number)))
    return written


def _into_folder(cascade: Cascade, request: Request, call: Mapping[str, Any]) -> list[Path]:
    found = read_protocol(str(request.prompts_file), MOST_PROMPTS, request.seed)
    prompts = [prompt.prompt for prompt in found]
    with progress("sample", len(prompts), "prompts") as update:
        for done in draw_folder(cascade, prompts, request.out, request.num, request.seed, **call):
            update(done)
    return [request.out]


def _settings(settings: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The options that are given, and over them the assignments."""
    found = {key: value for key, value in settings.items() if value is not None}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        stage, dot, key = name.rpartition(".")
        if not equals or not key:
            raise UserError(f"--set {assignment}: give KEY=VALUE or STAGE.KEY=VALUE, such as base.guidance=2")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: {text!r} is no value") from error
        if not dot:
            found[key] = value
        elif isinstance(before := found.get(key, {}), dict):
            found[key] = {**before, stage: value}
        else:
            raise UserError(f"--set {assignment}: {key} is set for all stages already; set it by stage alone")
    return found


def _open(name: str, path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"--{name} {path}: not a picture that can be read ({error})") from error


def _size(cascade: Cascade, request: Request) -> editing.Size:
    """--size in pixels, or --aspect as the nearest size of the last stage that runs."""
    if request.size and request.aspect:
        raise UserError(f"--size {request.size} and --aspect {request.aspect}: give one of them")
    option, text, between = ("size", request.size, "x") if request.size else ("aspect", request.aspect, ":")
    try:
        width, height = (int(part) for part in str(text).lower().split(between))
        if min(width, height) < 1:
            raise ValueError
    except ValueError as error:
        raise UserError(f"--{option} {text}: give two whole numbers, such as 3{between}2") from error
    if option == "size":
        return width, height
    stages = cascade.span(request.call.get("start_at"), request.call.get("stop_at"))
    return editing.nearest_size(stages, width / height)


def grid(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Images of one size side by side, ``columns`` a row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet
