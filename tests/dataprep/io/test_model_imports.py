"""Imports of open_clip, transformers and diffusers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_diffusers

CODE = """
from dataprep.io import model_imports
module = model_imports.{function}()
print(module.__name__)
model_imports.declare_torchvision_operators()
import torchvision
from {logging} import {disabled}
print({disabled}())
"""


@pytest.mark.parametrize(
    ("function", "logging", "disabled"),
    [
        ("import_transformers", "transformers.utils.logging", "is_progress_bar_enabled"),
        ("import_open_clip", "huggingface_hub.utils", "are_progress_bars_disabled"),
    ],
)
def test_the_module_is_imported_without_progress_bars(function: str, logging: str, disabled: str) -> None:
    code = CODE.format(function=function, logging=logging, disabled=disabled)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "False" if disabled == "is_progress_bar_enabled" else "True"
    assert done.stdout.split() == [function.removeprefix("import_"), expected]


def test_text_models_load_without_libraries_for_images() -> None:
    code = """
import sys
from dataprep.io import model_imports
transformers = model_imports.import_transformers()
transformers.T5EncoderModel, transformers.T5ForConditionalGeneration, transformers.BertModel, transformers.AutoTokenizer
print(*sorted({"torchvision", "scipy", "sklearn", "pandas"}.intersection(sys.modules)))
model_imports.import_open_clip()  # which needs them
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["", "True"]


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"need diffusers; pip install 'imagen-ray\[diffusers\]'"):
        import_diffusers()


def test_a_broken_diffusers_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "diffusers.py").write_text("import a_module_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        import_diffusers()
