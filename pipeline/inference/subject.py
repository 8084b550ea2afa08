"""What ``imagen-ray evaluate`` can judge: a folder of images, a run, an exported cascade, a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.keys import split_key
from eval.sampling.config import CASCADE_FILE, CascadeConfig
from pipeline.inference.sample import run_cascade
from pipeline.stages.image_features import read_packed_images
from pipeline.stages.reference_images import make_reference_shards
from pipeline.store.artifact import Shard
from pipeline.store.run import RUN_FILE, Run

if TYPE_CHECKING:
    import numpy as np

    from eval.judging.evaluation import ImageSource
    from eval.metrics.image_sets import NamedImage
    from eval.sampling.batch_folder import ImageModel


class SubjectKind(Enum):
    """What lies at a path, in words."""

    IMAGES = "folder of images"
    RUN = "run"
    EXPORT = "exported cascade"
    DIFFUSERS = "diffusers pipeline"


@dataclass(frozen=True)
class Subject:
    """What is evaluated. ``cascade`` is that of a run or an export."""

    kind: SubjectKind
    path: str
    cascade: CascadeConfig | None = None

    @property
    def clip(self) -> dict[str, str | None] | None:
        """The CLIP that comes with a cascade; None without one."""
        if self.cascade is None or self.cascade.clip is None:
            return None
        return {"model": self.cascade.clip, "pretrained": self.cascade.clip_pretrained}


def find_subject(path: str) -> Subject:
    """Returns what lies at ``path``; raises UserError for nothing that can be judged."""
    if storage.exists(storage.join(path, CASCADE_FILE)):
        from eval.sampling.config import read_cascade, resolve_paths

        folder = storage.local_folder(path)
        return Subject(SubjectKind.EXPORT, path, resolve_paths(read_cascade(folder), folder))
    if storage.exists(storage.join(path, RUN_FILE)):
        return Subject(SubjectKind.RUN, path, run_cascade(Run(path)))
    from eval.judging.diffusers_model import is_diffusers_folder

    if is_diffusers_folder(path):
        return Subject(SubjectKind.DIFFUSERS, path)
    if Path(path).is_dir():
        return Subject(SubjectKind.IMAGES, path)
    raise UserError(
        f"{path}: neither a folder of images nor a model; name a folder, a run, an exported cascade or a pipeline of "
        "diffusers"
    )


def load_model(subject: Subject, device: str, dtype: str) -> ImageModel:
    """Loads the model of a subject that is one."""
    if subject.kind is SubjectKind.DIFFUSERS:
        from eval.judging.diffusers_model import DiffusersModel

        return DiffusersModel.load(subject.path, device, dtype)
    from eval.sampling.cascade import Cascade

    assert subject.cascade is not None
    return Cascade.from_config(subject.cascade, device)


def open_run_images(run: Run, split: str, set_name: str) -> ImageSource:
    """Returns the packed images of a split of a run, with captions.

    They are read at the smallest resolution of the pack from the wanted size on, else at the largest. Raises UserError
    for a run without a pack.
    """
    from eval.judging.evaluation import ImageSource

    pack = run.artifacts().get("pack")
    if pack is None:
        raise UserError(f"{run.root}: stage pack is not finished; complete the run with `imagen-ray run` first")
    sides: Sequence[int] = sorted(pack.manifest.config["pack"]["resolutions"])

    def read(size: int, shards: Sequence[Shard] = pack.shards) -> Iterator[NamedImage]:
        from dataprep.images.resize import resize_square

        side = next((side for side in sides if side >= size), sides[-1])
        for shard in shards:
            with storage.local_copy(shard.files["parquet"]) as local:
                for name, image, caption in read_packed_images(local, side, split):
                    yield name, image if side == size else resize_square(image, size), caption

    def find(name: str, size: int) -> np.ndarray | None:
        shards = [shard for shard in pack.shards if shard.id == split_key(name)[0]]
        return next((image for key, image, _ in read(size, shards) if key == name), None)

    return ImageSource(name=f"{split} images of {run.root}", read=read, find=find, set_name=set_name, captioned=True)


def open_folder_images(folder: str, option: str) -> ImageSource:
    """Returns the images of a folder, or of its tars; UserError, naming ``option``, for neither."""
    from eval.judging.evaluation import ImageSource

    shards = make_reference_shards(folder, option)

    def read(size: int) -> Iterator[NamedImage]:
        from eval.metrics.image_sets import read_reference_images

        for shard in shards:
            yield from read_reference_images(shard.files, size)

    def find(name: str, size: int) -> np.ndarray | None:
        from eval.metrics.image_sets import read_reference_images

        files = {part: path for shard in shards for part, path in shard.files.items()}
        tar, _, _ = name.rpartition("/")
        wanted = {part: files[part] for part in (name, tar) if part in files}
        return next((image for found, image, _ in read_reference_images(wanted, size) if found == name), None)

    return ImageSource(name=folder, read=read, find=find)
