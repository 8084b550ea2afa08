"""The config for public lists: it stands as it is over a small list, and a rule that the list cannot serve is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.errors import UserError
from pipeline.cli.main import main
from pipeline.config_loading import load_config
from pipeline.stages.listing import list_sources
from tests.helpers.paths import ROOT

LAION = str(ROOT / "configs" / "laion.yaml")
COLUMNS = {"URL": ["http://a.example/1.jpg"], "TEXT": ["a red bicycle"], "WIDTH": [800], "HEIGHT": [600]}
SCORES = {"similarity": [0.3], "punsafe": [0.1], "pwatermark": [0.1], "aesthetic": [6.0], "NSFW": ["UNLIKELY"]}


def small_list(folder: Path, *left_out: str) -> str:
    columns = {name: values for name, values in (COLUMNS | SCORES).items() if name not in left_out}
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return str(folder / "part.parquet")


def test_a_dry_run_over_a_small_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", LAION, f"listing.path={small_list(tmp_path)}", f"run={tmp_path / 'run'}", "--dry-run"])
    assert caught.value.code in (0, None)
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in ("listing", "select", "train.sr1024"))


@pytest.mark.parametrize(
    ("column", "overrides", "words"),
    [
        ("similarity", [], ["select.similarity=listed_similarity_b32", "set select.similarity=score"]),
        ("pwatermark", [], ["select.watermark_below", "score.heads.watermark"]),
        ("NSFW", [], ["select.drop_nsfw_labels"]),
        (None, ["select.near_duplicate_cosine=0.96", "score.embeddings=false"], ["set score.embeddings=true"]),
        (None, ["select.recipe=datacomp-clip-top30", "select.similarity=listed_similarity_l14"], ["similarity_l14"]),
    ],
)
def test_a_column_that_the_list_lacks_is_named_before_any_work(
    column: str | None, overrides: list[str], words: list[str], tmp_path: Path
) -> None:
    path = small_list(tmp_path, *([column] if column else []))
    config = load_config(LAION, [f"listing.path={path}", *overrides])
    with pytest.raises(UserError) as caught:
        list_sources(config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_a_stage_will_make_counts_as_there(tmp_path: Path) -> None:
    head = "score.heads.watermark={path: w.pt}"
    config = load_config(LAION, [f"listing.path={small_list(tmp_path, 'pwatermark')}", head])
    assert list_sources(config) == [str(tmp_path / "part.parquet")]


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="select: recipe 'sd-v2' is not known; did you mean sd-v1"):
        load_config(LAION, ["select.recipe=sd-v2"])
