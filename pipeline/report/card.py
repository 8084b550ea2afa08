"""The data card of a run: gathered from the artifacts of its data stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from dataprep import storage
from dataprep.card import CardConfig, Counts, card_text, count_shard, facts
from pipeline.store import Artifact, Run

CARD, FACTS = "datacard.md", "datacard.json"
ALIGNED = ("download", "annotate", "select")  # the stages whose rows are counted


def card_files(inputs: Mapping[str, Artifact], config: CardConfig | Mapping[str, Any]) -> dict[str, str]:
    """The card's files by name: Markdown, and the same facts as JSON."""
    config = config if isinstance(config, CardConfig) else CardConfig.model_validate(config)
    counts = Counts()
    tables = [{shard.id: shard.files["parquet"] for shard in inputs[stage].shards} for stage in ALIGNED]
    for shard in sorted(set.intersection(*(set(table) for table in tables))):
        with ExitStack() as stack:
            download, annotations, selection = (stack.enter_context(storage.local_copy(t[shard])) for t in tables)
            count_shard(download, annotations, selection, counts)
    told = facts(counts, inputs["listing"].manifest.config["listing"], config)
    funnel = storage.read_json(inputs["select"].path("funnel.json"))
    artifacts = [_describe(artifact) for artifact in inputs.values()]
    whole = told | {"funnel": funnel, "artifacts": artifacts}
    return {
        CARD: card_text(told, funnel, artifacts),
        FACTS: json.dumps(whole, indent=2, ensure_ascii=False) + "\n",
    }


def publish_card(run: Run) -> None:
    """Copies the card of the newest data to where people look for it; nothing where there is none yet."""
    if card := run.artifacts().get("card"):
        storage.write_bytes(run.path(CARD), storage.read_bytes(card.path(CARD)))


def _describe(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    lines = sorted((output.path, f"{output.sha256}  {output.path}\n") for output in manifest.outputs)
    return {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.outputs),
        "bytes": sum(output.bytes for output in manifest.outputs),
        "sha256": hashlib.sha256("".join(line for _, line in lines).encode()).hexdigest(),
    }
