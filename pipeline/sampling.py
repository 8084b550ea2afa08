"""From finished training stages to images: the cascade as a folder, and ``imagen-ray sample``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dataprep import storage
from dataprep.schema import UserError
from eval.cascade import Cascade, CascadeConfig, SamplingConfig, StageEntry, write_cascade
from pipeline.config import RunConfig
from pipeline.steps.models import encoder_spec
from pipeline.store import Run


def cascade_config(
    trained: Mapping[str, tuple[str, int, int | None]], sampling: Mapping[str, SamplingConfig], encoder: str
) -> CascadeConfig:
    """The cascade of stage name -> (export folder, resolution, low resolution), base first."""
    stages = [
        StageEntry(
            name=name, resolution=size, low_resolution=low, path=folder, sampling=sampling.get(name, SamplingConfig())
        )
        for name, (folder, size, low) in trained.items()
    ]
    return CascadeConfig(stages=stages, encoder=encoder)


@contextmanager
def open_cascade(config: CascadeConfig, device: str = "cpu") -> Iterator[Cascade]:
    """The cascade, loaded on ``device``; folders may be URLs, which are copied here for the time being."""
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder:
        write_cascade(folder, config)
        yield Cascade.from_pretrained(folder, device)


def sample_run(
    folder: str,
    prompts: Sequence[str],
    num: int,
    seed: int,
    out: Path,
    stop_at: str | None,
    guidance: float | None,
    steps: int | None,
) -> list[Path]:
    """Draws ``num`` images a prompt with the cascade of the run at ``folder``.

    One image goes to ``out``; several go to ``out`` as a grid, a row a prompt, and each to its own file beside it.
    Every PNG carries its prompt, seed and run as text. Returns the files written.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: images are written as PNG; give a name that ends in .png")
    run = Run(folder)
    record, artifacts = run.record(), run.artifacts()
    config = RunConfig.model_validate(record["config"], strict=False)
    missing = [name for name in ["encoder", *(f"train.{stage}" for stage in config.train)] if name not in artifacts]
    if missing:
        raise UserError(
            f"{folder}: stage {missing[0]} is not finished, there is nothing to draw with; `imagen-ray run` it first"
        )
    trained = {
        name: (storage.local_folder(artifacts[f"train.{name}"].path("export")), stage.resolution, stage.low_resolution)
        for name, stage in config.train.items()
    }
    described = cascade_config(trained, config.sample.stages, storage.local_folder(encoder_spec(artifacts["encoder"])))
    with open_cascade(described) as cascade:
        samples = cascade(list(prompts), num=num, seed=seed, guidance=guidance, steps=steps, stop_at=stop_at)
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(samples.images) == 1:
        return [_save(out, samples.images[0], samples.prompts[0], seed, 0, folder)]
    written = [_save(out, grid(samples.images, num), " | ".join(prompts), seed, 0, folder)]
    for number, (image, prompt, index) in enumerate(zip(samples.images, samples.prompts, samples.indices, strict=True)):
        path = out.with_name(f"{out.stem}-{number:03d}.png")
        written.append(_save(path, image, prompt, seed, index, folder))
    return written


def _save(path: Path, image: Image.Image, prompt: str, seed: int, index: int, run: str) -> Path:
    info = PngInfo()
    for key, value in {"prompt": prompt, "seed": seed, "index": index, "run": run, "software": "imagen-ray"}.items():
        info.add_itxt(key, str(value))
    image.save(path, pnginfo=info)
    return path


def grid(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Images of one size side by side, ``columns`` a row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet
