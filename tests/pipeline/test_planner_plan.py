"""`imagen-ray plan`: whole plans, what is wrong told in one line, and no Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dataprep import storage
from dataprep.embed import EmbedConfig, write_embeddings
from dataprep.pack import PackConfig, write_pack
from dataprep.schema import UserError
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.planner.answers import answers
from pipeline.planner.faults import simulate_plan
from pipeline.planner.options import cheapest, fastest_box
from pipeline.planner.plan import Plan, Wanted, make_plan, to_json
from pipeline.planner.rates import assumed_rates, measure_rates, plain_bytes
from pipeline.planner.table import SHIPPED, Assumptions, Table, load_table
from pipeline.planner.units import count, money, size, years
from pipeline.store import Manifest, Run, describe, now

ROOT = Path(__file__).resolve().parents[2]
SMOKE, IMAGEN = str(ROOT / "configs" / "smoke.yaml"), str(ROOT / "configs" / "imagen.yaml")


def table(*names: str, **assumptions: float) -> Table:
    shipped = load_table()
    machines = {name: shipped.machines[name] for name in names}
    return Table(machines=machines, assumptions=Assumptions(**assumptions))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The smoke config on an H100 and a server without GPUs."""
    return make_plan(load_config(SMOKE), table("1xH100", "cpu-96"), Wanted())


def test_the_command_prints_json_and_tables_and_starts_no_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    from pipeline import cluster

    def refuse(config: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "connect", refuse)
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"machines": to_json(plan)["machines"]}))
    told = []
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as caught:
            main(["plan", SMOKE, "--machines", str(path), *options])
        assert caught.value.code == 0
        told.append(capsys.readouterr().out)
    assert json.loads(told[1])["stages"] == to_json(plan)["stages"]
    for heading in ("Networks", "Memory a rank", "Storage", "Training on each machine", "With failures", "Assumptions"):
        assert heading in told[0]
    assert all(name in told[0] for name in Assumptions.model_fields)


def test_every_stage_has_hours_and_money_and_its_machine(plan: Plan) -> None:
    names = [cost.stage for cost in plan.costs]
    data = ["download", "annotate", "encoder", "clip", "score", "select", "pack", "embed"]
    assert names == [*data, "train.base", "train.sr32", "train.sr64", "sample"]
    assert all(cost.hours > 0 and cost.dollars >= 0 for cost in plan.costs)
    on = {cost.stage: cost.machine for cost in plan.costs}
    assert (on["download"], on["embed"], on["train.base"]) == ("cpu-96", "1xH100", "1xH100")
    for cost in plan.costs:
        machine = plan.table.machines[cost.machine]
        assert cost.dollars == pytest.approx(cost.hours * cost.nodes * machine.price)


def test_json_holds_what_is_printed(plan: Plan) -> None:
    told = json.loads(json.dumps(to_json(plan)))
    assert [model["stage"] for model in told["models"]] == ["train.base", "train.sr32", "train.sr64"]
    assert {item["zero"] for item in told["models"][0]["memory"]} == {0, 1, 2, 3}
    assert told["training_flops"] == pytest.approx(
        sum(3 * model["forward_flops_a_sample"] * model["samples"] for model in told["models"])
    )
    codecs = {item["name"] for item in told["storage"] if item["name"].startswith("embed")}
    assert codecs == {f"embed: {codec}, {how}" for codec in ("float16", "int8") for how in ("none", "zstd")}
    assert told["stored_bytes"] == pytest.approx(sum(v["bytes"] for v in told["storage"] if v["chosen"]))
    assert told["assumptions"] == plan.assumptions.model_dump()


def test_answers_name_the_cheapest_and_the_quickest(plan: Plan) -> None:
    lines = list(answers(plan))
    quick, box = cheapest(plan.choices), fastest_box(plan.choices)
    assert quick is not None
    assert box is not None
    assert quick.dollars <= min(choice.fewest.dollars for choice in plan.choices if choice.fewest)
    assert box.hours <= min(choice.fewest.hours for choice in plan.choices if choice.fewest)
    assert any(line.startswith("Cheapest") for line in lines)


