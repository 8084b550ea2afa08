"""Reference images from outside: a folder of images or of tars, as shards."""

from __future__ import annotations

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.store.artifact import Shard

IMAGES_PER_SHARD = 500


def find_reference_files(folder: str, option: str = "evaluate.reference") -> list[str]:
    """Returns the tars below ``folder``, or its images if there are none. Raises UserError for neither."""
    names = storage.list_files(folder) if storage.exists(folder) else []
    tars = [name for name in names if name.endswith(".tar")]
    found = tars or [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not found:
        raise UserError(f"{option}={folder}: no images and no tars there; name a folder that has them")
    return [storage.join(folder, name) for name in found]


def make_reference_shards(folder: str, option: str = "evaluate.reference") -> list[Shard]:
    """Returns the shards of the reference: one per tar, or per `IMAGES_PER_SHARD` images."""
    paths = find_reference_files(folder, option)
    each = 1 if paths[0].endswith(".tar") else IMAGES_PER_SHARD
    shards = []
    for number, start in enumerate(range(0, len(paths), each)):
        part = paths[start : start + each]
        files = {path[len(folder) :].lstrip("/"): path for path in part}
        shards.append(Shard(number, files, {name: storage.sha256_file(path)[0] for name, path in files.items()}))
    return shards
