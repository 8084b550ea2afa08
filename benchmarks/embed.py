"""Embedding a shard, against two plain scripts: one pads every caption to 256 tokens, one to the longest of its batch.

    python -m benchmarks.embed

Captions are synthetic, see `benchmarks.captions`. The encoder is a T5 v1.1 with random weights (2 layers, width 256,
gated GELU), since speed does not depend on the weights, in float32, on one thread. Each side gets the same captions in
the same order; the plain scripts use batches of 64 captions and the same fused attention. The sides take turns, each
pass in its own process; the median of the CPU-seconds is reported. Tokens are counted over the captions as given, with
repeats and without padding, so the count is the same for all sides.

What is counted: CPU-seconds of the process, from captions to a file. Ours is the function that the workers of the stage
`embed` call for each shard (`dataprep.text.embed.embed_shard`), from a Parquet pack to a Parquet file of int8; the
scripts write a NumPy file of float32. Not counted on any side: imports and loading the model, which are the same, and
Ray. So these are ratios of the work per shard, not of commands: with few captions, start-up weighs more than any of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from benchmarks.captions import make_captions
from benchmarks.forked import measure_cpu_seconds, measure_peak_mb, run_forked
from benchmarks.result import make_claim, write_result
from dataprep.io.model_imports import declare_torchvision_operators
from dataprep.io.parquet import read_table, write_table
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import embed_shard
from dataprep.text.embedding_codec import dequantise, quantise
from dataprep.text.encoder import TextEncoder

CAPTIONS, ROUNDS, BATCH, LONGEST, VOCABULARY = 256, 3, 64, 256, 2000
CODECS: tuple[Literal["float16", "int8"], ...] = ("float16", "int8")
COMPRESSIONS: tuple[Literal["none", "zstd"], ...] = ("none", "zstd")
SIDES = ("padded to 256", "padded to the longest", "ours")


def save_model(folder: Path) -> None:
    """Saves a T5 v1.1 with random weights and a word-level tokenizer."""
    declare_torchvision_operators()
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=VOCABULARY + 3, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def build_tokenizer() -> Any:
    """Returns a word-level tokenizer of the words of `make_captions`, with T5's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *[f"w{number}" for number in range(VOCABULARY)]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@torch.inference_mode()
def encode_plainly(encoder: TextEncoder, texts: list[str], padding: str) -> Iterator[np.ndarray]:
    """Encodes padded batches in the given order; yields each caption's token states, float32 (L, D)."""
    for start in range(0, len(texts), BATCH):
        batch = encoder.tokenizer(
            texts[start : start + BATCH], padding=padding, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        states = encoder.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        for state, mask in zip(states, batch["attention_mask"], strict=True):
            yield state[mask.bool()].numpy()


def measure_side(side: str, folder: Path) -> dict[str, float]:
    """Runs one pass of one side in this process; writes its embeddings into ``folder``."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    texts = read_table(folder / "pack.parquet", "pack", ["caption"])["caption"].to_pylist()
    cpu, memory = measure_cpu_seconds(), measure_peak_mb()
    if side == "ours":
        embed_shard(folder / "pack.parquet", folder / "ours.parquet", encoder, EmbedConfig())
    else:
        padding = "max_length" if side == SIDES[0] else "longest"
        found = list(encode_plainly(encoder, texts, padding))
        np.save(folder / f"{padding}.npy", np.concatenate(found))
    return {"cpu_s": measure_cpu_seconds() - cpu, "grown_mb": measure_peak_mb() - memory}


def compute_cosines(one_TD: np.ndarray, other_TD: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair of tokens, float64 (T,)."""
    sizes_T = np.linalg.norm(one_TD, axis=1) * np.linalg.norm(other_TD, axis=1)
    return (one_TD.astype(np.float64) * other_TD).sum(1) / sizes_T


def measure_cosines(folder: Path) -> dict[str, float]:
    """Returns the smallest cosine of a token: between ours and the plain script's ("computed"), and per codec."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    texts = read_table(folder / "pack.parquet", "pack", ["caption"])["caption"].to_pylist()
    ours_TD, plain_TD = np.concatenate(encoder.encode(texts)), np.load(folder / "longest.npy")
    found = {"computed": float(compute_cosines(ours_TD, plain_TD).min())}
    for codec in CODECS:
        found[codec] = float(compute_cosines(dequantise(*quantise(ours_TD, codec)), ours_TD).min())
    return found


def measure_sizes(folder: Path, tokens: int, dim: int) -> list[dict[str, Any]]:
    """Returns the bytes per caption of every format; ours are whole files, with keys and captions."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    rows: list[dict[str, Any]] = [
        {"format": "padded float32", "bytes_per_caption": LONGEST * dim * 4},
        {"format": "padded float16", "bytes_per_caption": LONGEST * dim * 2},
        {"format": "float32 at true length", "bytes_per_caption": round(tokens * dim * 4 / CAPTIONS)},
    ]
    for codec in CODECS:
        for compression in COMPRESSIONS:
            path = folder / "size.parquet"
            embed_shard(folder / "pack.parquet", path, encoder, EmbedConfig(codec=codec, compression=compression))
            size = round(path.stat().st_size / CAPTIONS)
            rows.append({"format": f"ours, {codec}, {compression}", "bytes_per_caption": size})
    return rows


