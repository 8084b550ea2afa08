"""Imports of open_clip and transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
