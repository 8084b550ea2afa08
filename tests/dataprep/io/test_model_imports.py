"""Imports of open_clip, transformers and diffusers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_diffusers

CODE = """
import sys
from dataprep.io import model_imports
heavy = {"torchvision", "scipy", "sklearn", "pandas", "accelerate", "timm", "sympy", "torch._dynamo"}

transformers = model_imports.import_transformers(models=False)
transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast, transformers.T5Config
transformers = model_imports.import_transformers()
transformers.T5EncoderModel, transformers.T5ForConditionalGeneration, transformers.BertModel, transformers.AutoTokenizer
print(*sorted(heavy.intersection(sys.modules)))

import transformers.utils.logging
from huggingface_hub.utils import are_progress_bars_disabled
print(transformers.__name__, transformers.utils.logging.is_progress_bar_enabled())

open_clip = model_imports.import_open_clip()
print(*sorted(heavy.intersection(sys.modules)))
print(open_clip.__name__, are_progress_bars_disabled())

model = open_clip.create_model("vit_medium_patch16_gap_256")  # one of timm's
print(type(model.visual).__name__, "timm" in sys.modules)
import torch
print(torch.compiler.is_compiling(), hasattr(torch._dynamo, "explain"))
"""


def test_models_load_without_progress_bars_and_libraries_that_they_do_not_use() -> None:
    """What another library imports and these models do not call is imported by whoever calls it."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:6] == [
        "",
        "transformers False",
        "torchvision",
        "open_clip True",
        "TimmModel True",
        "False True",
    ]


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
