"""Stage `text_tuning`: where it stands, what it hands to the ranks, and what is refused before they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.inference.sample import find_adapters
from pipeline.stages import text_tuning
from pipeline.stages.graph import list_stages
from pipeline.stages.model_files import find_encoder, locate_model
from pipeline.stages.text_encoder import encoder_location
from pipeline.stages.text_tuning import check_words, list_sources
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run
from tests.helpers.contexts import make_context
from tests.helpers.packs import write_pack
from tests.helpers.paths import ROOT
from tests.helpers.trained_runs import commit_stage, write_trained_run
from tests.helpers.unets import unet_config

CONFIG = str(ROOT / "configs" / "textual_inversion.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with bases that read text 32 wide, one that does not, a super-resolution stage, and an encoder."""
    networks = {
        "base": unet_config("micro-base", text_dim=32),
        "narrow": unet_config("micro-base", text_dim=8),
        "deep": unet_config("micro-base", text_dim=32, strides=(1, 8)),
        "sr": unet_config("micro-sr", text_dim=32),
    }
    return write_trained_run(tmp_path_factory.mktemp("runs") / "demo", **networks)


def load(run: Run, *changes: str) -> Any:
    return load_config(CONFIG, [f"text_tuning.model={run.root}", f"encoder.model={run.root}", *changes])


def test_the_stage_exists_only_where_it_is_asked_for_and_takes_the_encoders_place() -> None:
    tuned, plain = (
        {stage.name: stage for stage in list_stages(load_config(str(ROOT / "configs" / name)))}
        for name in ("textual_inversion.yaml", "demo.yaml")
    )
    assert tuned["text_tuning"].inputs == ("pack", "encoder") and "text_tuning" not in plain
    for stage in ("embed", "sample"):
        assert "text_tuning" in tuned[stage].inputs and "text_tuning" not in plain[stage].inputs
    assert "text_tuning" not in plain["evaluate"].inputs and "encoder" in plain["evaluate"].inputs  # it sweeps


def test_the_image_model_counts_by_its_bytes_and_has_to_fit(finished: Run) -> None:
    files = list_sources(load(finished))
    assert any("train.base" in file and file.endswith("model.safetensors") for file in files)
    root = finished.root
    with pytest.raises(UserError, match=r"text_tuning\.model=.*:narrow: reads text 8 wide, the encoder's is 32"):
        list_sources(load(finished, f"text_tuning.model={root}:narrow"))
    with pytest.raises(UserError, match=r"text_tuning\.model=.*:sr: enlarges images; name the base stage"):
        list_sources(load(finished, f"text_tuning.model={root}:sr"))
    with pytest.raises(UserError, match=r"text_tuning\.model=.*/none: nothing is there"):
        list_sources(load(finished, f"text_tuning.model={root}/none"))


def test_the_image_model_has_to_take_every_bucket(finished: Run) -> None:
    buckets, deep = ("pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=4"), f"text_tuning.model={finished.root}:deep"
    assert list_sources(load(finished, *buckets)) and list_sources(load(finished, deep))
    with pytest.raises(UserError, match=r"4:3 is 16x12 .*text_tuning\.model=.*:deep needs multiples of 8; set .* of 8"):
        list_sources(load(finished, *buckets, deep))
    odd = ("text_tuning.resolution=20", "pack.resolutions=[16, 20, 64, 256]")
    with pytest.raises(UserError, match=r"text_tuning\.resolution=20: .* needs multiples of 8; name the resolution"):
        list_sources(load(finished, deep, *odd))


def test_a_resolution_that_is_not_packed_is_refused(finished: Run) -> None:
    with pytest.raises(UserError, match=r"text_tuning needs 32; add it"):
        load(finished, "text_tuning.resolution=32")


def test_ranks_get_the_pack_the_encoder_and_the_image_model(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def train(ctx: Any, function: Any, arguments: dict[str, Any], config: Any, seed: int) -> None:
        given.update(arguments, steps=config.steps)
        Path(ctx.path("export")).mkdir(parents=True)
        Path(ctx.path("export/learned_tokens.safetensors")).write_bytes(b"")

    run = Run(str(tmp_path))
    (folder := Path(run.stage_folder("pack", "p" * 20))).mkdir(parents=True)
    write_pack(folder / "00000.parquet", 0, 8)
    artifact = commit_stage(run, "pack", "p" * 20)
    artifact.manifest.counters["validation"] = 1
    monkeypatch.setattr(Artifact, "files", lambda self: [self.path("00000.parquet")])
    monkeypatch.setattr(text_tuning, "train_on_cluster", train)
    inputs = {"pack": artifact, "encoder": finished.artifacts()["encoder"]}
    ctx = make_context(tmp_path, "text_tuning", inputs)
    changes = ("text_tuning.tokens={yellow: red}", "embed.max_length=40", "pack.captions={caption: 3, short: 1}")
    ctx.config = text_tuning.list_instances(load(finished, *changes))["text_tuning"]
    text_tuning.run(ctx)
    assert given["text"] == {
        "encoder": encoder_location(inputs["encoder"]),
        "max_length": 40,
        "pad": False,
        "lowercase": False,
    }
    assert given["stage"] == finished.artifacts()["train.base"].path("export") and given["validate"]
    assert set(map(str, given["mix"].captions.values())) == {"{'caption': 3.0, 'short': 1.0}"}
    assert not storage.exists(given["index"])
    tuned = commit_stage(run, "text_tuning", "f" * 20)
    assert encoder_location(tuned) == tuned.path("export") == locate_model(run.root, "encoder", "encoder.model")
    found = find_encoder(run.artifacts())
    assert found is not None and found.folder == tuned.folder
    (choice,) = find_adapters([f"{run.root}:0.5"])
    assert (choice.path, choice.weight, choice.stage) == (tuned.path("export/learned_tokens.safetensors"), 1, "encoder")


def test_words_that_no_caption_has_are_refused(tmp_path: Path) -> None:
    pack = [write_pack(tmp_path / f"{start}.parquet", start, start + 8) for start in (0, 8)]
    check_words(["yellow", "正方形"], pack)
    check_words(["blue"], pack, lowercase=True)
    for word in ("ellow", "Blue"):
        with pytest.raises(UserError, match=rf"no kept caption has the word '{word}', so nothing would be learned"):
            check_words(["blue", word], pack)
