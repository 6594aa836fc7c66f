"""`cfo-sync run` for the campaign: ends with the campaign, and may believe that it is another time.

CFO_SYNC_TEST_CLOCK_SKEW shifts the clock by which records are due, as on a host whose clock is wrong (seconds).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from datetime import datetime, timedelta, tzinfo
from typing import Self

from consumer import cli, pipeline, worker


def _tether() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _skew(seconds: float) -> None:
    class Skewed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=seconds)

    for module in (pipeline, worker):
        vars(module)["datetime"] = Skewed


if __name__ == "__main__":
    _tether()
    if skew := float(os.environ.get("CFO_SYNC_TEST_CLOCK_SKEW", "0")):
        _skew(skew)
    sys.argv = ["cfo-sync", "run"]
    cli.main()
