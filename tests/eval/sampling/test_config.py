"""Paths of an exported cascade."""

from __future__ import annotations

from pathlib import Path

from eval.sampling.config import CascadeConfig, StageEntry, resolve_paths


def test_paths_below_the_folder_are_made_whole_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "clip_weights.pt").touch()
    config = CascadeConfig(
        stages=[StageEntry(name="base", resolution=8, path="base")],
        encoder="google/t5-v1_1-small",
        clip="ViT-B-32",
        clip_pretrained="clip_weights.pt",
    )
    found = resolve_paths(config, tmp_path)
    assert found.stages[0].path == str(tmp_path / "base")
    assert (found.encoder, found.clip) == ("google/t5-v1_1-small", "ViT-B-32")
    assert found.clip_pretrained == str(tmp_path / "clip_weights.pt")
