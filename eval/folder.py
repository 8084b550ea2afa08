"""Many prompts into a folder: a PNG an image, and a line of JSON for it once it is whole. It goes on where it stopped.

``images.jsonl`` has for each image ``file`` and what the PNG's metadata say; ``settings.json`` what was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataprep.schema import UserError
from eval.cascade import Cascade
from eval.metadata import save_png

LINES, SETTINGS = "images.jsonl", "settings.json"


def draw_folder(
    cascade: Cascade, prompts: Sequence[str], folder: Path, num: int = 1, seed: int = 0, at_once: int = 16, **call: Any
) -> Iterator[int]:
    """Draws ``num`` images a prompt into ``folder`` as 00000-00.png (prompt, image); yields how many prompts are done.

    ``at_once`` prompts are drawn and written at a time. Prompts whose images are all there are passed over. ``call`` is
    what else `Cascade` takes. UserError where the folder holds images of other settings or prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"num": num, "seed": seed, "model": cascade.digest, "watermark": cascade.watermark, "call": _plain(call)}
    _same_as_before(folder / SETTINGS, asked)
    done = _finished(folder, prompts, num)
    left = [number for number in range(len(prompts)) if number not in done]
    count = len(prompts) - len(left)
    yield count
    for start in range(0, len(left), at_once):
        numbers = left[start : start + at_once]
        samples = cascade([prompts[number] for number in numbers], num=num, seed=seed, **call)
        with (folder / LINES).open("a", encoding="utf-8") as lines:
            for position in range(len(samples.images)):
                file = f"{numbers[position // num]:05d}-{position % num:02d}.png"
                info = samples.info(position)
                save_png(folder / file, samples.images[position], info)
                lines.write(json.dumps({"file": file} | info, ensure_ascii=False) + "\n")
        count += len(numbers)
        yield count


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``images.jsonl`` that are whole."""
    path, found = folder / LINES, list[dict[str, Any]]()
    if not path.exists():
        return found
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):  # killed while it wrote: the rest of the line would run into the next one
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.decode().splitlines()]


def _finished(folder: Path, prompts: Sequence[str], num: int) -> set[int]:
    """Numbers of the prompts whose images are all there."""
    seen: dict[int, set[str]] = {}
    for line in read_lines(folder):
        number = int(line["file"].partition("-")[0])
        if number >= len(prompts) or prompts[number] != line["prompt"]:
            raise UserError(
                f"{folder}: {line['file']} shows {line['prompt']!r}, which is not prompt {number} now; "
                "name an empty folder"
            )
        if (folder / line["file"]).exists():
            seen.setdefault(number, set()).add(line["file"])
    return {number for number, files in seen.items() if len(files) == num}


def _same_as_before(path: Path, asked: dict[str, Any]) -> None:
    if not path.exists():
        path.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for key in asked:
        if before.get(key) != json.loads(json.dumps(asked[key])):
            raise UserError(f"{path.parent}: {key} was {before.get(key)}, now it is {asked[key]}; name an empty folder")


def _plain(call: dict[str, Any]) -> dict[str, Any]:
    """The call as JSON; pictures by a hash of their pixels."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tobytes"):
            return f"picture {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
        return value

    return {key: plain(value) for key, value in call.items() if key != "batch_size"}
