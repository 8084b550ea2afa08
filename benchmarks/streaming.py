"""Data stages with and without `cluster.stream`: wall time, and how busy the workers were. Two cases.

    python -m benchmarks.streaming [--cases network demo] [--rows 960] [--rate 15] [--scenes 6000] [--rounds 1]
        [--processes 2]

"network", a download-bound list: a server on loopback sends at most ``rate`` images per second to all connections
together, as a slow network would: JPEGs of 512x384, each URL another query. At more images per second than the CPUs can
score, scoring is what a run waits for, and streaming saves less. The command is

    imagen-ray run configs/your_urls.yaml listing.path=list.parquet cluster.cpus=PROCESSES cluster.stream=true
        --until score

with listing, download (to 256 pixels), annotate and score by open_clip's ViT-S-32-alt with random weights, which do not
affect the cost.

"demo", a corpus that is rendered and served on the same CPUs, so that no stage waits for a network:

    imagen-ray run configs/demo.yaml listing.scenes.count=SCENES cluster.cpus=PROCESSES cluster.stream=true
        --until embed

with the training of its text encoder and its CLIP, which nothing streams into.

Sides take turns, each round in the other order. Both must write the same bytes, but for the times in logs of training.

What is counted: wall seconds of the command, start-up included; for each stage the share of the time from the first
shard to the last in which at least one of its workers had a shard, and in which at least two stages did, by looking at
the names of the processes ten times a second; the share of the network's rate that was used in that time; and the
CPU-seconds of all processes of the command per CPU.

On a busy machine all of it says less: a row has the load average at its start. The result is written if all options are
left at their defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.image_server import start_server
from benchmarks.process_tree import run_measured
from benchmarks.result import make_claim, write_result

ROOT = Path(__file__).parents[1]
FILES, SHARDS = 100, 24  # of the network case
STAGES = ("download", "annotate", "score", "pack", "embed")
TIMED = ("log.jsonl", "training.json", "tensorboard/")  # outputs of a training that tell how long it took
MODEL = "ViT-S-32-alt"
LOOK = 0.1  # seconds between two looks at the processes
SPEED_UP = {"network": 1.2, "demo": 1.0}  # targets
TOGETHER = 0.5  # target of the network case


# ---------------------------------------------------------------------------------------------- models and commands


def save_models(folder: Path) -> list[str]:
    """Saves the CLIP and a tiny T5; returns the words of the config that name them."""
    import torch
    from tokenizers import Tokenizer, models

    from dataprep.io.model_imports import declare_torchvision_operators

    declare_torchvision_operators()
    import open_clip
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), folder / "clip.pt")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=3, decoder_start_token_id=0, **sizes)).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    return [
        *("encoder.pretrain=null", f"encoder.model={folder}/t5"),
        *("clip.train=null", f"clip.model={MODEL}", f"clip.pretrained={folder}/clip.pt"),
    ]


class BusySampler:
    """Looks every tenth of a second which stages' workers have a shard: Ray names their processes so."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, frozenset[str]]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> BusySampler:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.stop.wait(LOOK):
            titles = []
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    titles.append(" ".join(process.cmdline()))
            parts = [title.removeprefix("ray::").partition(": shard ") for title in titles]
            busy = frozenset(stage for stage, _, shard in parts if shard and stage in STAGES)
            self.seen.append((time.monotonic(), busy))

    def measure_shares(self) -> dict[str, float]:
        """Returns the seconds from the first shard to the last, and the shares of them in which stages were busy."""
        at = [index for index, (_, busy) in enumerate(self.seen) if busy]
        seen = self.seen[at[0] : at[-1] + 1]
        shares = {f"{stage}_busy": sum(stage in busy for _, busy in seen) / len(seen) for stage in STAGES}
        shares["two_stages_busy"] = sum(len(busy) > 1 for _, busy in seen) / len(seen)
        return {"shards_seconds": round(seen[-1][0] - seen[0][0], 2)} | {k: round(v, 3) for k, v in shares.items()}


def hash_outputs(run: Path) -> dict[str, list[Any]]:
    """Returns fingerprint and output hashes of every stage, without those of files that tell times."""
    manifests = {path.parts[-3]: json.loads(path.read_text()) for path in run.glob("stages/*/*/manifest.json")}
    return {
        name: [one["fingerprint"], *(o["sha256"] for o in one["outputs"] if not o["path"].startswith(TIMED))]
        for name, one in manifests.items()
    }


@dataclass(frozen=True)
class Case:
    """A command without its `run` and `cluster`: ``words`` from the config on, the work in ``rows``.

    ``rate`` is the network's in images per second, None where there is none.
    """

    name: str
    words: list[str]
    rows: int
    rate: float | None


