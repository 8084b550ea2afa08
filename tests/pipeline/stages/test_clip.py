"""The shards and arguments that CLIP is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataprep.io import storage
from pipeline.config_loading import load_config
from pipeline.runtime.context import Context
from pipeline.stages import clip
from pipeline.stages.clip import ClipStageConfig
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.markers import Marker
from tests.helpers.contexts import make_context
from tests.helpers.paths import ROOT


class FinishedContext(Context[Any, Any]):
    """Shard 1 was quarantined; shard 12 ended before shard 2."""

    def map_shards(self, worker: Any, arguments: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self.arguments = arguments
        self.finished = [Marker(number, "w", {}, [], {}) for number in (12, 0, 2)]


def test_clip_is_trained_on_the_prepared_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    indexed: dict[str, list[str]] = {}

    def record_arguments(ctx: object, function: Callable[..., Any], arguments: Mapping[str, Any], *_: Any) -> None:
        given.update(arguments)

    monkeypatch.setattr(clip, "train_on_cluster", record_arguments)
    monkeypatch.setattr(clip, "write_shard_index", lambda ctx, path, pairs, *_: indexed.update({path: pairs}))
    monkeypatch.setattr(clip, "encoder_location", lambda artifact: "t5")
    ctx = make_context(tmp_path, "clip")
    ctx.__class__ = FinishedContext
    ctx.config = ClipStageConfig.from_run(
        load_config(str(ROOT / "configs" / "smoke.yaml"), ["download.max_pixels=100000"])
    )
    download = Artifact(str(tmp_path), Manifest("download", "f", {}, {}, [], {}, 1.0, {}))
    ctx.inputs = SimpleNamespace(download=download, encoder=download)
    clip.run(ctx)
    assert indexed[given["index"]] == [
        ctx.path("pairs", name) for name in ("00000.parquet", "00002.parquet", "00012.parquet")
    ]
    assert given["encoder"] == "t5"
    assert ctx.arguments["max_pixels"] == 100_000  # type: ignore[attr-defined]
    assert storage.read_json(ctx.path("model.json")) == {"model": None, "pretrained": None}