def test_failures_only_lengthen_it_and_the_seed_decides(plan: Plan) -> None:
    simulated = simulate_plan(plan, 3)
    assert simulated == simulate_plan(plan, 3)
    assert simulated is not None
    assert simulated.worst >= simulated.mean >= simulated.quiet * 0.999
    stages = {cost.stage: cost.hours for cost in plan.costs}
    alone = sum(stages[name] for name in ("train.base", "train.sr32", "train.sr64"))
    assert simulated.quiet >= alone


@pytest.mark.slow
def test_the_papers_scale_has_the_papers_parameters() -> None:
    made = make_plan(load_config(IMAGEN), table("8xH100", "cpu-96"), Wanted(machine="8xH100", nodes=8))
    sizes = {model.name: model.parameters for model in made.models}
    assert sizes["base"] == pytest.approx(2e9, rel=0.1)
    assert sizes["sr256"] == pytest.approx(6e8, rel=0.1)
    assert sizes["sr1024"] == pytest.approx(4e8, rel=0.1)
    assert all(model.samples == pytest.approx(5.1e9, rel=0.01) for model in made.models)
    assert made.rates.pairs == pytest.approx(860e6, rel=0.01)
    assert made.chosen is not None
    gpu_seconds = made.chosen.hours * 3600 * 64
    recomputed = 4 / 3  # at most
    assert made.flops <= gpu_seconds * 989e12 * 0.30 <= made.flops * recomputed * 1.25


def test_a_list_that_is_here_is_counted(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.table({"url": ["a"] * 150, "caption": ["b"] * 150}), tmp_path / f"{number}.parquet")
    overrides = ["listing.source=table", f"listing.path={tmp_path}/*.parquet"]
    rates = assumed_rates(load_config(SMOKE, overrides), Assumptions())
    assert (rates.urls, rates.origin["urls"]) == (300, "counted in 2 files")
    limited = assumed_rates(load_config(SMOKE, [*overrides, "listing.limit=100"]), Assumptions())
    assert limited.urls == 100
    away = assumed_rates(load_config(SMOKE, ["listing.source=table", "listing.path=s3://b/*.parquet"]), Assumptions())
    assert (away.urls, away.origin["urls"]) == (Assumptions().urls, "assumed")
    assert assumed_rates(load_config(SMOKE), Assumptions(), 5).urls == 5


def finished(run: Run, stage: str, files: list[str], counters: dict[str, int]) -> None:
    """Commits a stage whose files are in its folder."""
    folder = run.stage_folder(stage, "f" * 16)
    outputs = [describe(folder, name) for name in files]
    run.commit(Manifest(stage, "f" * 16, {}, {}, outputs, counters, 1.0, {}))


def test_a_trial_says_shares_and_sizes(tmp_path: Path) -> None:
    run, rows, width = Run(str(tmp_path / "run")), 64, 16
    config = load_config(SMOKE)
    for stage in ("download", "pack", "embed"):
        Path(run.stage_folder(stage, "f" * 16)).mkdir(parents=True)
    (Path(run.stage_folder("download", "f" * 16)) / "00000.tar").write_bytes(b"x" * 80_000)
    finished(run, "download", ["00000.tar"], {"rows": 100, "success": 80})
    finished(run, "select", [], {"rows": 100, "kept": rows})
    pack = PackConfig(resolutions=(16,))
    pixels = [np.zeros(768, np.uint8).tobytes()] * rows
    columns = {"key": [f"{n:09d}" for n in range(rows)], "caption": ["c"] * rows, "split": ["train"] * rows}
    packed = Path(run.stage_folder("pack", "f" * 16)) / "00000.parquet"
    write_pack(pa.table(columns | {"pixels_16": pixels}), packed, pack)
    finished(run, "pack", ["00000.parquet"], {"rows": rows, "validation": 0})
    lengths = [5 + n % 3 for n in range(rows)]
    random = np.random.default_rng(0)
    values = [random.integers(0, 255, length * width * 2, dtype=np.uint8).tobytes() for length in lengths]
    embeddings = pa.table(
        {
            "key": columns["key"],
            "caption": columns["caption"],
            "length": pa.array(lengths, pa.int32()),
            "dim": pa.array([width] * rows, pa.int32()),
            "codec": ["float16"] * rows,
            "embedding": values,
            "scale": pa.array([None] * rows, pa.binary()),
        }
    )
    path = Path(run.stage_folder("embed", "f" * 16)) / "00000.parquet"
    write_embeddings(embeddings, path, EmbedConfig(compression="none"), [rows])
    finished(run, "embed", ["00000.parquet"], {"captions": rows, "tokens": sum(lengths)})
    states = {name: {"fingerprint": "f" * 16, "state": "done"} for name in ("download", "select", "pack", "embed")}
    storage.write_json(run.path("run.json"), {"started": now(), "stages": states})

    rates = measure_rates(assumed_rates(config, Assumptions()), run.root)
    assert (rates.success, rates.keep, rates.padded) == (0.8, rows / 80, 7)
    assert rates.tokens == sum(lengths) / rows
    assert rates.download_bytes == 1000
    assert rates.pixel_bytes[16] == pytest.approx(768, rel=0.05)
    assert rates.pixel_bytes[64] == 3 * 64 * 64  # the trial has no such column: as the config has it
    assert rates.embed_share == Assumptions().zstd_share  # not compressed: says nothing of zstd
    whole = rates.embedding_bytes(width, "float16", False) * rows
    assert whole == pytest.approx(path.stat().st_size, rel=0.05)
    assert rates.origin["keep"].startswith("measured in")


