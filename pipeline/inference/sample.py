"""``imagen-ray sample``: samples from the cascade of a run or from an exported cascade."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.garbage import postpone_collection
from dataprep.io.outputs import check_output_file, check_output_folder
from dataprep.io.plain_text import check_text
from dataprep.io.wording import count_of
from dataprep.io.yaml_text import parse_yaml
from dataprep.text.config import TOKENS_FILE
from eval.captioning.config import ExpandConfig
from eval.sampling import image_editing
from eval.sampling.adapters import ENCODER, AdapterChoice
from eval.sampling.attention_picture import draw_attention
from eval.sampling.batch_folder import sample_folder
from eval.sampling.cascade import Cascade
from eval.sampling.config import CASCADE_FILE, CascadeConfig, read_cascade, resolve_paths
from eval.sampling.folder_cascade import folder_cascade
from eval.sampling.options import SamplingOptions, SettingChanges, SettingValue, Size
from eval.sampling.png_metadata import is_ours, save_png
from eval.sampling.prompt_files import read_prompt_file
from eval.sampling.prompts import clean_prompt
from eval.sampling.samples import Samples
from eval.sampling.stored_weights import StoredWeights
from eval.sampling.user_images import read_image, read_mask_image
from pipeline.config import run_config_type
from pipeline.stages.model_files import EXPORT, TUNED, find_encoder
from pipeline.stages.schedule import place_levels
from pipeline.stages.trained_cascade import copy_parts_here, trained_cascade
from pipeline.store.run import RUN_FILE, Run
from pipeline.terminal import console, progress
from train.models.backbones import find_stage_folder

NO_EXPANSION = "no"
ATTENTION = "-attention"  # end of the name of a picture of where the stages looked
ADAPTER = "export/adapter.safetensors"  # of a training stage
TOKENS = f"{EXPORT}/{TOKENS_FILE}"  # of a tuned text encoder


def run_cascade(run: Run) -> CascadeConfig:
    """Returns the cascade of a finished run, its parts copied to this machine; UserError if a stage is not finished."""
    record, artifacts = run.record(), run.artifacts()
    config = run_config_type().model_validate(record["config"], strict=False)
    stages = config.denoisers()
    missing = [name for name in ["encoder", *(f"train.{stage}" for stage in stages)] if name not in artifacts]
    if missing:
        raise UserError(
            f"{run.root}: stage {missing[0]} is not finished: no model to sample from; `imagen-ray run` it first"
        )
    trained = {name: artifacts[f"train.{name}"] for name in stages}
    more: dict[str, Any] = {"max_length": config.embed.max_length, "encoder_dtype": config.embed.dtype}
    more |= {"encoder_pad": config.embed.pad, "encoder_lowercase": config.embed.lowercase}
    more |= {"watermark": config.sample.watermark, "expand": config.sample.expand}
    sample, clip, encoder = config.sample, artifacts.get("clip"), find_encoder(artifacts)
    assert encoder is not None
    sampling = place_levels(sample.stages, artifacts.get("schedule") if sample.fit else None)
    return copy_parts_here(trained_cascade(trained, sampling, encoder, clip, sample.guides, **more))


def model_cascade(model: str, then: Sequence[str] = ()) -> CascadeConfig:
    """Returns the cascade of MODEL, its parts on this machine: of a run, of an exported folder, or of stage folders.

    Stages in diffusers' layout are folders, URLs or hf://owner/name, ``model`` the base and ``then`` those after it.
    Raises UserError for what is none of these.
    """
    names = [model, *then]
    if not storage.exists(storage.join(model, CASCADE_FILE)):
        found = [find_stage_folder(name) for name in names]
        if found[0] is not None:
            return folder_cascade([folder or name for folder, name in zip(found, names, strict=True)])
    if then:
        raise UserError(
            f"--then {then[0]}: it follows a stage in diffusers' layout, and {model} is not one; leave it out"
        )
    if storage.exists(storage.join(model, CASCADE_FILE)):
        folder = storage.local_folder(model)
        return resolve_paths(read_cascade(folder), folder)
    return run_cascade(Run(model))


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What ``imagen-ray sample`` is asked for."""

    then: Sequence[str] = ()  # folders of the stages after MODEL, where it is one stage of another library
    prompts: Sequence[str]
    out: Path
    prompts_file: str | None = None
    options: SamplingOptions = field(default_factory=SamplingOptions)  # image, mask, size: from the fields below
    image: Path | None = None
    mask: Path | None = None
    variations_of: Path | None = None
    to_image: Path | None = None
    size: str | None = None  # WxH
    aspect: str | None = None  # W:H
    assignments: Sequence[str] = ()  # sampler settings as KEY=VALUE or STAGE.KEY=VALUE
    watermark: str | None = None
    expand: str | None = None  # folder of a language model that writes prompts out, "no" for none
    adapters: Sequence[str] = ()  # [STAGE=]FILE[:WEIGHT], or a run for FILE
    device: str = "auto"
    compiled: bool = False
    weights: StoredWeights = "whole"


