"""``imagen-ray evaluate``: the metrics, the page and the JSON of a run for any folder of images or any model.

OUT/metrics.json, OUT/report.html    as a run has them
OUT/images/                          of a model: its samples, which another call with the same options reuses
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from dataprep.images.resize import resize_square
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.outputs import check_output_folder
from dataprep.io.wording import count_of
from eval.judging.evaluation import Evaluation, FolderSamples, ImageSource, evaluate_folder, read_image_file
from eval.judging.image_folder import MatchedFolder, list_images, match_folder, match_metadata
from eval.metrics.audit import AuditConfig
from eval.metrics.config import SUBSAMPLE, FeaturesConfig, MemorisationConfig
from eval.metrics.feature_models import ClipIdentity, check_feature_models, digest_weights, find_clip_resolution
from eval.metrics.feature_sets import REFERENCE_SET, VALIDATION_SET
from eval.metrics.image_sets import check_judges, judge_sample
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.registry import JUDGES, find_protocol
from eval.metrics.samples_table import JudgedSample
from eval.sampling.batch_folder import sample_folder
from eval.sampling.options import SamplingOptions
from eval.sampling.prompt_files import draw_prompts, read_prompt_file, read_protocol
from eval.sampling.prompts import EvalPrompt
from pipeline.execution.record import read_git_commit
from pipeline.inference.run_audit import RunAudit, read_run_audit
from pipeline.inference.subject import (
    Subject,
    SubjectKind,
    find_subject,
    load_model,
    open_folder_images,
    open_run_images,
)
from pipeline.report.build import REPORT
from pipeline.report.evaluation_page import build_evaluation_page, describe_title
from pipeline.report.sections.memorisation import encode_pixels
from pipeline.report.sections.samples import MAX_EVALUATED
from pipeline.store.run import RUN_FILE, Run, current_time
from pipeline.terminal import console, progress

METRICS, IMAGES, FEATURES = "metrics.json", "images", ".features"
DEFAULT_CLIP = "ViT-B-32:openai"
SHOWN_SIDE = 256  # pixels of an image on the page
VERSIONS = ("torch", "open_clip_torch", "transformers", "diffusers")
OPTIONS = {"evaluate.features.": "--features ", "evaluate.features": "--features", "evaluate.judges: ": "--judge "}


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What ``imagen-ray evaluate`` is asked for; see the help of its options."""

    path: str
    out: Path
    prompts: str | None = None
    reference: str | None = None
    training: str | None = None
    audit: str | None = None
    clip: str | None = None
    features: Sequence[str] = ()
    judges: Sequence[str] = ()
    limit: int | None = None
    size: int | None = None
    threshold: float | None = None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    device: str = "cpu"
    dtype: str = "float32"
    command: str = ""


def evaluate_path(request: EvaluateRequest) -> dict[str, Any]:
    """Writes metrics.json and report.html to ``request.out``; returns the content of metrics.json.

    Raises UserError, before any model is loaded, for what is missing, and for models that cannot be loaded.
    """
    check_output_folder(request.out)
    subject, started = find_subject(request.path), current_time()
    prompts = _read_prompts(request)
    with _name_options():
        audit = read_run_audit(request.audit) if request.audit is not None else None
        how = _plan(request, subject, audit)
    if subject.kind is SubjectKind.IMAGES:
        matched = match_folder(Path(request.path), request.prompts)
        if request.limit is not None:
            matched = _limit(matched, prompts, request.limit, request.options.seed)
    else:
        matched = _sample(subject, prompts, request)
    needs = _name_missing_judge(request)
    for note in (*matched.notes, *needs):
        console.print(f"note: {note}", markup=False)
    try:
        with _name_options(), progress("evaluate", len(matched.images), "images") as update:
            metrics, samples = evaluate_folder(matched, how, update)
    finally:
        shutil.rmtree(how.features_folder, ignore_errors=True)
    metrics["evaluated"] = {
        "what": subject.kind.value,
        "path": request.path,
        "size": samples.side,
        "prompts": f"prompts {matched.how}" if matched.prompted else matched.how,
        "images": len(matched.images),
        "notes": [*matched.notes, *needs],
    }
    record = {"started": started, "seed": request.options.seed, "git_commit": read_git_commit()}
    record |= {"command": request.command, "versions": _read_versions()}
    page = _build_page(request, record, metrics, samples, how, audit.found if audit else None)
    storage.write_bytes(str(request.out / REPORT), page.encode())
    storage.write_json(str(request.out / METRICS), metrics)
    if metrics.get("memorisation", {}).get("warning"):
        console.print(f"warning: {metrics['memorisation']['warning']}", markup=False)
    return metrics


