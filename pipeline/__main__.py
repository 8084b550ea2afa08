"""``python -m pipeline`` is ``imagen-ray``."""

from pipeline.runtime.own_code import hide_shadowing_paths

hide_shadowing_paths()  # Python has put the working folder first

from pipeline.cli.main import main  # noqa: E402

main()
