"""Stage `subject`: a folder for DreamBooth: a subject's few images, and the model's own images of its class.

Ruiz et al. 2022 (arXiv 2208.12242): trained on the subject alone, a model forgets the rest of the class; its own images
of the class, sampled before training, keep it (prior preservation, 3.3). The subject's images are repeated until they
are `share` of all: every image has the same loss, and the paper's lambda is (1 - share) / share.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io import storage
from dataprep.io.config import Config
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.listing.text_decoding import DecodingError, decode_text
from eval.sampling.prompts import clean_prompt
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always
from pipeline.stages.trained_cascade import build_cascade, find_cascade, list_cascade_files
from pipeline.store.artifact import Shard

if TYPE_CHECKING:
    from eval.sampling.config import CascadeConfig
    from pipeline.config import RunConfig

DRAWN = "drawn"  # value of `images` for a subject that is drawn here
DRAWN_SIZE = 256
FOLDER = "images"
MOST = 50  # images of a subject; for more, no repetition is needed


class SubjectConfig(Config):
    """A subject to learn from a few images (DreamBooth)."""

    images: str = Field(DRAWN, description=f"folder with 3 to 8 images of it; {DRAWN}: five drawn ones, to try it out")
    prompt: str = Field(description="caption of each image without a .txt beside it: a rare word, and the class")
    class_prompts: tuple[str, ...] = Field(
        (), strict=False, description="prompts of other members of the class, from which the model makes images to keep"
    )
    class_images: int = Field(96, ge=0, description="images of the class, over all its prompts; 0: it may be forgotten")
    model: str | None = Field(
        None, description="run or exported folder that makes them: what `init` of the stages names"
    )
    share: float = Field(0.5, gt=0, lt=1, description="share of training images that show the subject")

    @model_validator(mode="after")
    def _check_class(self) -> SubjectConfig:
        if self.class_images and not (self.class_prompts and self.model):
            raise ValueError(
                f"class_images={self.class_images} are made from class_prompts by model; set both, or class_images to 0"
            )
        for prompt in (self.prompt, *self.class_prompts):
            clean_prompt(prompt, "subject:")
        return self


class SubjectStageConfig(StageConfig):
    """What the stage sees of the config."""

    subject: SubjectConfig
    seed: int


def list_instances(config: RunConfig) -> dict[str, StageConfig]:
    """Returns the stage where the config has a subject."""
    return {"subject": SubjectStageConfig.from_run(config)} if config.subject is not None else {}


def list_sources(config: RunConfig) -> list[str]:
    """Returns the subject's files and those of the model that makes the class images, checked."""
    subject = config.subject
    assert subject is not None
    files = [] if subject.images == DRAWN else _list_subject_files(subject.images)
    for path in files:
        if path.endswith(".txt"):
            _read_caption(path)
    if subject.class_images:
        files += list_cascade_files(find_cascade(str(subject.model), "subject.model"))
    return files


