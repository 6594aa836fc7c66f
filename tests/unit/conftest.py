"""How Hypothesis runs here: the same examples each time, no clock, no files."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, database=None, derandomize=True)
settings.load_profile("unit")
