"""``python -m pipeline`` is ``imagen-ray``."""

from pipeline.cli import main

main()
