"""Which image of a folder has which prompt: by a table, by PNG metadata, by order; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.judging.image_folder import match_folder
from eval.sampling.png_metadata import save_png

GREY = Image.new("RGB", (8, 8), "grey")


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        GREY.save(folder / name)
    return folder


def prompts(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def pairs(folder: Path, file: str | None) -> dict[str, tuple[str, int]]:
    matched = match_folder(folder, file)
    return {str(item.path.relative_to(folder)): (item.prompt.prompt, item.index) for item in matched.images}


def test_by_order_numbers_count_as_numbers(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "img10.png", "img2.png", "img1.jpg", "grid.png")
    (folder / "notes.txt").write_text("no image")
    file = prompts(tmp_path / "p.txt", "a cat\na dog\na bird\n")
    assert pairs(folder, file) == {"img1.jpg": ("a cat", 0), "img2.png": ("a dog", 0), "img10.png": ("a bird", 0)}
    assert match_folder(folder, file).how == "by the order of file names, one per prompt"


def test_by_order_several_images_per_prompt(tmp_path: Path) -> None:
    """GenEval's layout: a folder of samples per prompt."""
    folder = make(tmp_path / "images", *(f"{p:05d}/samples/{i:04d}.png" for p in range(2) for i in range(2)))
    make(folder, "00000/grid.png")
    found = pairs(folder, prompts(tmp_path / "p.txt", "a cat\na dog\n"))
    assert found["00000/samples/0001.png"] == ("a cat", 1)
    assert found["00001/samples/0000.png"] == ("a dog", 0)


def test_repeated_prompts_are_further_candidates(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "0.png", "1.png", "2.png")
    assert pairs(folder, prompts(tmp_path / "p.txt", "a cat\na dog\na cat\n")) == {
        "0.png": ("a cat", 0),
        "1.png": ("a dog", 0),
        "2.png": ("a cat", 1),
    }


def test_by_a_table_with_what_does_not_fit(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "x.png", "sub/y.png", "z.png")
    rows = "file_name,caption,category\nz.png,a cat,pets\nsub/y.png,a dog,\ngone.png,a hen,\n"
    table = prompts(tmp_path / "t.csv", rows)
    assert pairs(folder, table) == {"z.png": ("a cat", 0), "sub/y.png": ("a dog", 0)}
    matched = match_folder(folder, table)
    assert matched.images[0].prompt.split == "pets"
    assert matched.notes == [
        f"1 image of {table} not found (first: gone.png)",
        f"1 image not named in {table} (first: x.png)",
    ]
    lines = [json.dumps({"item_id": name, "text": f"a {name}"}) for name in ("x", "y", "z", "x")]
    assert pairs(folder, prompts(tmp_path / "t.jsonl", "\n".join(lines)))["sub/y.png"] == ("a y", 0)


def test_a_table_that_names_other_images_is_a_list_of_prompts(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "0.png", "1.png")
    table = prompts(tmp_path / "t.csv", "item_id,text\none,a cat\ntwo,a dog\n")
    assert pairs(folder, table) == {"0.png": ("a cat", 0), "1.png": ("a dog", 0)}


def test_by_the_metadata_of_our_pngs(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, prompt, index in (("b.png", "a cat", 1), ("a.png", "a dog", 0), ("c.png", "a hen", 0)):
        save_png(folder / name, GREY, {"prompt": prompt, "seed": 3, "index": index})
    assert pairs(folder, None) == {"a.png": ("a dog", 0), "b.png": ("a cat", 1), "c.png": ("a hen", 0)}
    matched = match_folder(folder, prompts(tmp_path / "p.txt", "a dog\na cat\na fox\n"))
    assert matched.how == "by the metadata of the PNGs" and matched.images[0].seed == 3
    assert matched.notes == [
        "1 image of other prompts left out (first: c.png)",
        "1 prompt without an image (first: 'a fox')",
    ]
    with pytest.raises(UserError, match=r"none of the 3 images in .* shows one of its prompts \(the first"):
        match_folder(folder, prompts(tmp_path / "q.txt", "a fox\n"))


def test_without_prompts(tmp_path: Path) -> None:
    matched = match_folder(make(tmp_path / "images", "0.png", "1.png"), None)
    assert not matched.prompted
    assert [item.prompt.prompt for item in matched.images] == ["0.png", "1.png"]


def test_counts_that_do_not_fit(tmp_path: Path) -> None:
    folder = make(tmp_path / "images", "0.png", "1.png", "2.png")
    with pytest.raises(UserError, match=r"2 prompts for 3 images in .*; give as many images per prompt, or a table"):
        match_folder(folder, prompts(tmp_path / "p.txt", "a cat\na dog\n"))
    with pytest.raises(UserError, match="4 prompts for 3 images"):
        match_folder(folder, prompts(tmp_path / "q.txt", "a\nb\nc\nd\n"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in it; name a folder of images, or a model"):
        match_folder(tmp_path / "empty", None)
    with pytest.raises(UserError, match="none: no such folder"):
        match_folder(tmp_path / "none", None)