@contextmanager
def prepare_network(options: argparse.Namespace) -> Iterator[Case]:
    """Saves the models, serves the images and writes the list, until the context ends."""
    with tempfile.TemporaryDirectory(prefix="streaming-bench-") as name:
        models, images, listed = Path(name, "models"), Path(name, "images"), Path(name, "list.parquet")
        models.mkdir()
        images.mkdir()
        words = save_models(models)
        with start_server(images, ["small"], FILES, options.rate) as (_, port):
            urls = [f"http://127.0.0.1:{port}/small/{index % FILES}?{index}" for index in range(options.rows)]
            pq.write_table(pa.table({"url": urls, "caption": ["an image of a thing"] * options.rows}), listed)
            words = [f"{ROOT}/configs/your_urls.yaml", f"listing.path={listed}", *words, "--until", "score"]
            words += [f"listing.rows_per_shard={-(-options.rows // SHARDS)}"]
            yield Case("network", words, options.rows, options.rate)


@contextmanager
def prepare_demo(options: argparse.Namespace) -> Iterator[Case]:
    """Prepares nothing: the demo brings its corpus."""
    words = [f"{ROOT}/configs/demo.yaml", f"listing.scenes.count={options.scenes}", "--until", "embed"]
    yield Case("demo", words, options.scenes, None)


CASES = {"network": prepare_network, "demo": prepare_demo}


def measure_side(case: Case, stream: bool, processes: int) -> dict[str, Any]:
    """Runs the command once; returns what it took, and what it wrote under ``outputs``."""
    with tempfile.TemporaryDirectory(prefix="streaming-bench-") as name:
        folder = Path(name)
        words = [sys.executable, "-m", "pipeline", "run", *case.words, f"run={folder}/run"]
        words += [f"cluster.cpus={processes}", f"cluster.stream={stream}"]
        load = os.getloadavg()[0]
        env = os.environ | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
        with BusySampler() as sampler:
            done = run_measured(words, folder, env)
        assert done.returncode == 0, done.output[-3000:]
        shares = sampler.measure_shares()
        outputs = hash_outputs(folder / "run")
    row = {
        "case": case.name,
        "stream": stream,
        "rows": case.rows,
        "processes": processes,
        "seconds": round(done.seconds, 2),
        **shares,
        "cpu_seconds": round(done.cpu_seconds, 2),
        "cpu_busy": round(done.cpu_seconds / done.seconds / processes, 3),
        "peak_mib": round(done.peak_mib, 1),
        "load_before": round(load, 2),
    }
    if case.rate is not None:
        used = case.rows / case.rate / shares["shards_seconds"]
        row |= {"rate": case.rate, "network_used": round(used, 3)}
    return row | {"outputs": outputs}


def compare_sides(case: Case, rounds: int, processes: int) -> list[dict[str, Any]]:
    """Runs both sides of a case in turn, ``rounds`` times; prints and returns rows, without streaming first."""
    rows: list[dict[str, Any]] = []
    for turn in range(rounds):
        pair = []
        for stream in (False, True) if turn % 2 == 0 else (True, False):
            pair.append({"round": turn} | measure_side(case, stream, processes))
            print({key: value for key, value in pair[-1].items() if key != "outputs"}, flush=True)
        assert pair[0].pop("outputs") == pair[1].pop("outputs"), "the sides do not write the same bytes"
        rows += sorted(pair, key=lambda row: bool(row["stream"]))
    return rows


def make_claims(case: Case, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims about a case from its rows."""
    off, on = ([row for row in rows if row["stream"] is stream] for stream in (False, True))
    ratio = median(one["seconds"] / other["seconds"] for one, other in zip(off, on, strict=True))
    speed = "" if case.rate is None else f" at {case.rate:g} per second"
    text = f"{case.name}: wall seconds without over with streaming, {case.rows} images{speed}, "
    text += f"{rows[0]['processes']} processes, median of {len(on)} rounds"
    claims = [make_claim(text, ratio, "x", SPEED_UP[case.name])]
    if case.rate is not None:
        busy = [median(row["two_stages_busy"] for row in side) for side in (off, on)]
        text = f"{case.name}: share of the time that two stages were busy at once; without streaming {busy[0]}"
        claims.append(make_claim(text, busy[1], "", TOGETHER))
    return claims


def main() -> None:
    """Parses the command line, runs the cases, prints all, and writes the result of a run at the defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--rows", type=int, default=960)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for name in options.cases:
        with CASES[name](options) as case:
            measured = compare_sides(case, options.rounds, options.processes)
        rows += measured
        claims += make_claims(case, measured)
    if options == parser.parse_args([]):
        write_result("streaming", rows, claims, ("ray", "torch", "open_clip_torch", "aiohttp"))
    else:
        print("not written: these options are not the defaults;", *claims, sep="\n")


if __name__ == "__main__":
    main()
