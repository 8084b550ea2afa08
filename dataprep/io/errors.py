"""The error for mistakes of the user; the command line turns it into exit status 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in config, arguments or input: one line with key, value and remedy."""
