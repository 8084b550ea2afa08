"""The server of images that benchmarks download from."""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks.image_server import Answers, make_photo, start_server


def test_a_limited_rate_holds_over_all_requests_and_an_idle_time_is_not_made_up_for(tmp_path: Path) -> None:
    answers = Answers(tmp_path, 10.0)
    assert [answers.take_turn(now) for now in (5.0, 5.0, 5.05, 9.0, 9.0)] == pytest.approx([5.0, 5.1, 5.2, 9.0, 9.1])
    assert Answers(tmp_path, None).take_turn(5.0) == 5.0


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_every_server_sends_the_files_and_404_for_what_is_not_there(rate: float | None) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,  # nginx's worker may not read in pytest's folders
        start_server(Path(folder), ["small", "web"], 2, rate) as (name, port),
    ):
        assert rate is None or name == "asyncio"
        address = f"http://127.0.0.1:{port}"
        for path in ("small/0", "small/1", "web/0"):
            with urllib.request.urlopen(f"{address}/{path}?7", timeout=60) as answer:
                assert answer.read() == Path(folder, path).read_bytes()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/small/2", timeout=60)


def test_a_server_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.image_server.sys.executable", "false")
    with pytest.raises(AssertionError, match="ended with status 1"), start_server(tmp_path, ["small"], 0, 1.0):
        pass


def test_some_web_files_are_dead_links() -> None:
    assert None not in [make_photo("small", index) for index in range(60)]
    assert None in [make_photo("web", index) for index in range(60)]
