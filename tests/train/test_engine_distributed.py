"""Real DeepSpeed on two gloo ranks: every ZeRO stage gives the same run, and checkpoints move between sizes."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from dataprep.io.storage import read_json
from tests.helpers.toys import rows, run, two_ranks

CASES = [
    ("zero0", [None], {"zero_stage": 0}),
    ("zero1", [None], {"zero_stage": 1}),
    ("zero2", [None], {"zero_stage": 2, "accumulation": 2}),
    ("zero3", [None], {"zero_stage": 3}),
    ("resumed", [16, None], {"zero_stage": 2, "accumulation": 2}),
    ("resumed3", [8, 16, None], {"zero_stage": 3}),  # 33 biases do not divide evenly among two ranks
    ("crossed", [16], {"zero_stage": 1}),
    ("crossed", [None], {"zero_stage": 3}),
    ("stopped", [16], {"zero_stage": 2}),
    ("pairs", [None], {"zero_stage": 2, "pairs": True}),
    ("prior0", [None], {"zero_stage": 0, "prior": True}),
    ("prior2", [None], {"zero_stage": 2, "prior": True}),
    ("prior3", [None], {"zero_stage": 3, "prior": True}),
    ("prior3_resumed", [8, 16, None], {"zero_stage": 3, "prior": True}),
    ("bf16", [None], {"zero_stage": 2, "precision": "bf16"}),
    ("bf16_resumed", [8, None], {"zero_stage": 2, "precision": "bf16"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs every case on two ranks, and ``alone`` on one rank without ZeRO."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks, (port, str(folder), CASES), nprocs=2)
    run(folder / "alone")
    return folder


def assert_same(ours: Path, theirs: Path, rel: float) -> None:
    """Logs and exported EMA weights agree."""
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        assert one["step"] == other["step"]
        for name in {"loss", "grad_norm", "size", "accuracy", "cosine"} & set(other):
            assert one[name] == pytest.approx(other[name], rel=rel), (one, other)
    one, other = (load_file(path / "export/weights.safetensors") for path in (ours, theirs))
    assert set(one) == set(other)
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=max(rel, 1e-5), atol=max(rel, 1e-6))


@pytest.mark.parametrize("case", ["zero0", "zero1", "zero2", "zero3"])
def test_every_stage_on_two_ranks_equals_one_rank(folder: Path, case: str) -> None:
    assert_same(folder / case, folder / "alone", 1e-5)


def test_contrastive_loss_and_gradients_span_the_ranks(folder: Path) -> None:
    run(folder / "pairs_alone", pairs=True)
    assert_same(folder / "pairs", folder / "pairs_alone", 1e-4)


@pytest.mark.parametrize("case", ["prior0", "prior2", "prior3"])
def test_a_prior_is_the_same_under_every_stage(folder: Path, case: str) -> None:
    if not (folder / "prior_alone").exists():
        run(folder / "prior_alone", prior=True)
    assert_same(folder / case, folder / "prior_alone", 1e-4)


def test_bf16_is_close_to_fp32(folder: Path) -> None:
    assert_same(folder / "bf16", folder / "alone", 2e-2)


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [("resumed", "zero2"), ("resumed3", "zero3"), ("prior3_resumed", "prior3"), ("bf16_resumed", "bf16")],
)
def test_resume_on_two_ranks_is_exact(folder: Path, resumed: str, whole: str) -> None:
    assert rows(folder / resumed) == rows(folder / whole)
    one, other = (load_file(folder / name / "export/weights.safetensors") for name in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_zero_3_resumes_zero_1(folder: Path) -> None:
    assert_same(folder / "crossed", folder / "alone", 1e-5)


def test_ema_is_correct_on_two_ranks(folder: Path) -> None:
    errors = read_json(str(folder / "ema_errors.json"))
    assert set(errors) == {"0", "1", "2", "3"} and max(errors.values()) <= 1e-6


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_another_world_size_and_stage_resume(folder: Path, tmp_path: Path, stage: int) -> None:
    shutil.copytree(folder / "stopped", tmp_path / "run")
    result = run(tmp_path / "run", zero_stage=stage)
    assert result is not None and result["resumed_from"] == 12
    assert_same(tmp_path / "run", folder / "alone", 1e-5)


def test_shares_are_split_between_the_ranks(folder: Path) -> None:
    checkpoint = folder / "zero3/checkpoints/step-00000020"
    shares = [set(load_file(checkpoint / f"rank-0000{rank}.safetensors")) for rank in (0, 1)]
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 4 * 4  # four parameters, each with weight, two moments and EMA


def test_ranks_share_the_reading_of_a_checkpoint(folder: Path) -> None:
    """Each file is read by one rank, once; so two ranks on two nodes are two halves of a download."""
    assert_same(folder / "counted", folder / "alone", 1e-5)
    read = [read_json(str(folder / f"read-{rank}.json")) for rank in (0, 1)]
    # The checkpoint of step 12 is gone by now; the sizes do not change.
    files = {path.name: path.stat().st_size for path in (folder / "counted/checkpoints/step-00000020").iterdir()}
    for name in ("rank-00000.safetensors", "rank-00001.safetensors"):
        assert sorted(part.get(name, 0) for part in read) == [0, files[name]]
    assert all(any(part.get(name, 0) for name in files if name.startswith("rank-")) for part in read)
