"""Where a folder has its text encoder."""

from __future__ import annotations

from pathlib import Path

from dataprep.io.pipeline_folder import encoder_folders


def test_an_encoder_is_at_the_top_or_in_two_folders(tmp_path: Path) -> None:
    assert encoder_folders(str(tmp_path)) == (str(tmp_path), str(tmp_path))
    assert encoder_folders("google/t5-v1_1-small") == ("google/t5-v1_1-small", "google/t5-v1_1-small")
    (tmp_path / "model_index.json").write_text("{}")
    assert encoder_folders(str(tmp_path)) == (str(tmp_path / "text_encoder"), str(tmp_path / "tokenizer"))
