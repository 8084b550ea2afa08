"""Makes a folder of images and captions of real images: the world's flags, named in six languages.

    npm pack flag-icons@7.5.0
    pip install 'imagen-ray[examples]'
    python examples/flags.py flag-icons-7.5.0.tgz runs/flags-data
    imagen-ray run configs/flags.yaml

The images are those of the npm package flag-icons (MIT licence): given as the file that `npm pack` fetches, or as a
folder, such as node_modules/flag-icons. The names are CLDR's (Unicode licence), from the package babel. Nothing is
downloaded here. A flag whose code has a name in every language is taken.

    OUT/images/<code>-<language>.png   a file for each caption
    OUT/images/captions.csv            file_name, caption
    OUT/prompts.csv                    prompt, split, language, code: what to judge a model on
    OUT/LICENSE                        of the images

Of each flag the caption in one language is held out: another language from flag to flag, drawn by the seed, each for
as many flags. It is in prompts.csv as ``heldout`` and nowhere else; beside it, as ``seen``, is one that is trained on.
The files of a flag differ in size, because images are held out for validation by their bytes: so that these are some of
a flag's captions, not all.
"""

from __future__ import annotations

import argparse
import csv
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataprep.io.errors import UserError

PICTURES = "flags/1x1"  # in the package
DRAWN = 256  # pixels that an image is drawn at, before it is made smaller
SMALLEST, STEP = 128, 8  # pixels of the first language's images, and how many more those of each next one have


class Language(NamedTuple):
    """The locale of CLDR that has the names, and a caption that is right grammar for any name."""

    locale: str
    caption: str


LANGUAGES = {
    "en": Language("en", "flag: {}"),
    "de": Language("de", "Flagge: {}"),
    "fr": Language("fr", "drapeau : {}"),
    "es": Language("es", "bandera: {}"),
    "zh": Language("zh_Hans", "{}旗帜"),
    "ja": Language("ja", "{}の旗"),
}


class Package(NamedTuple):
    """The drawings of the package by code, as SVG, and its licence."""

    drawings: dict[str, str]
    licence: str


def read_package(path: Path) -> Package:
    """Reads the package from its folder or from the file of `npm pack`; raises UserError for anything else."""
    if path.is_dir():
        files = {name: (path / name).read_text(encoding="utf-8") for name in _list_folder(path)}
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            members = {member.name.partition("/")[2]: member for member in tar if member.isfile()}
            found = {name: tar.extractfile(member) for name, member in members.items() if _is_wanted(name)}
            files = {name: file.read().decode() for name, file in found.items() if file is not None}
    else:
        raise UserError(f"{path}: neither a folder nor a tar; run `npm pack flag-icons` and give the file it writes")
    drawings = {PurePosixPath(name).stem: files[name] for name in sorted(files) if name.startswith(PICTURES)}
    if not drawings or "LICENSE" not in files:
        raise UserError(f"{path}: has no {PICTURES}/*.svg, or no LICENSE; give the package flag-icons")
    return Package(drawings, files["LICENSE"])


def _list_folder(path: Path) -> list[str]:
    return [name for file in sorted(path.rglob("*")) if _is_wanted(name := file.relative_to(path).as_posix())]


def _is_wanted(name: str) -> bool:
    return name == "LICENSE" or (name.startswith(f"{PICTURES}/") and name.endswith(".svg"))


def read_names(codes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns code -> language -> name, for the codes that have one in every language."""
    from babel import Locale

    territories = {language: Locale.parse(item.locale).territories for language, item in LANGUAGES.items()}
    return {
        code: {language: str(names[code.upper()]) for language, names in territories.items()}
        for code in codes
        if all(code.upper() in names for names in territories.values())
    }


def choose_heldout(codes: Sequence[str], seed: int) -> dict[str, str]:
    """Returns the language that is held out of each code: every one for as many codes, up to one."""
    order, languages = np.random.default_rng(seed).permutation(len(codes)), list(LANGUAGES)
    return {codes[place]: languages[number % len(languages)] for number, place in enumerate(order)}


def choose_seen(heldout: Mapping[str, str]) -> dict[str, str]:
    """Returns a language of each code that is trained on: the one after that which is held out."""
    languages = list(LANGUAGES)
    return {code: languages[(languages.index(name) + 1) % len(languages)] for code, name in heldout.items()}


def draw(svg: str) -> Image.Image:
    """Draws an SVG on white, `DRAWN` pixels square."""
    from resvg_py import svg_to_bytes

    drawn = svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(drawn)).convert("RGB")


def write_folder(package: Package, out: Path, seed: int, limit: int | None = None) -> dict[str, int]:
    """Writes images, captions and prompts of the first ``limit`` flags; returns how many there are of each.

    Raises UserError if there are images already, which may have been made with another seed, or if no code has names.
    """
    images = out / "images"
    if images.exists() and any(images.iterdir()):
        raise UserError(f"{images}: has files already, perhaps of another seed; remove the folder, or name another")
    names = dict(list(read_names(list(package.drawings)).items())[:limit])
    if not names:
        raise UserError("no image is named by the code of a country; give the package flag-icons")
    images.mkdir(parents=True, exist_ok=True)
    (out / "LICENSE").write_text(package.licence, encoding="utf-8")
    heldout = choose_heldout(list(names), seed)
    rows = []
    for code, by_language in names.items():
        picture = draw(package.drawings[code])
        for number, (language, name) in enumerate(by_language.items()):
            if language != heldout[code]:
                file, side = f"{code}-{language}.png", SMALLEST + STEP * number
                picture.resize((side, side), Image.Resampling.BOX).save(images / file)
                rows.append([file, LANGUAGES[language].caption.format(name)])
    _write_csv(images / "captions.csv", ["file_name", "caption"], rows)
    prompts = []
    for split, chosen in (("seen", choose_seen(heldout)), ("heldout", heldout)):
        for code, language in chosen.items():
            prompts.append([LANGUAGES[language].caption.format(names[code][language]), split, language, code])
    _write_csv(out / "prompts.csv", ["prompt", "split", "language", "code"], prompts)
    return {"flags": len(names), "images": len(rows), "prompts": len(prompts)}


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    """Writes the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="file of `npm pack flag-icons`, or the package's folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="decides which captions are held out")
    parser.add_argument("--limit", type=int, help="take only so many flags")
    given = parser.parse_args()
    try:
        counts = write_folder(read_package(given.package), given.out, given.seed, given.limit)
    except UserError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed; run pip install 'imagen-ray[examples]'")
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()), "in", given.out)


if __name__ == "__main__":
    main()
