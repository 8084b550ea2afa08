"""Which caption belongs to which image of a folder.

Names are compared as people mean them: upper and lower case, and the two ways of writing ``é`` in Unicode, are the same
unless two files differ in nothing else.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import unquote

from dataprep.images.formats import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.captions import Captions, find_caption, read_captions
from dataprep.listing.column_names import CAPTION_NAMES, FILE_NAMES
from dataprep.listing.columns import FILE_COLUMN, pick_column
from dataprep.listing.config import SourceConfig
from dataprep.listing.read_options import ReadOptions
from dataprep.listing.table_reader import read_batches, table_extension
from dataprep.listing.text_decoding import DecodingError, decode_text

CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # best first
# Folders that hold all images, or all captions, of what is otherwise one tree.
KIND_FOLDERS = frozenset(
    (
        *("images", "image", "imgs", "img", "photos", "pictures", "jpg", "jpeg", "png"),
        *("captions", "caption", "texts", "text", "txt", "labels", "prompts"),
    )
)
TABLE_STEMS = ("metadata", "captions", "labels")


class LostLine(NamedTuple):
    """A line of a captions table that no image belongs to: the file that it names, its captions, and why."""

    file: str
    captions: Captions
    problem: str


def normalise_name(name: str) -> str:
    """Returns a file name as it is compared."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def get_extension(name: str) -> str:
    """Returns the lower-case extension of a file name without its dot, empty if it has none."""
    return posixpath.splitext(name)[1].lower().lstrip(".")


def is_caption_table(name: str) -> bool:
    """Returns whether a file is a captions table by its name: metadata.jsonl, captions.csv and so on."""
    stem = posixpath.basename(name).lower().partition(".")[0]
    return stem in TABLE_STEMS and table_extension(name) is not None


class ImageIndex:
    """Finds images by the names that captions tables have for them."""

    def __init__(self, root: str, images: Sequence[str]) -> None:
        self.root = root
        self.exact = set(images)
        self.levels: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        for image in images:
            stem = posixpath.splitext(image)[0]
            keys = (image, stem, posixpath.basename(image), posixpath.basename(stem))
            for level, key in zip(self.levels, keys, strict=True):
                level.setdefault(normalise_name(key), []).append(image)

    def find(self, named: str, folder: str) -> tuple[str | None, str]:
        """Returns the image that a table in ``folder`` calls ``named``, or None and why there is none."""
        for name in dict.fromkeys((named, unquote(named))):
            path = self._clean(name)
            candidates = dict.fromkeys((posixpath.normpath(posixpath.join(folder, path)), posixpath.normpath(path)))
            for candidate in candidates:
                if candidate in self.exact:
                    return candidate, ""
            has_extension = get_extension(path) in (*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS)
            whole, stems, bases, base_stems = self.levels
            keys = [(whole, candidate) for candidate in candidates] + [(bases, posixpath.basename(path))]
            if not has_extension:
                keys += [(stems, candidate) for candidate in candidates] + [(base_stems, posixpath.basename(path))]
            for level, key in keys:
                found = level.get(normalise_name(key), [])
                if len(found) == 1:
                    return found[0], ""
                if found:
                    return None, f"the line may mean {found[0]} or {found[1]}; write the whole name"
        return None, "the folder has no such image"

    def _clean(self, name: str) -> str:
        """Returns a path as the file system writes it, relative to the folder of images if it names that."""
        path = name.strip().replace("\\", "/").removeprefix("file://")
        root = self.root.rstrip("/") + "/"
        return path.removeprefix(root).lstrip("/")


def read_caption_tables(
    config: SourceConfig, root: str, tables: Sequence[str], images: Sequence[str], options: ReadOptions
) -> tuple[dict[str, Captions], list[LostLine]]:
    """Reads the captions tables of a folder, which name images relative to themselves or to ``root``.

    Returns:
        {image: captions}, those of several lines together, and the lines without an image.
    """
    index = ImageIndex(root, images)
    captions: dict[str, Captions] = {}
    lost: list[LostLine] = []
    for table in tables:
        # Records of a table are counted by the rows that they make; several may belong to one image.
        quiet = replace(options, account=Account(log=options.account.log))
        try:
            lines = list(_read_lines(config, root, table, quiet))
        except UserError:
            if _is_certain(table):
                raise
            options.account.name("other_files", table)
            continue
        for named, found in lines:
            image, why = index.find(named, posixpath.dirname(table)) if named else (None, "no file is named")
            if image is None:
                lost.append(LostLine(named or table, found, f"{table}: {why}"))
            else:
                captions[image] = _add_captions(captions.get(image), found)
        options.account.counts.update(quiet.account.counts)
        for kind, shown in quiet.account.named.items():
            options.account.named.setdefault(kind, []).extend(shown)
    return captions, lost


