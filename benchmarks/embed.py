"""Our embed stage beside two plain scripts: one pads every caption to 256 tokens, one to the longest of its batch.

    python -m benchmarks.embed

The captions are drawn: `benchmarks.captions` says how. The encoder is a T5 v1.1 with random weights (2 layers, 256
wide, gated GELU), since speed does not depend on what it has learned, in float32, on one thread. Each side has the same
captions in the same order; the plain scripts have batches of 64 captions and the same fused attention. The sides take
turns, each pass in a process of its own, and the median of the CPU-seconds is kept. Tokens are those of the captions as
given, repeats included and padding not, so all sides are asked for the same number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.apart import apart, cpu_seconds, peak_mb
from benchmarks.captions import captions
from benchmarks.result import claim, write
from dataprep.codec import STORED, dequantise, quantise
from dataprep.embed import EmbedConfig, embed_shard
from dataprep.schema import read_table, write_table
from dataprep.text import TextEncoder
from dataprep.torchvision_operators import declare_torchvision_operators

CAPTIONS, ROUNDS, BATCH, LONGEST, VOCABULARY = 256, 3, 64, 256, 2000
SIDES = ("padded to 256", "padded to the longest", "ours")


def save_model(folder: Path) -> None:
    """A T5 v1.1 with random weights and a tokenizer of whole words."""
    declare_torchvision_operators()
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 2, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=VOCABULARY + 3, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(folder)
    words = ["<pad>", "</s>", "<unk>", *[f"w{number}" for number in range(VOCABULARY)]]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@torch.inference_mode()
def plain(encoder: TextEncoder, texts: list[str], padding: str) -> Iterator[np.ndarray]:
    """A plain script: batches in the order given, padded; yields each caption's tokens, float32 (L, D)."""
    for start in range(0, len(texts), BATCH):
        batch = encoder.tokenizer(
            texts[start : start + BATCH], padding=padding, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        states = encoder.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        for state, mask in zip(states, batch["attention_mask"], strict=True):
            yield state[mask.bool()].numpy()


def measure(side: str, folder: Path) -> dict[str, float]:
    """One pass of one side, in this process; it leaves its embeddings in ``folder``."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    texts = read_table(folder / "pack.parquet", "pack", ["caption"])["caption"].to_pylist()
    cpu, memory = cpu_seconds(), peak_mb()
    if side == "ours":
        embed_shard(folder / "pack.parquet", folder / "ours.parquet", encoder, EmbedConfig())
    else:
        padding = "max_length" if side == SIDES[0] else "longest"
        found = list(plain(encoder, texts, padding))
        np.save(folder / f"{padding}.npy", np.concatenate(found))
    return {"cpu_s": cpu_seconds() - cpu, "grown_mb": peak_mb() - memory}


def cosines(one_TD: np.ndarray, other_TD: np.ndarray) -> np.ndarray:
    """Cosine of each pair of tokens (T,)."""
    sizes_T = np.linalg.norm(one_TD, axis=1) * np.linalg.norm(other_TD, axis=1)
    return (one_TD.astype(np.float64) * other_TD).sum(1) / sizes_T


def compare(folder: Path) -> dict[str, float]:
    """How far our embeddings are from the plain script's: by computing, and by storing."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    texts = read_table(folder / "pack.parquet", "pack", ["caption"])["caption"].to_pylist()
    ours_TD, plain_TD = np.concatenate(encoder.encode(texts)), np.load(folder / "longest.npy")
    found = {"computed": float(cosines(ours_TD, plain_TD).min())}
    for codec in STORED:
        found[codec] = float(cosines(dequantise(*quantise(ours_TD, codec)), ours_TD).min())
    return found


def sizes(folder: Path, tokens: int, dim: int) -> list[dict[str, Any]]:
    """Bytes a caption in every form; ours are files, whole, with keys and captions."""
    encoder = TextEncoder.from_folder(str(folder / "encoder"), max_length=LONGEST)
    rows: list[dict[str, Any]] = [
        {"form": "padded float32", "bytes_a_caption": LONGEST * dim * 4},
        {"form": "padded float16", "bytes_a_caption": LONGEST * dim * 2},
        {"form": "float32 at true length", "bytes_a_caption": round(tokens * dim * 4 / CAPTIONS)},
    ]
    for codec in STORED:
        for compression in ("none", "zstd"):
            path = folder / "size.parquet"
            embed_shard(folder / "pack.parquet", path, encoder, EmbedConfig(codec=codec, compression=compression))
            size = round(path.stat().st_size / CAPTIONS)
            rows.append({"form": f"ours, {codec}, {compression}", "bytes_a_caption": size})
    return rows


def main() -> None:
    """Makes captions and model, lets the sides take turns, and prints and keeps the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        folder = Path(scratch)
        apart(save_model, folder / "encoder")
        texts = captions(CAPTIONS, VOCABULARY, np.random.default_rng(0))
        keys = [f"{number:09d}" for number in range(CAPTIONS)]
        write_table(pa.table({"key": keys, "caption": texts}), folder / "pack.parquet", "pack")
        passes: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                passes[side].append(apart(measure, side, folder))
        lengths = [min(LONGEST, len(text.split()) + 1) for text in texts]
        off, forms = apart(compare, folder), apart(sizes, folder, sum(lengths), 256)
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        cpu = median(one["cpu_s"] for one in passes[side])
        row = {"side": side, "tokens_a_cpu_second": round(sum(lengths) / cpu), "cpu_s": round(cpu, 2)}
        rows.append(row | {name: round(median(one[name] for one in passes[side])) for name in ("grown_mb",)})
    lengths_row = {"captions": CAPTIONS, "distinct": len(set(texts)), "tokens": sum(lengths)}
    lengths_row |= {f"length_p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99, 100)}
    rate = {row["side"]: row["tokens_a_cpu_second"] for row in rows}
    size = {form["form"]: form["bytes_a_caption"] for form in forms}
    claims = [
        claim("tokens a CPU-second over padding to 256", rate["ours"] / rate[SIDES[0]], "times", 3.0),
        claim(
            "tokens a CPU-second over padding to the longest of the batch", rate["ours"] / rate[SIDES[1]], "times", 1.0
        ),
        claim("least cosine of a token, ours and the plain script's", off["computed"], "cosine", 0.9999),
        claim("least cosine of a token stored as float16", off["float16"], "cosine", 0.9999),
        claim("least cosine of a token stored as int8", off["int8"], "cosine", 0.999),
        claim(
            "bytes of int8 over float16, files",
            size["ours, int8, none"] / size["ours, float16, none"],
            "times",
            0.55,
            True,
        ),
    ]
    for row in [lengths_row, *rows, *forms]:
        print(row)
    write("embed", [lengths_row, *rows, *forms], claims, ("torch", "transformers", "pyarrow", "numpy"))


if __name__ == "__main__":
    main()