@contextmanager
def _name_options() -> Iterator[None]:
    """Names options of the command line in errors, in place of keys of a run's config."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for key, option in OPTIONS.items():
            text = text.replace(key, option)
        raise UserError(text.replace("clip.model", "--clip").replace("clip.pretrained", "--clip")) from error


# ---------------------------------------------------------------------------------------------- what to judge by


def _read_prompts(request: EvaluateRequest) -> list[EvalPrompt]:
    """Returns the distinct prompts, at most ``request.limit``; none without a file."""
    if request.prompts is None:
        return []
    if request.limit is not None:
        return read_protocol(request.prompts, request.limit, request.options.seed)
    return read_prompt_file(request.prompts).prompts


def _plan(request: EvaluateRequest, subject: Subject, audit: RunAudit | None) -> Evaluation:
    named = [FeaturesConfig.model_validate(parse_model(text)) for text in request.features]
    features = named or [FeaturesConfig()]
    check_feature_models(features)
    judges = [_parse_judge(text, request.prompts) for text in request.judges]
    if twice := next((judge.key for judge in judges if [item.key for item in judges].count(judge.key) > 1), None):
        raise UserError(f"--judge {twice}: given twice; leave one out")
    check_judges(judges)
    of_audit = audit.clip if audit is not None and audit.config.needs_clip else None
    own = parse_model(request.clip) if request.clip else subject.clip or of_audit
    clip = own or parse_model(DEFAULT_CLIP)
    _check_clip(clip, own is None)
    training = _open(request.training, "--training", "train", REFERENCE_SET) if request.training else None
    held_out = None
    if request.training and _is_run(request.training):
        held_out = open_run_images(Run(request.training), "validation", VALIDATION_SET)
    memorisation = MemorisationConfig()
    if request.threshold is not None:
        memorisation = memorisation.model_copy(update={"threshold": request.threshold})
    return Evaluation(
        clip=clip,
        identity=_identify(clip),
        features=features,
        judges=judges,
        reference=_open_reference(request, subject),
        training=training,
        held_out=held_out,
        memorisation=memorisation,
        audit=audit.config if audit is not None else AuditConfig(),
        size=request.size,
        subsample=SUBSAMPLE,
        device=request.device,
        features_folder=request.out / FEATURES,
    )


def _identify(clip: Mapping[str, str | None]) -> ClipIdentity:
    model = str(clip["model"])
    return ClipIdentity(model, digest_weights(model, clip["pretrained"]), find_clip_resolution(model))


def parse_model(text: str) -> dict[str, str | None]:
    """Returns model and pretrained of ``NAME:WEIGHTS``, a folder, or a name of open_clip that has its own weights."""
    if Path(text).exists() or text.startswith(("hf-hub:", "local-dir:")) or ":" not in text:
        return {"model": text, "pretrained": None}
    name, _, weights = text.partition(":")
    return {"model": name, "pretrained": weights}


def _parse_judge(text: str, prompts: str | None) -> JudgeConfig:
    kind, equals, model = text.partition("=")
    if not equals or not model:
        raise UserError(f"--judge {text}: give KIND=PATH, such as pickscore=/models/PickScore_v1")
    if kind not in JUDGES:
        raise UserError(f"--judge {kind}: is unknown; take one of {', '.join(JUDGES)}")
    architecture = None
    if not Path(model).exists() and "@" in model:
        model, _, architecture = model.rpartition("@")
    protocol = prompts if JUDGES[kind].protocol_name else None
    return JudgeConfig(kind=kind, model=model, architecture=architecture, protocol=protocol)


def _check_clip(clip: Mapping[str, str | None], is_default: bool) -> None:
    from eval.clip.scorer import check_spec

    try:
        check_spec(str(clip["model"]), clip["pretrained"])
    except UserError as error:
        hint = " (the default; --clip names another, or a folder)" if is_default else ""
        raise UserError(f"{error}{hint}") from error


def _open_reference(request: EvaluateRequest, subject: Subject) -> ImageSource | None:
    if request.reference is not None:
        return _open(request.reference, "--reference", "validation", REFERENCE_SET)
    if subject.kind is SubjectKind.RUN:
        return open_run_images(Run(request.path), "validation", VALIDATION_SET)
    return None


def _open(path: str, option: str, split: str, set_name: str) -> ImageSource:
    return open_run_images(Run(path), split, set_name) if _is_run(path) else open_folder_images(path, option)


def _is_run(path: str) -> bool:
    return storage.exists(storage.join(path, RUN_FILE))


def _name_missing_judge(request: EvaluateRequest) -> list[str]:
    """Says what the protocol of the prompt file needs, if it is that of a benchmark and its judge is not named."""
    kind = find_protocol(request.prompts) if request.prompts else None
    if kind is None or any(text.startswith(f"{kind}=") for text in request.judges):
        return []
    judge = JUDGES[kind]
    return [
        f"{request.prompts} is the prompt file of {judge.protocol_name}, whose score needs --judge {kind}=PATH: "
        f"{judge.needs}"
    ]


# ---------------------------------------------------------------------------------------------- images


def _sample(subject: Subject, prompts: Sequence[EvalPrompt], request: EvaluateRequest) -> MatchedFolder:
    """Samples the prompts from the model of ``subject`` into OUT/images, where they are not there yet."""
    if not prompts:
        raise UserError("--prompts is missing; name a file of prompts, one per line, for the model to sample")
    model = load_model(subject, request.device, request.dtype)
    folder = request.out / IMAGES
    with progress("sample", len(prompts), "prompts") as update:
        for done in sample_folder(model, [prompt.prompt for prompt in prompts], folder, request.options):
            update(done)
    matched = match_metadata(folder, list_images(folder), prompts, request.prompts)
    return replace(matched, how=f"of {request.prompts}, {count_of(request.options.num, 'image')} each")


def _limit(matched: MatchedFolder, prompts: Sequence[EvalPrompt], limit: int, seed: int) -> MatchedFolder:
    """Returns the images of ``prompts``; without any, those of ``limit`` of the images' own prompts, or names."""
    wanted = prompts or draw_prompts(list(dict.fromkeys(item.prompt for item in matched.images)), limit, seed)
    texts = {prompt.prompt for prompt in wanted}
    kept = [item for item in matched.images if item.prompt.prompt in texts]
    if not kept:
        raise UserError(
            f"--limit {limit}: no image shows one of the prompts drawn by --seed {seed}; give a higher limit, or leave "
            "it out"
        )
    return replace(
        matched, images=kept, notes=[*matched.notes, f"--limit: {len(kept)} of {len(matched.images)} images"]
    )