def test_plain_bytes_of_the_codecs() -> None:
    assert plain_bytes(20, 4096, "float16") == 20 * 4096 * 2
    assert plain_bytes(20, 4096, "int8") == 20 * (4096 + 4)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert (caught.value.code, len(lines)) == (2, 1), printed.err
    return lines[0]


WRONG_TABLES = {
    "no such file": (None, ["no such file", "calibrate"]),
    "not YAML": ("machines: [", ["not valid YAML"]),
    "a list": ("- 1", ["mapping"]),
    "an unknown section": ("machine: {}", ["machine", "machines and assumptions"]),
    "an unknown key": ("machines: {a: {gpu: 1}}", ["machines.a"]),
    "a wrong type": ("assumptions: {urls: many}", ["assumptions.urls", "many"]),
    "out of range": ("assumptions: {keep_share: 2.0}", ["keep_share", "2.0"]),
    "machines that are none": ("machines: {a: 3}", ["machines.a"]),
}


@pytest.mark.parametrize("what", WRONG_TABLES)
def test_wrong_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    content, words = WRONG_TABLES[what]
    path = tmp_path / "machines.yaml"
    if content is not None:
        path.write_text(content)
    line = fails(capsys, "plan", SMOKE, "--machines", str(path))
    assert all(word in line for word in words), line


def test_wrong_machines_and_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "8xH100" in fails(capsys, "plan", SMOKE, "--machine", "8xH1000")
    assert "run.json" in fails(capsys, "plan", SMOKE, "--measured", str(tmp_path))
    assert "stepz" in fails(capsys, "plan", SMOKE, "train.base.stepz=3")
    line = fails(capsys, "plan", SMOKE, "--machine", "1xH100", "--nodes", "3")
    assert "--nodes 3" in line
    assert "multiple" in line


def test_a_users_table_replaces_machines_and_some_assumptions(tmp_path: Path) -> None:
    entry = yaml.safe_load(SHIPPED.read_text())["machines"]["1xL4"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"machines": {"mine": entry}, "assumptions": {"keep_share": 0.25}}))
    loaded = load_table(str(path))
    assert list(loaded.machines) == ["mine"]
    assert loaded.assumptions == Assumptions(keep_share=0.25)
    with pytest.raises(UserError, match="valid keys"):
        path.write_text(yaml.safe_dump({"assumptions": {"keep": 0.25}}))
        load_table(str(path))


def test_figures_are_short() -> None:
    assert (count(862_500_000), size(1.13e15), money(1234.5), money(0.5)) == ("862M", "1.13 PB", "$1,234", "$0.50")
    assert (years(0.5), years(30), years(100), years(50_000)) == ("30.0 min", "30.0 h", "4.2 days", "5.7 years")
    assert years(math.inf) == "never"
