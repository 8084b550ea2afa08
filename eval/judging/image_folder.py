"""Images of a folder with their prompts: by a table, by the metadata of our own PNGs, or by the order of file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataprep.images.formats import has_image_extension
from dataprep.io.errors import UserError
from dataprep.io.wording import count_of
from eval.sampling.png_metadata import is_ours, is_picture, read_png_metadata
from eval.sampling.prompt_files import make_prompt, read_named_prompts
from eval.sampling.prompts import EvalPrompt


@dataclass(frozen=True)
class FolderImage:
    """An image file with its prompt; ``index`` counts the images of one prompt and seed."""

    path: Path
    prompt: EvalPrompt
    seed: int = 0
    index: int = 0


@dataclass(frozen=True)
class MatchedFolder:
    """The images of a folder, how their prompts were found, and what did not fit, in words.

    Images without prompts (not ``prompted``) have their file names in place of them.
    """

    images: Sequence[FolderImage]
    how: str
    notes: Sequence[str] = ()
    prompted: bool = True


def match_folder(folder: Path, prompts_file: str | None) -> MatchedFolder:
    """Finds the prompt of every image below ``folder``.

    A table with a column of image names decides. Otherwise PNGs that imagen-ray wrote say their prompt themselves, and
    a prompt file names those to take. Otherwise the images follow the prompts in the order of their paths, numbers in
    names counting as numbers, with equally many images per prompt. Without a prompt file other images have no prompts.
    Raises UserError for a folder without images, and for counts that do not fit.
    """
    paths = list_images(folder)
    named = read_named_prompts(prompts_file) if prompts_file else []
    if any(name for _, name in named):
        by_name = _match_names(folder, paths, named, str(prompts_file))
        if by_name is not None:
            return by_name
    if all(path.suffix.lower() == ".png" and is_ours(path) for path in paths):
        return match_metadata(folder, paths, [prompt for prompt, _ in named], prompts_file)
    if not named:
        unnamed = [FolderImage(path, EvalPrompt(str(path.relative_to(folder)), "user", "", None)) for path in paths]
        return MatchedFolder(unnamed, "without prompts", (), False)
    return _match_order(folder, paths, [prompt for prompt, _ in named], str(prompts_file))


def list_images(folder: Path) -> list[Path]:
    """Returns the image files below ``folder``, numbers in names in their order; UserError for none."""
    if not folder.is_dir():
        raise UserError(f"IMAGES {folder}: no such folder; name a folder of images, or a model")
    paths = [path for path in folder.rglob("*") if path.is_file() and has_image_extension(path.name)]
    # A grid, as GenEval writes it beside samples, is no sample, nor are the grids and other pictures of our own calls.
    found = [path for path in paths if path.stem != "grid" and not path.name.startswith(".") and not is_picture(path)]
    if not found:
        raise UserError(f"IMAGES {folder}: no images in it; name a folder of images, or a model")
    return sorted(found, key=lambda path: _natural_key(str(path.relative_to(folder))))


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _match_names(
    folder: Path, paths: Sequence[Path], named: Sequence[tuple[EvalPrompt, str]], prompts_file: str
) -> MatchedFolder | None:
    """By a table that names files, or their names without extension; None if it names none of them."""
    by_name: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(folder)
        for name in (str(relative), path.name, str(relative.with_suffix("")), path.stem):
            by_name.setdefault(name, path)
    rows = list(dict.fromkeys((prompt, name) for prompt, name in named if name))
    found = [(by_name[name], prompt) for prompt, name in rows if name in by_name]
    if not found:
        return None
    missing = [name for _, name in rows if name not in by_name]
    used = {path for path, _ in found}
    notes = []
    if missing:
        notes.append(f"{count_of(len(missing), 'image')} of {prompts_file} not found (first: {missing[0]})")
    if left := [path for path in paths if path not in used]:
        notes.append(f"{count_of(len(left), 'image')} not named in {prompts_file} (first: {left[0].name})")
    return MatchedFolder(_number(found), f"by the names in {Path(prompts_file).name}", notes)


def match_metadata(
    folder: Path, paths: Sequence[Path], wanted: Sequence[EvalPrompt], prompts_file: str | None
) -> MatchedFolder:
    """Matches PNGs of imagen-ray by what they say of themselves; ``wanted`` prompts say which of them to take.

    Raises UserError if none of the images shows a wanted prompt.
    """
    listed = {prompt.prompt: prompt for prompt in wanted}
    images, others = [], []
    for path in paths:
        info = read_png_metadata(path)
        text = str(info.get("prompt", ""))
        if listed and text not in listed:
            others.append(path)
            continue
        prompt = listed.get(text) or make_prompt(text)
        images.append(FolderImage(path, prompt, int(info.get("seed") or 0), int(info.get("index") or 0)))
    shown = {image.prompt.prompt for image in images}
    lacking = [text for text in listed if text not in shown]
    if not images:
        raise UserError(
            f"--prompts {prompts_file}: none of the {count_of(len(paths), 'image')} in {folder} shows one of its "
            f"prompts (the first shows {read_png_metadata(paths[0]).get('prompt')!r}); give the prompts of these images"
        )
    notes = []
    if others:
        notes.append(f"{count_of(len(others), 'image')} of other prompts left out (first: {others[0].name})")
    if lacking:
        notes.append(f"{count_of(len(lacking), 'prompt')} without an image (first: {lacking[0]!r})")
    return MatchedFolder(images, "by the metadata of the PNGs", notes)


def _match_order(
    folder: Path, paths: Sequence[Path], prompts: Sequence[EvalPrompt], prompts_file: str
) -> MatchedFolder:
    distinct = list(dict.fromkeys(prompts))
    for rows in (prompts, distinct):
        each, rest = divmod(len(paths), len(rows))
        if each and not rest:
            found = [(path, rows[number // each]) for number, path in enumerate(paths)]
            per = f"{each} per prompt" if each > 1 else "one per prompt"
            return MatchedFolder(_number(found), f"by the order of file names, {per}")
    raise UserError(
        f"--prompts {prompts_file}: {count_of(len(prompts), 'prompt')} for {count_of(len(paths), 'image')} in "
        f"{folder}; give as many images per prompt, or a table with the columns file_name and prompt"
    )


def _number(found: Sequence[tuple[Path, EvalPrompt]]) -> list[FolderImage]:
    """Returns images with the index of each among those of its prompt."""
    seen: Counter[str] = Counter()
    images = []
    for path, prompt in found:
        images.append(FolderImage(path, prompt, 0, seen[prompt.prompt]))
        seen[prompt.prompt] += 1
    return images
