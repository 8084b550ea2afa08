"""Many prompts into a folder, resumable: one PNG per image, and a line of JSON for it once the PNG is complete.

``images.jsonl`` has ``file`` and the PNG's metadata per image; ``settings.json`` the options of the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.options import SamplingOptions, describe_image
from eval.sampling.png_metadata import save_png
from eval.sampling.prompts import clean_prompt
from eval.sampling.samples import Samples

LINES_FILE, SETTINGS_FILE = "images.jsonl", "settings.json"
IMAGE_NAME = re.compile(r"\d{5,}-\d{2,}\.png")


class ImageModel(Protocol):
    """What images are sampled with: a `Cascade`, or another model behind its interface."""

    @property
    def digest(self) -> str:
        """Identifies the weights."""

    @property
    def watermark(self) -> str | None:
        """Text of an invisible watermark."""

    @property
    def additions(self) -> Mapping[str, Any]:
        """What else its images depend on, as JSON values; {} for nothing."""

    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        """Samples ``options.num`` images per prompt; the image of (prompt, seed, index) is the same in any batch."""


def sample_folder(
    model: ImageModel, prompts: Sequence[str], folder: Path, options: SamplingOptions, chunk: int = 16
) -> Iterator[int]:
    """Samples images into ``folder`` as 00000-00.png (prompt, image); yields how many prompts are finished.

    ``chunk`` prompts are sampled and written at a time. Prompts whose images are all there are skipped. Raises
    UserError for a folder that holds images of other options or prompts.
    """
    prompts = [clean_prompt(prompt) for prompt in prompts]
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / SETTINGS_FILE, _describe_call(model, options))
    listed = _find_listed(folder, prompts)
    left = [
        number
        for number in range(len(prompts))
        if any(name not in listed or not (folder / name).exists() for name in _name_images(number, options.num))
    ]
    count = len(prompts) - len(left)
    yield count
    for start in range(0, len(left), chunk):
        numbers = left[start : start + chunk]
        samples = model.sample([prompts[number] for number in numbers], options)
        names = [name for number in numbers for name in _name_images(number, options.num)]
        with (folder / LINES_FILE).open("a", encoding="utf-8") as lines:
            for position, (file, image) in enumerate(zip(names, samples.images, strict=True)):
                info = samples.info(position)
                save_png(folder / file, image, info)
                if file not in listed:
                    lines.write(json.dumps({"file": file} | info, ensure_ascii=False) + "\n")
        count += len(numbers)
        yield count


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of ``images.jsonl``; cuts off an incomplete last one.

    Raises UserError for a line that does not name an image and its prompt.
    """
    path, found = folder / LINES_FILE, list[dict[str, Any]]()
    if not path.exists():
        return found
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):  # killed during the write: the next line would be appended to the rest of this one
        path.write_bytes(whole)
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line:
            found.append(_parse(line, path))
            if not IMAGE_NAME.fullmatch(str(found[-1].get("file"))) or "prompt" not in found[-1]:
                raise UserError(f"{path}: line {number} does not name an image and its prompt; name an empty folder")
    return found


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); name an empty folder") from error


def _name_images(number: int, count: int) -> list[str]:
    """Returns the names of the ``count`` images of prompt ``number``."""
    return [f"{number:05d}-{index:02d}.png" for index in range(count)]


def _find_listed(folder: Path, prompts: Sequence[str]) -> set[str]:
    """Returns the names of the images that have a line, which may be deleted by now."""
    listed = set()
    for line in read_lines(folder):
        number = int(line["file"].partition("-")[0])
        if number >= len(prompts) or prompts[number] != line["prompt"]:
            raise UserError(
                f"{folder}: {line['file']} shows {line['prompt']!r}, which is not prompt {number} now; "
                "name an empty folder"
            )
        listed.add(line["file"])
    return listed


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes ``settings`` to a new folder; raises UserError if those of an earlier call differ."""
    if not path.exists():
        if old := sorted(file.name for file in path.parent.glob("*.png") if IMAGE_NAME.fullmatch(file.name)):
            raise UserError(
                f"{path.parent}: holds {old[0]} of another call, but no {SETTINGS_FILE}; name an empty folder"
            )
        storage.write_json(str(path), settings)
        return
    before = _parse(path.read_bytes(), path)
    now = json.loads(json.dumps(settings))
    for key in now | before:
        if before.get(key) != now.get(key):
            raise UserError(
                f"{path.parent}: {key} was {before.get(key)!r}, now it is {now.get(key)!r}; name an empty folder"
            )


def _describe_call(model: ImageModel, options: SamplingOptions) -> dict[str, Any]:
    """Returns model and options as JSON values, images as a hash of their pixels. The batch size does not matter."""
    described: dict[str, Any] = {"model": model.digest, "watermark": model.watermark, **model.additions}
    for name in (item.name for item in fields(options) if item.name != "batch_size"):
        value = getattr(options, name)
        described[name] = describe_image(value) if isinstance(value, Image.Image) else value
    return described
