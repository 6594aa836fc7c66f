"""How much the fuzzing tries: the same few examples each time, or, with `CFO_SYNC_TEST_LONG=1`, many new ones."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, settings

_LONG: Final = int(os.environ.get("CFO_SYNC_TEST_LONG") or 0)
"""1, or the number of examples of each test."""

effort: Final = settings(
    max_examples=(_LONG if _LONG > 1 else 5_000) if _LONG else 60,
    derandomize=not _LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
