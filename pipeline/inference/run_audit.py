"""The audit of a run's training data, to compare samples with: what was looked for, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.annotate_config import AnnotateConfig
from dataprep.images.faces import find_model_files
from dataprep.images.text_area import find_text_model_files
from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.clip.config import ScoreConfig
from pipeline.report.data_card_files import FACTS
from pipeline.stages.clip import read_clip_spec
from pipeline.store.run import RUN_FILE, Run

if TYPE_CHECKING:
    from eval.metrics.audit import AuditConfig


@dataclass(frozen=True, kw_only=True)
class RunAudit:
    """What a run looked for in its images, by which CLIP, and the audit of its data card."""

    config: AuditConfig
    clip: dict[str, str | None]
    found: Mapping[str, Any]


def read_run_audit(path: str) -> RunAudit:
    """Reads the audit of the run at ``path``.

    Raises UserError for a path that is no run, a run without a card, and a missing file of a detector or head.
    """
    from eval.metrics.audit import AuditConfig

    if not storage.exists(storage.join(path, RUN_FILE)):
        raise UserError(f"--audit {path}: not a run; name the run whose training data samples are compared with")
    artifacts = Run(path).artifacts()
    if missing := next((name for name in ("annotate", "clip", "score", "card") if name not in artifacts), None):
        raise UserError(f"--audit {path}: stage {missing} is not finished; complete it with `imagen-ray run` first")
    annotate = AnnotateConfig.model_validate(artifacts["annotate"].manifest.config["annotate"], strict=False)
    score = ScoreConfig.model_validate(artifacts["score"].manifest.config["score"], strict=False)
    if annotate.faces:
        find_model_files(annotate.faces)
    if annotate.text:
        find_text_model_files(annotate.text)
    if score.heads:
        from eval.clip.heads import find_head_files

        find_head_files(score.heads)
    facts = storage.read_json(artifacts["card"].path(FACTS))
    config = AuditConfig(faces=annotate.faces, text=annotate.text, score=score)
    spec = read_clip_spec(artifacts["clip"])
    clip = {"model": spec["model"], "pretrained": spec["pretrained"]}
    return RunAudit(config=config, clip=clip, found=facts.get("audit") or {})