def _is_certain(table: str) -> bool:
    """Returns whether a file of this name can only be a captions table: labels.txt may be anything."""
    stem = posixpath.basename(table).lower().partition(".")[0]
    return stem != "labels" and table_extension(table) not in (".txt", ".json")


def _read_lines(config: SourceConfig, root: str, table: str, options: ReadOptions) -> Iterator[tuple[str, Captions]]:
    """Yields the file that each line of a captions table names, empty if it names none, and its captions."""
    extension = ".csv" if table_extension(table) == ".txt" else None
    for batch in read_batches(storage.join(root, table), options, extension):
        names = batch.table.column_names
        file_column = pick_column(table, names, None, FILE_NAMES, FILE_COLUMN)
        others = [name for name in names if name != file_column]
        column = pick_column(table, others, config.caption_column, CAPTION_NAMES, "caption_column")
        values: Sequence[Any] = batch.values.get(column) or batch.table[column].to_pylist()
        for named, value in zip(batch.table[file_column].to_pylist(), values, strict=True):
            yield str(named) if named else "", read_captions(value)


def _add_captions(before: Captions | None, more: Captions) -> Captions:
    if before is None:
        return more
    return Captions(list(dict.fromkeys(before.texts + more.texts)), before.problem or more.problem)


def _drop_folder(stem: str) -> str:
    """Returns a path without a folder that says only what is in it, marked as such, or the path itself."""
    parts = stem.split("/")
    for place, part in enumerate(parts[:-1]):
        if part.lower() in KIND_FOLDERS:
            return "/".join([*parts[:place], *parts[place + 1 :], ""])
    return stem + "/"


class CaptionFiles:
    """The caption files of a folder: ``cat.txt``, ``cat.caption``, ``cat.json`` or ``cat.jpg.txt`` of ``cat.jpg``.

    They are beside it, or in a folder called captions, texts and the like where the image is in images.
    """

    def __init__(
        self, root: str, names: Sequence[str], images: Sequence[str], encoding: str | None, account: Account
    ) -> None:
        self.root, self.encoding, self.account = root, encoding, account
        stems = {posixpath.splitext(image)[0] for image in images}
        self.images_of = Counter(normalise_name(_drop_folder(stem)) for stem in stems)
        self.by_stem: dict[str, list[str]] = {}
        for name in names:
            stem = posixpath.splitext(name)[0]
            for key in dict.fromkeys((stem, _drop_folder(stem))):
                self.by_stem.setdefault(normalise_name(key), []).append(name)
        self.matched: set[str] = set()  # files that have an image, also those that another one is preferred to
        self.used: set[str] = set()

    def find(self, image: str) -> str | None:
        """Returns the caption file of an image: the name's own case first, then the order of `CAPTION_SUFFIXES`."""
        stem = posixpath.splitext(image)[0]
        found = [name for key in dict.fromkeys((stem, image)) for name in self.by_stem.get(normalise_name(key), [])]
        exact = [name for name in found if posixpath.splitext(name)[0] in (stem, image)]
        if not found:
            key = normalise_name(_drop_folder(stem))
            apart = self.by_stem.get(key, [])
            found = apart if len(apart) == self.images_of[key] == 1 else []
        best = min(exact or found, key=lambda name: CAPTION_SUFFIXES.index(f".{get_extension(name)}"), default=None)
        self.matched.update(exact or found)
        return best

    def read(self, name: str) -> Captions:
        """Returns the captions of a file, with what is wrong with it if it cannot be read."""
        self.used.add(name)
        try:
            text, guessed = decode_text(storage.read_bytes(storage.join(self.root, name)), self.encoding)
            if guessed:
                self.account.name("windows_1252", name)
            if get_extension(name) != "json":
                return read_captions(text.strip())
            described = json.loads(text)
        except DecodingError as error:
            return Captions([], f"{name}: {error}; set listing.encoding")
        except OSError as error:
            return Captions([], f"{name}: {error.strerror or type(error).__name__}")
        except (ValueError, RecursionError) as error:
            return Captions([], f"{name}: not JSON ({error})")
        if not isinstance(described, dict):
            return Captions([], f"{name}: not a JSON object")
        return read_captions(find_caption(described))
