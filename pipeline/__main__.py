"""``python -m pipeline`` is ``imagen-ray``."""

from pipeline.cli.main import main

main()