# ---------------------------------------------------------------------------------------------- page


def _build_page(
    request: EvaluateRequest,
    record: Mapping[str, Any],
    metrics: Mapping[str, Any],
    samples: FolderSamples,
    how: Evaluation,
    data_audit: Mapping[str, Any] | None,
) -> str:
    first = {(key[0], key[1]): path for key, path in samples.files.items() if key[2] == 0}

    def find_sample(pair: Mapping[str, Any]) -> str | None:
        path = first.get((pair["prompt"], pair["seed"]))
        return encode_pixels(resize_square(read_image_file(path), samples.side)) if path else None

    def find_training(pair: Mapping[str, Any]) -> str | None:
        image = how.training.find(pair["training"], samples.side) if how.training else None
        return None if image is None else encode_pixels(image)

    shown = islice((sample for sample in samples.samples if sample.chosen), MAX_EVALUATED)
    images = (_read_shown(sample, samples.files[sample.key]) for sample in shown)
    title = describe_title(request.path)
    return build_evaluation_page(title, record, metrics, images, find_sample, find_training, data_audit)


def _read_shown(sample: JudgedSample, path: Path) -> JudgedSample:
    """Returns a sample with its image, at most `SHOWN_SIDE` pixels wide and high."""
    image = Image.fromarray(read_image_file(path))
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    prompt = EvalPrompt(sample.prompt, sample.split, sample.language, None)
    return replace(sample, png=judge_sample(image, prompt, sample.clip_score).png)


def _read_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError

    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
