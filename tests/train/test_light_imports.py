"""Config modules load no heavy library: `imagen-ray --help` and the planner import them."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.paths import ROOT

HEAVY = ("torch", "transformers", "open_clip", "numpy", "pyarrow", "cv2", "scipy")
SCRIPT = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"


def find_config_modules() -> list[str]:
    """Returns the modules of configs, presets and registries of `train`."""
    paths = [path for path in (ROOT / "train").rglob("*.py") if path.stem == "config" or path.stem.endswith("_config")]
    paths += [ROOT / "train" / name for name in ("models/base.py", "models/backbones.py", "tasks/registry.py")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def test_config_modules_load_no_heavy_library() -> None:
    words = [sys.executable, "-c", SCRIPT, *find_config_modules()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name in HEAVY} == set()