def main() -> None:
    """Makes captions and model, runs the sides in turns, prints and writes the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        folder = Path(scratch)
        run_forked(save_model, folder / "encoder")
        texts = make_captions(CAPTIONS, VOCABULARY, np.random.default_rng(0))
        keys = [f"{number:09d}" for number in range(CAPTIONS)]
        write_table(
            pa.table({"key": keys, "caption": texts, "captions": [[text] for text in texts]}),
            folder / "pack.parquet",
            "pack",
        )
        passes: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                passes[side].append(run_forked(measure_side, side, folder))
        lengths = [min(LONGEST, len(text.split()) + 1) for text in texts]
        cosines, forms = run_forked(measure_cosines, folder), run_forked(measure_sizes, folder, sum(lengths), 256)
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        cpu = median(one["cpu_s"] for one in passes[side])
        row = {"side": side, "tokens_per_cpu_second": round(sum(lengths) / cpu), "cpu_s": round(cpu, 2)}
        rows.append(row | {name: round(median(one[name] for one in passes[side])) for name in ("grown_mb",)})
    lengths_row = {"captions": CAPTIONS, "distinct": len(set(texts)), "tokens": sum(lengths)}
    lengths_row |= {f"length_p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99, 100)}
    rate = {row["side"]: row["tokens_per_cpu_second"] for row in rows}
    size = {form["format"]: form["bytes_per_caption"] for form in forms}
    claims = [
        make_claim("tokens per CPU-second over padding to 256", rate["ours"] / rate[SIDES[0]], "times", 3.0),
        make_claim(
            "tokens per CPU-second over padding to the batch's longest",
            rate["ours"] / rate[SIDES[1]],
            "times",
            1.0,
        ),
        make_claim("smallest cosine of a token, ours and the plain script's", cosines["computed"], "cosine", 0.9999),
        make_claim("smallest cosine of a token stored as float16", cosines["float16"], "cosine", 0.9999),
        make_claim("smallest cosine of a token stored as int8", cosines["int8"], "cosine", 0.999),
        make_claim(
            "bytes of int8 over float16, files",
            size["ours, int8, none"] / size["ours, float16, none"],
            "times",
            0.55,
            True,
        ),
    ]
    for row in [lengths_row, *rows, *forms]:
        print(row)
    write_result("embed", [lengths_row, *rows, *forms], claims, ("torch", "transformers", "pyarrow", "numpy"))


if __name__ == "__main__":
    main()