def sample_run(folder: str, request: SampleRequest) -> list[Path]:
    """Samples from the cascade of the run, or the exported cascade, at ``folder``; returns the written paths.

    A single image is written to ``out``; several are written to ``out`` as a grid, one row per prompt, and each to its
    own file beside it. The images of a prompt file are written into the folder ``out``. PNGs hold their settings as
    metadata.
    """
    many = request.prompts_file is not None
    request = replace(request, prompts=[clean_prompt(prompt) for prompt in request.prompts])
    check_text(request.watermark or "", "--watermark")
    options = replace(
        request.options,
        negative=clean_prompt(request.options.negative, "--negative"),
        changes=_apply_assignments(request.options.changes, request.assignments),
        image=read_image("--image", request.image),
        mask=read_mask_image("--mask", request.mask),
        variations_of=read_image("--variations-of", request.variations_of),
        to_image=read_image("--to-image", request.to_image),
        to_prompt=clean_prompt(request.options.to_prompt, "--to-prompt"),
    )
    check_folder(request) if many else check_files(request)
    if options.attention and (many or request.compiled):
        other = "--prompts-file" if many else "--compile"
        raise UserError(f"--attention with {other}: attention is shown for prompts on the line, not compiled; drop one")
    with postpone_collection():
        cascade = load_cascade(
            folder,
            request.device,
            request.watermark,
            request.adapters,
            request.then,
            request.compiled,
            request.weights,
            request.expand,
        )
    options = replace(options, size=_parse_size(cascade, request))
    # One warning per prompt, each as a line of its own.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if many:
            written = _sample_into_folder(cascade, request, options)
        else:
            written = _sample_into_files(cascade, request, options, folder)
    for warning in told:
        console.print(f"warning: {warning.message}", markup=False)
    return written


def load_cascade(
    folder: str,
    device: str = "auto",
    watermark: str | None = None,
    adapters: Sequence[str] = (),
    then: Sequence[str] = (),
    compiled: bool = False,
    weights: StoredWeights = "whole",
    expand: str | None = None,
) -> Cascade:
    """Loads the cascade of a run, an exported one, or stages in diffusers' layout, with ``adapters`` in it.

    ``watermark`` replaces its own; ``then``: the stages after ``folder``, for stages in diffusers' layout; ``expand``:
    the language model that writes prompts out in place of the cascade's own, `NO_EXPANSION` for none.
    """
    choices, config = find_adapters(adapters), model_cascade(folder, then)
    expander = config.expand
    if expand is not None:
        expander = None if expand == NO_EXPANSION else ExpandConfig(model=expand)
    config = config.model_copy(update={"watermark": watermark or config.watermark, "expand": expander})
    return Cascade.from_config(config, device, choices, compiled, weights)


def find_adapters(texts: Sequence[str]) -> list[AdapterChoice]:
    """Returns the adapters that ``[STAGE=]FILE[:WEIGHT]`` name; a run for FILE stands for all that it trained."""
    found: list[AdapterChoice] = []
    for text in texts:
        choice = AdapterChoice.parse(text)
        if not storage.exists(storage.join(choice.path, RUN_FILE)):
            found.append(choice)
            continue
        trained = _list_trained(Run(choice.path), choice.weight)
        wanted = [each for each in trained if choice.stage in (None, each.stage)]
        if not wanted:
            names = ", ".join(str(each.stage) for each in trained) or "none"
            raise UserError(
                f"--adapter {text}: that run trained no such adapter (it has: {names}); name another run or a file"
            )
        found += wanted
    return found


def _list_trained(run: Run, weight: float) -> list[AdapterChoice]:
    """Returns the adapters and the learned tokens of a run's stages; these have no weight but 1."""
    found = []
    for stage, artifact in run.artifacts().items():
        name = ENCODER if stage in ("encoder", TUNED) else stage.removeprefix("train.")
        if artifact.has(ADAPTER) and stage != "clip":
            found.append(AdapterChoice(artifact.path(ADAPTER), weight, name))
        if artifact.has(TOKENS):
            found.append(AdapterChoice(artifact.path(TOKENS), 1.0, name))
    return found


