"""MkDocs hooks: the site takes in files from outside docs/ that its pages name, so that one set of links serves both.

On a forge a page links to ``../configs/demo.yaml``; the site has no such file. Here the Markdown files of the root
become pages, every other linked file is copied to ``repository/``, and the links are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root, and every file outside docs/ that a page links to."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in files.documentation_pages():
        if page.abs_src_path and Path(page.abs_src_path).is_relative_to(ROOT):
            for path in map(_path, _targets(page)):
                if _is_copied(path) and f"repository/{path}" not in files.src_uris:
                    files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites links as the site has the files: root pages and docs/ side by side, the rest below repository/."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    folder = _folder(page.file)
    return LINK.sub(lambda match: _site_link(folder, match[1]), markdown)


def _site_link(folder: str, link: str) -> str:
    path = posixpath.normpath(posixpath.join(folder, link))
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if _is_copied(path) else path


def _targets(page: File) -> list[str]:
    folder = _folder(page)
    return [posixpath.join(folder, link) for link in LINK.findall(Path(str(page.abs_src_path)).read_text())]


def _path(target: str) -> str:
    return posixpath.normpath(target)


def _is_copied(path: str) -> bool:
    return not path.startswith("docs/") and path not in ROOT_PAGES and (ROOT / path).is_file()


def _folder(page: File) -> str:
    """The folder of a page's source, relative to the root: empty, or docs."""
    return "" if page.src_uri in ROOT_PAGES else "docs"
