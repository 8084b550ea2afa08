"""Files around the code: they parse, and every path, make target and module that the documents name exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT

DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
CONFIGURATION = sorted(
    str(path.relative_to(ROOT))
    for pattern in (".github/**/*.yml", ".pre-commit-config.yaml", "mkdocs.yml", "CITATION.cff", "deploy/*.yaml")
    for path in ROOT.glob(pattern)
)
TOP = "pipeline|dataprep|train|eval|imagen_ray|tests|benchmarks|configs|docs|deploy|examples"
# A path below one of these, to its end; <name> and * stand for any name.
PATH = re.compile(rf"(?<![\w/.:*-])(?:{TOP})/[\w./*<>-]*")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#([\w-]+))?\)")
TARGET = re.compile(r"(?:^|`)make ([a-z][a-z-]*)", re.M)
MODULE = re.compile(r"python -m ([\w.]+)|\bfrom ([\w.]+) import")
REGISTRY = re.compile(r"`([A-Z_]+)`\s+in\s+`([\w/.]+\.py)`")


class _Loader(yaml.SafeLoader):
    """Accepts MkDocs's `!!python/name:` tags, as plain strings."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def parse(name: str) -> Any:
    return yaml.load((ROOT / name).read_text(), Loader=_Loader)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


def missing_paths(text: str) -> set[str]:
    patterns = {match.rstrip(".>") for match in PATH.findall(text) if not match.endswith(".tmp")}
    return {name for name in patterns if not any(ROOT.glob(re.sub(r"<\w+>", "*", name)))}


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration_files_parse(name: str) -> None:
    assert parse(name)


@pytest.mark.parametrize("name", [*DOCUMENTS, "Makefile"])
def test_paths_in_documents_exist(name: str) -> None:
    text = LINK.sub("]()", (ROOT / name).read_text())
    assert missing_paths(re.sub(r"https?://\S+", "", text)) == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_documents_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for path, anchor in LINK.findall((ROOT / name).read_text()):
        target = folder / path
        assert target.exists(), f"{name} links to {path}"
        if anchor:
            assert anchor in heading_anchors(target), f"{name} links to {path}#{anchor}"


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("name", [*DOCUMENTS, *(name for name in CONFIGURATION if "workflows" in name)])
def test_make_targets_in_documents_exist(name: str) -> None:
    named = set(TARGET.findall((ROOT / name).read_text().replace("run: make", "`make")))
    assert named <= make_targets(), named - make_targets()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_in_documents_exist(name: str) -> None:
    for module in ("".join(groups) for groups in MODULE.findall((ROOT / name).read_text())):
        if module != "benchmarks.NAME":
            assert importlib.util.find_spec(module), f"{name} names {module}"


def test_registries_are_where_contributing_says() -> None:
    found = REGISTRY.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(found) >= 8
    for name, path in found:
        assert re.search(rf"^{name}\b.*=", (ROOT / path).read_text(), re.M), f"{path} has no {name}"


def test_contributing_describes_every_make_target() -> None:
    described = set(re.findall(r"^\| `make ([a-z-]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
    assert described == make_targets()


def test_the_site_has_every_page() -> None:
    named = set(re.findall(r"[\w-]+\.md", str(parse("mkdocs.yml")["nav"])))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= named
    index = (ROOT / "docs/index.md").read_text()
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= set(re.findall(r"[\w-]+\.md", index))


def test_citation_has_what_the_format_requires() -> None:
    citation = parse("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == project()["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_constraints_pin_every_dependency_once_within_its_range() -> None:
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = {normalise(name): version for name, version in pins}
    assert len(versions) == len(pins)
    extras = project()["optional-dependencies"]
    for group in ("dependencies", "dev", "docs", "bench"):
        for requirement in project()["dependencies"] if group == "dependencies" else extras[group]:
            name, _, bounds = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?(.*)", requirement).groups()  # type: ignore[union-attr]
            assert normalise(name) in versions, f"{name} has no pin in constraints.txt"
            for operator, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
                inside = as_numbers(versions[normalise(name)]) >= as_numbers(bound)
                assert inside == (operator == ">="), f"{requirement}: constraints.txt has {versions[normalise(name)]}"
            assert "==" not in bounds, f"{requirement}: exact versions belong in constraints.txt"


def test_no_tracked_file_has_trailing_spaces_or_lacks_its_last_newline() -> None:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    for name in names:
        path = ROOT / name
        if path.suffix in (".md", ".py", ".yaml", ".yml", ".toml", ".cff") and path.is_file():
            text = path.read_text()
            assert not re.search(r"[ \t]+$", text, re.M), f"{name} has trailing spaces"
            assert not text or text.endswith("\n"), f"{name} lacks its last newline"


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
