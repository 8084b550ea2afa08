"""Two made-up runs side by side: which is better, what differs, the page and the blind test in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from judged_fakes import fake_clip, make_run

from dataprep import storage
from dataprep.schema import UserError
from eval.clip import ClipScorer
from eval.prompts import EvalPrompt
from pipeline import blind, cli
from pipeline.compare import Row, Side, differences, load_pairs, load_side, measure_pairs, verdict

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A is right six times of ten, B nearly always, at another guidance."""
    folder = tmp_path_factory.mktemp("runs")
    more = [EvalPrompt(HOSTILE, "user", "en", None)]
    make_run(folder / "a", 0.6, guidance=1.0, more=more)
    make_run(folder / "b", 1.0, guidance=4.0, more=more)
    return folder / "a", folder / "b"


@pytest.fixture(autouse=True)
def clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScorer, "load", fake_clip)


def sides(runs: tuple[Path, Path]) -> tuple[Side, Side]:
    a, b = runs
    return load_side(str(a)), load_side(str(b))


def run_cli(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *words])
    return int(ended.value.code or 0)


def test_the_better_run_is_named_and_a_run_is_no_better_than_itself(runs: tuple[Path, Path]) -> None:
    a, b = sides(runs)
    pairs = load_pairs(a, b)
    assert len(pairs) == 41
    rows = {row.name: row for row in measure_pairs(a, b, pairs)}
    best = rows["all attributes at once as asked"]
    assert best.verdict == "B is better"
    assert best.difference["low"] > 0
    assert (best.n, best.percent) == (40, True)  # the hostile prompt claims nothing
    assert rows["CLIP score by the CLIP of both"].verdict == "B is better"
    (fd,) = [row for name, row in rows.items() if name.startswith("FD to 60 validation images")]
    assert not fd.higher_is_better
    text = verdict(list(rows.values()))
    assert re.match(r"Of \d+ measures B is better on \d+: all attributes at once as asked \d\d\.\d% \(A\)", text)
    mixed = verdict([best, Row("FD", 1, 2, {"value": 1, "low": 0.5, "high": 1.5}, 9, higher_is_better=False)])
    assert mixed.startswith("Neither is better throughout. Of 2 measures B is better on 1: all")
    assert "A is better on 1: FD 1.0000 (A) against 2.0000 (B)" in mixed
    turned = {row.name: row for row in measure_pairs(b, a, load_pairs(b, a))}
    assert turned["all attributes at once as asked"].verdict == "A is better"
    assert turned["all attributes at once as asked"].difference["value"] == pytest.approx(-best.difference["value"])

    same = measure_pairs(a, a, load_pairs(a, a))
    assert {row.verdict for row in same} == {"cannot tell"}
    assert verdict(same).startswith("The two cannot be told apart")
    assert differences(a, a) == []


def test_what_differs_is_what_made_the_samples(runs: tuple[Path, Path]) -> None:
    a, b = sides(runs)
    assert set(a.artifacts) == {"sample", "train.base", "clip", "pack"}
    rows = {row["key"]: row for row in differences(a, b)}
    assert rows["sample.stages.base.guidance"] == {"key": "sample.stages.base.guidance", "a": "1.0", "b": "4.0"}
    assert "code of sample" in rows
    assert len(rows) == 2


def test_runs_with_different_clips_are_judged_by_both(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = sides(runs)
    shutil.copytree(runs[1], tmp_path / "b")
    weights = next((tmp_path / "b" / "stages" / "clip").iterdir())
    manifest = storage.read_json(str(weights / "manifest.json"))
    manifest["outputs"][0]["sha256"] = "0" * 64
    storage.write_json(str(weights / "manifest.json"), manifest)
    b = load_side(str(tmp_path / "b"))
    names = [row.name for row in measure_pairs(a, b, load_pairs(a, b))]
    assert [name for name in names if name.startswith("CLIP")] == [
        "CLIP score by the CLIP of A",
        "CLIP score by the CLIP of B",
    ]


def test_an_earlier_state_of_a_run(runs: tuple[Path, Path]) -> None:
    found = load_side(f"{runs[0]}@{600:020x}")
    assert found.artifacts["sample"].folder == load_side(str(runs[0])).artifacts["sample"].folder
    with pytest.raises(UserError, match=r"0 finished sample stages begin with abc; there are: 0000"):
        load_side(f"{runs[0]}@abc")


def test_user_mistakes(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(str(runs[0])) == 2
    assert "1 runs given; give RUN_A and RUN_B" in capsys.readouterr().err
    assert run_cli(str(runs[0]), str(tmp_path)) == 2
    assert "no run here" in capsys.readouterr().err
    make_run(tmp_path / "c", 1.0, count=0, more=[EvalPrompt("another", "user", "en", None)])
    with pytest.raises(UserError, match="no judged prompt of the same text and seed"):
        load_pairs(load_side(str(runs[0])), load_side(str(tmp_path / "c")))
    storage.write_json(str(tmp_path / "d" / "run.json"), {"stages": {}})
    with pytest.raises(UserError, match="stage sample is not finished"):
        load_side(str(tmp_path / "d"))


# ---------------------------------------------------------------------------------------------- blind test


def choices(path: Path, **changes: Any) -> str:
    """A file as the page saves it: three pairs, on the first and the last of which A is left."""
    key = blind.seal({"names": ["one", "other"], "a_is_left": [True, False, True]})
    answers = {"0": {"text": "left", "image": "right"}, "1": {"text": "left", "image": "left"}, "2": {"text": "same"}}
    file = {"format": 1, "test": "t", "sealed": key, "choices": answers} | changes
    path.write_text(json.dumps(file))
    return str(path)


def test_choices_are_counted_by_run_and_not_by_side(tmp_path: Path) -> None:
    paths = [choices(tmp_path / "1.json"), choices(tmp_path / "2.json")]
    found = blind.count(paths)
    assert (found["names"], found["raters"], found["pairs"]) == (["one", "other"], 2, 3)
    assert {key: found["text"][key] for key in ("a", "b", "same")} == {"a": 2, "b": 2, "same": 2}
    assert {key: found["image"][key] for key in ("a", "b", "same")} == {"a": 0, "b": 4, "same": 0}
    assert found["image"]["share_b"] == 1
    assert found["image"]["p"] == pytest.approx(0.125)
    assert found["text"]["low"] < 0.5 < found["text"]["high"]
    lines = blind.summary(found)
    assert lines[0] == "A = one, B = other; 2 raters, 3 pairs"
    assert lines[1].endswith("p = 1: cannot tell")
    assert lines[2].endswith("B is preferred")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"sealed": "?"}, "not a file of choices"),
        ({"choices": {"3": {"text": "left"}}}, "not a file of choices"),
        ({"choices": {"0": {"text": "both"}}}, "not a file of choices"),
    ],
)
def test_files_that_cannot_be_counted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        blind.count([choices(tmp_path / "c.json", **changes)])


def test_missing_files_and_mixed_tests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        blind.count([str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="of another test"):
        blind.count([choices(tmp_path / "1.json"), choices(tmp_path / "2.json", test="u")])


def test_sides_and_order_are_drawn_by_the_seed(runs: tuple[Path, Path]) -> None:
    a, b = sides(runs)
    pairs = load_pairs(a, b)
    page = blind.blind_page(a, b, pairs, 30, 1)
    assert page == blind.blind_page(a, b, pairs, 30, 1) != blind.blind_page(a, b, pairs, 30, 2)
    assert page.count('class="pair"') == 30
    assert str(runs[0]) not in page
    test = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    left = blind.unseal(test["sealed"])["a_is_left"]
    assert len(left) == 30
    assert 5 <= sum(left) <= 25


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1440, "light")])
def test_pages_in_a_browser(runs: tuple[Path, Path], tmp_path: Path, width: int, scheme: str) -> None:
    """Offline, without an error, no wider than the screen; a hostile prompt is text; choices are kept and counted."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    out, test = tmp_path / "page.html", tmp_path / "blind.html"
    assert run_cli(*map(str, runs), "--out", str(out), "--blind", str(test)) == 0
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    troubles: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else troubles.append(r.url))
        page.goto(f"file://{out}")
        assert page.title() == "a against b"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert "B is better on" in page.inner_text("#verdict")
        assert "sample.stages.base.guidance" in page.inner_text("#differences")
        assert HOSTILE in page.inner_text("#pairs")
        before = page.locator(".pair:visible").count()
        page.check("#only")
        assert 0 < page.locator(".pair:visible").count() < before == 41
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") != scheme

        page.goto(f"file://{test}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert HOSTILE in page.inner_text("main")
        for answer, name in (("left", "0-text"), ("right", "0-image"), ("same", "1-text")):
            page.check(f"input[name='{name}'][value={answer}]")
        page.reload()
        assert page.inner_text("#progress") == "1 of 41 answered"
        assert page.is_checked("input[name='1-text'][value=same]")
        with page.expect_download() as saved:
            page.click("#save")
        saved.value.save_as(tmp_path / "choices.json")
        browser.close()
    assert troubles == []
    counted = blind.count([str(tmp_path / "choices.json")])
    assert counted["names"] == [str(path) for path in runs]
    assert [sum(counted["text"][key] for key in ("a", "b")), counted["text"]["same"]] == [1, 1]
    assert sum(counted["image"][key] for key in ("a", "b")) == 1
    assert run_cli("--count", str(tmp_path / "choices.json")) == 0
