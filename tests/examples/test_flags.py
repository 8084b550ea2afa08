"""examples/flags.py on a package of its own: two flags, and files that are none."""

from __future__ import annotations

import csv
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dataprep.io.errors import UserError
from examples import flags
from examples.flags import LANGUAGES, choose_heldout, choose_seen, read_names, read_package, write_folder
from tests.helpers.paths import ROOT

pytest.importorskip("babel")
pytest.importorskip("resvg_py")

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><path fill="{}" d="M0 0h4v2H0z"/></svg>'
DRAWINGS = {"jp": SVG.format("#f00"), "de": SVG.format("#000"), "arab": SVG.format("#0f0")}


def make_package(folder: Path) -> Path:
    pictures = folder / "package/flags/1x1"
    pictures.mkdir(parents=True)
    (folder / "package/flags/4x3").mkdir()
    for code, svg in DRAWINGS.items():
        (pictures / f"{code}.svg").write_text(svg)
        (folder / f"package/flags/4x3/{code}.svg").write_text("not read")
    (folder / "package/LICENSE").write_text("The MIT License")
    return folder / "package"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_folder_and_the_file_of_npm_pack_are_the_same_package(tmp_path: Path) -> None:
    folder = make_package(tmp_path)
    with tarfile.open(tmp_path / "flag-icons.tgz", "w:gz") as tar:
        tar.add(folder, "package")
    assert read_package(tmp_path / "flag-icons.tgz") == read_package(folder)
    assert read_package(folder).drawings == DRAWINGS


def test_every_image_has_a_caption_and_no_held_out_one(tmp_path: Path) -> None:
    package = read_package(make_package(tmp_path))
    counts = write_folder(package, tmp_path / "out", seed=0)
    languages = len(LANGUAGES)
    assert counts == {"flags": 2, "images": 2 * (languages - 1), "prompts": 4}
    captions = {row["file_name"]: row["caption"] for row in read_csv(tmp_path / "out/images/captions.csv")}
    assert {path.name for path in (tmp_path / "out/images").glob("*.png")} == captions.keys()
    prompts = read_csv(tmp_path / "out/prompts.csv")
    for prompt in prompts:
        trained = captions.get(f"{prompt['code']}-{prompt['language']}.png")
        assert trained == (prompt["prompt"] if prompt["split"] == "seen" else None)
        assert prompt["split"] == "seen" or prompt["prompt"] not in captions.values()
    assert (tmp_path / "out/LICENSE").read_text() == "The MIT License"
    german = set(captions.values()) | {prompt["prompt"] for prompt in prompts}
    assert {"flag: Japan", "日本の旗", "Flagge: Deutschland"} <= german


def test_images_show_the_drawing_on_white_and_differ_in_size(tmp_path: Path) -> None:
    write_folder(read_package(make_package(tmp_path)), tmp_path / "out", seed=0)
    images = [Image.open(path) for path in sorted((tmp_path / "out/images").glob("jp-*.png"))]
    assert len({image.size for image in images}) == len(images)
    for image in images:
        assert image.mode == "RGB" and image.width == image.height
        assert image.getpixel((9, 9)) == (255, 0, 0)
        assert image.getpixel((9, image.height - 9)) == (255, 255, 255)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    package = read_package(make_package(tmp_path))
    for name, seed in (("one", 3), ("two", 3)):
        write_folder(package, tmp_path / name, seed)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two"))
    assert one == two


def test_every_language_is_held_out_of_as_many_flags() -> None:
    codes = [f"c{number}" for number in range(20)]
    heldout = choose_heldout(codes, 0)
    counts = Counter(heldout.values())
    assert heldout.keys() == set(codes) and counts.keys() == LANGUAGES.keys()
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(language != heldout[code] for code, language in choose_seen(heldout).items())
    assert heldout != choose_heldout(codes, 1)


def test_a_code_without_a_name_is_left_out() -> None:
    assert list(read_names(["arab", "jp", "xx"])) == ["jp"]


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("jp")
    for name, remedy in (("missing", "npm pack"), ("list.txt", "npm pack"), ("empty", "give the package flag-icons")):
        with pytest.raises(UserError, match=remedy):
            read_package(tmp_path / name)


def test_a_folder_that_has_images_is_left_alone(tmp_path: Path) -> None:
    package = read_package(make_package(tmp_path))
    write_folder(package, tmp_path / "out", seed=0)
    with pytest.raises(UserError, match="remove the folder"):
        write_folder(package, tmp_path / "out", seed=1)


def test_a_package_without_countries_is_refused(tmp_path: Path) -> None:
    package = read_package(make_package(tmp_path))._replace(drawings={"arab": DRAWINGS["arab"]})
    with pytest.raises(UserError, match="code of a country"):
        write_folder(package, tmp_path / "out", seed=0)


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flags.py", str(tmp_path / "missing"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        flags.main()
    assert "npm pack" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["flags.py", str(make_package(tmp_path)), str(tmp_path / "out"), "--limit", "1"])
    flags.main()
    assert capsys.readouterr().out == f"1 flags, 5 images, 2 prompts in {tmp_path / 'out'}\n"


def test_prompts_of_the_config_are_captions_of_the_script() -> None:
    from pipeline.config_loading import load_config

    config = load_config(str(ROOT / "configs/flags.yaml"), [])
    names = read_names(["jp", "ch", "br", "us", "ca", "gb", "ke", "jm"])
    known = {LANGUAGES[name].caption.format(text) for by in names.values() for name, text in by.items()}
    assert config.sample.prompts and set(config.sample.prompts) <= known