def _list_subject_files(folder: str) -> list[str]:
    """Returns the images, and the captions beside them; UserError for none, or more than a subject has."""
    names = storage.list_files(folder) if storage.exists(folder) else []
    images = [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not 1 <= len(images) <= MOST:
        found = f"{len(images)} images" if names else "no such folder, or an empty one"
        raise UserError(
            f"subject.images={folder}: {found}; give a folder of 3 to 8 images, or take listing.source: folder for a "
            "larger set"
        )
    stems = {name.rpartition(".")[0] for name in images}
    captions = [name for name in names if name.endswith(".txt") and name.removesuffix(".txt") in stems]
    return [storage.join(folder, name) for name in sorted([*images, *captions])]


class ClassImageWorker:
    """Samples images of the class: a shard is a prompt."""

    def __init__(self, cascade: CascadeConfig, prompts: Sequence[str], each: int, seed: int) -> None:
        from pipeline.runtime.device import worker_device

        self.cascade = build_cascade(cascade, worker_device())
        self.prompts, self.each, self.seed = prompts, each, seed

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file: prompt, and the image as PNG."""
        import pyarrow as pa

        from dataprep.io.parquet import write_table
        from eval.sampling.options import SamplingOptions

        prompt = self.prompts[task.id]
        images = self.cascade.sample([prompt], SamplingOptions(num=self.each, seed=self.seed)).images
        files = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            files.append(buffer.getvalue())
        write_table(pa.table({"prompt": [prompt] * len(files), "png": files}), task.output_table(), "columns")
        return {"class_images": len(files)}


def run(ctx: Context[SubjectStageConfig, StageInputs]) -> None:
    """Writes the folder: the class, then the subject as often as its share asks."""
    subject = ctx.config.subject
    count = _write_class(ctx) if subject.class_images else 0
    shown = _read_subject(subject)
    repeats = max(1, round(count * subject.share / (1 - subject.share) / len(shown)))
    for repeat in range(repeats):
        for number, (data, extension, caption) in enumerate(shown):
            name = f"subject-{repeat:04d}-{number:02d}"
            storage.write_bytes(ctx.path(FOLDER, f"{name}.{extension}"), data)
            storage.write_bytes(ctx.path(FOLDER, f"{name}.txt"), caption.encode())
    ctx.counters |= {"subject_images": len(shown), "repeats": repeats, "rows": count + repeats * len(shown)}


def _write_class(ctx: Context[SubjectStageConfig, StageInputs]) -> int:
    """Samples the class images and writes them with their captions; returns their number."""
    from dataprep.io.parquet import read_table

    subject = ctx.config.subject
    prompts = [clean_prompt(prompt) for prompt in subject.class_prompts]
    each = math.ceil(subject.class_images / len(prompts))
    cascade = find_cascade(str(subject.model), "subject.model")
    arguments = {"cascade": cascade, "prompts": prompts, "each": each, "seed": ctx.config.seed}
    ctx.map_shards(ClassImageWorker, arguments, [Shard(number, {}) for number in range(len(prompts))], on_gpu=True)
    for number in sorted(marker.id for marker in ctx.finished):
        rows = read_table(ctx.path(shard_name(number, "parquet")), "columns").to_pylist()
        for index, row in enumerate(rows):
            name = f"class-{number:02d}-{index:04d}"
            storage.write_bytes(ctx.path(FOLDER, f"{name}.png"), row["png"])
            storage.write_bytes(ctx.path(FOLDER, f"{name}.txt"), row["prompt"].encode())
    return ctx.counters["class_images"]


def _read_subject(subject: SubjectConfig) -> list[tuple[bytes, str, str]]:
    """Returns bytes, extension and caption of each image of the subject."""
    if subject.images == DRAWN:
        return [(data, "png", subject.prompt) for data in _draw_subject()]
    files = _list_subject_files(subject.images)
    captions = {path.removesuffix(".txt"): path for path in files if path.endswith(".txt")}
    found = []
    for path in (path for path in files if not path.endswith(".txt")):
        stem, _, extension = path.rpartition(".")
        caption = _read_caption(captions[stem]) if stem in captions else subject.prompt
        found.append((storage.read_bytes(path), extension, caption))
    return found


def _read_caption(path: str) -> str:
    """Returns a caption, decoded as the listing does; raises UserError where its encoding cannot be told."""
    try:
        return decode_text(storage.read_bytes(path))[0].strip()
    except DecodingError as error:
        raise UserError(f"subject.images: caption {path} is {error}; save it as UTF-8") from error


def _draw_subject() -> list[bytes]:
    from PIL import Image

    from dataprep.synthetic.subject import SUBJECT_IMAGES, draw_subject

    files = []
    for number in range(SUBJECT_IMAGES):
        buffer = io.BytesIO()
        Image.fromarray(draw_subject(number, DRAWN_SIZE)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


STAGE = StageType(
    name="subject",
    run=run,
    config=SubjectStageConfig,
    inputs=StageInputs,
    placement=always(Placement.MODELS),
    instances=list_instances,
    sources=list_sources,
)
