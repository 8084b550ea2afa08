"""The range of seeds."""

from __future__ import annotations

MAX_SEED = 2**63 - 1  # tables store seeds in 64 bits, signed; noise is hashed from as many