def _sample_into_files(cascade: Cascade, request: SampleRequest, options: SamplingOptions, folder: str) -> list[Path]:
    samples = cascade.sample(request.prompts, options)
    out = request.out
    out.parent.mkdir(parents=True, exist_ok=True)
    samples = replace(samples, making={**samples.making, "run": folder.encode(errors="backslashreplace").decode()})
    names = name_files(out, len(samples.images))
    paths = [out.with_name(name) for name in names] or [out]
    written: list[Path] = []
    if names:
        sheet = grid(samples.images, options.num)
        written = [save_png(out, sheet, {"prompt": " | ".join(request.prompts), "picture": "grid", **samples.making})]
    for number, (image, path) in enumerate(zip(samples.images, paths, strict=True)):
        written.append(save_png(path, image, samples.info(number)))
    return written + _save_attention(cascade, samples, paths)


def _save_attention(cascade: Cascade, samples: Samples, images: Sequence[Path]) -> list[Path]:
    """Writes where the stages looked, if that was recorded: beside each image a picture of its own."""
    written = []
    for number, path in enumerate(images if samples.attention else []):
        stages = {name: found[number] for name, found in samples.attention.items()}
        pictures = {name: samples.by_stage[name][number] for name in stages}
        prompt = samples.prompts[number]
        sheet = draw_attention(cascade.encoder.pieces(samples.expanded.get(prompt, prompt)), pictures, stages)
        info = samples.info(number) | {"picture": "attention"}
        written.append(save_png(path.with_name(f"{path.stem}{ATTENTION}.png"), sheet, info))
    return written


def _sample_into_folder(cascade: Cascade, request: SampleRequest, options: SamplingOptions) -> list[Path]:
    found = read_prompt_file(str(request.prompts_file))
    if found.left_out:
        console.print(f"{request.prompts_file}: {found.describe()}", markup=False)
    prompts = [prompt.prompt for prompt in found.prompts]
    with progress("sample", len(prompts), "prompts") as update:
        for done in sample_folder(cascade, prompts, request.out, options):
            update(done)
    return [request.out]


def _apply_assignments(changes: SettingChanges, assignments: Sequence[str]) -> SettingChanges:
    """Returns the changes that are not None, with ``assignments`` (KEY=VALUE or STAGE.KEY=VALUE) over them."""
    found: dict[str, SettingValue | Mapping[str, SettingValue]] = {
        key: value for key, value in changes.items() if value is not None
    }
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        stage, dot, key = name.rpartition(".")
        if not equals or not key:
            raise UserError(f"--set {assignment}: give KEY=VALUE or STAGE.KEY=VALUE, such as base.guidance=2")
        if (value := parse_yaml(text, f"--set {assignment}")) is None:
            raise UserError(f"--set {assignment}: {text!r} is no value; give one, such as base.guidance=2")
        before = found.get(key)
        if not dot and not isinstance(before, Mapping):
            found[key] = value
        elif dot and (before is None or isinstance(before, Mapping)):
            found[key] = {**(before or {}), stage: value}
        else:
            others = f"stage {next(iter(before))}" if isinstance(before, Mapping) else "all stages"
            raise UserError(f"--set {assignment}: {key} is set for {others} already; set it by stage alone")
    return found


def _parse_size(cascade: Cascade, request: SampleRequest) -> Size | None:
    """--size in pixels, or --aspect as the nearest size of the last stage that runs; None without either."""
    if not request.size and not request.aspect:
        return None
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
    stages = cascade.span(request.options.start_at, request.options.stop_at)
    return image_editing.nearest_size(stages, width / height)


def name_files(out: Path, images: int) -> list[str]:
    """Returns the names of the images beside the grid ``out``; none for a single image, which is ``out`` itself."""
    return [f"{out.stem}-{number:03d}.png" for number in range(images)] if images > 1 else []


def check_files(request: SampleRequest) -> None:
    """Raises UserError where ``out`` cannot be written, or images of another call would stay among the new ones."""
    out = request.out
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: images are written as PNG; give a name that ends in .png")
    check_output_file(out)
    written = set(name_files(out, len(request.prompts) * request.options.num))
    pattern = re.compile(re.escape(out.stem) + r"-\d{3,}\.png")
    beside = sorted(path.name for path in out.parent.glob("*.png") if pattern.fullmatch(path.name))
    if old := [name for name in beside if name not in written and is_ours(out.with_name(name))]:
        raise UserError(
            f"--out {out}: {count_of(len(old), 'image')} of an earlier call would stay beside the new ones "
            f"({', '.join(old[:3])}{', ...' if len(old) > 3 else ''}); delete them, or give another name"
        )


def check_folder(request: SampleRequest) -> None:
    """Raises UserError where the images of a prompt file cannot be written into the folder ``out``."""
    if request.prompts or (request.out.suffix and not os.path.isdir(request.out)):
        what = "PROMPT" if request.prompts else f"--out {request.out}"
        raise UserError(
            f"{what}: the images of --prompts-file go into a folder; give --out FOLDER and no prompt beside"
        )
    check_output_folder(request.out)


def grid(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Returns a grid of images of one size, ``columns`` per row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet
