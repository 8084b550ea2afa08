"""``imagen-ray export --push``: every file arrives at a hub on loopback, and what the hub refuses is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.helpers.cascades import export as export_cascade
from tests.helpers.hub import TOKEN, Hub, serve_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = export_cascade(tmp_path / "exported")
    (made / "README.md").write_text("---\nlibrary_name: imagen-ray\nlicense: apache-2.0\n---\n\n# A card\n")
    return made


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["export", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_every_file_arrives(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--push", "me/cascade", "--private") == 0
    assert capsys.readouterr().out.strip() == f"{hub.url}/me/cascade"
    assert hub.created["me/cascade"]["visibility"] == "private"
    here = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files["me/cascade"] == here and "base/model.safetensors" in here
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert run(str(folder), "--push", "me/cascade") == 0  # again, into the same repository
    assert hub.files["me/cascade"]["README.md"] == b"---\nlicense: mit\n---\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cascade", "--push cascade: is no name of a repository; give OWNER/NAME"),
        ("me/a/b", "--push me/a/b: is no name of a repository"),
        ("me/a--b", "--push me/a--b: is no name of a repository"),
        ("others/cascade", r"--push others/cascade: the hub refuses \(HTTP 403\); give a name of your own"),
    ],
)
def test_names_that_cannot_be(
    hub: Hub, folder: Path, name: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(str(folder), "--push", name) == 2
    assert re.search(message, " ".join(capfd.readouterr().err.split()))


def test_tokens(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run(str(folder), "--push", "me/cascade") == 2
    assert "the hub refuses (HTTP 401)" in " ".join(capfd.readouterr().err.split())
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert run(str(folder), "--push", "me/cascade") == 2
    assert "there is no token for the hub; set HF_TOKEN" in " ".join(capfd.readouterr().err.split())
    assert hub.files == {}


def test_a_hub_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(str(folder), "--push", "me/cascade") == 1
    told = " ".join(capfd.readouterr().err.split())
    assert "fails or cannot be reached" in told and f"imagen-ray export {folder} --push me/cascade" in told


def test_what_is_no_export(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path), "--push", "me/cascade") == 2
    assert "has no cascade.json; name a folder that `imagen-ray export` wrote" in " ".join(
        capfd.readouterr().err.split()
    )
    assert run(str(tmp_path)) == 2
    assert "OUT is missing; give the name of a new folder" in capfd.readouterr().err
