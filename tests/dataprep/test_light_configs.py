"""Config classes load without the code that they configure."""

from __future__ import annotations

import subprocess
import sys

CONFIGS = (
    "annotate_config card.config pack_config download.config filters.config images.config listing.config "
    "synthetic.config text.config io.storage"
)
HEAVY = ("torch", "transformers", "cv2", "scipy", "imagehash", "py3langid", "aiohttp", "s3fs", "PIL", "pyarrow")


def test_importing_every_config_loads_nothing_heavy() -> None:
    imports = "; ".join(f"import dataprep.{name}" for name in CONFIGS.split())
    code = f"{imports}; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
