"""Imports of open_clip and transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
from dataprep.io import model_imports
module = model_imports.{function}()
print(module.__name__)
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
