"""The numbers of the overview that take a scan: counted aside, so that no page waits for a million rows."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.web import readings
from consumer.web.readings import Hour, Lag, Totals

_LOG: Final = structlog.get_logger("console")

_FRESH: Final = 15.0  # seconds for which numbers are shown again
_SHARE: Final = 20  # counting takes at most so small a part of the time


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was counted, and when (UTC)."""

    totals: Totals
    hours: list[Hour]
    lag: Lag
    at: datetime


class Counting:
    """Counts when somebody looks, and gives the last count meanwhile. Thread-safe."""

    def __init__(self, pool: Pool[CFOSyncService]) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._last: Numbers | None = None
        self._due = 0.0

    def look(self) -> Numbers:
        """The newest numbers; waits for the very first only. Raises `Outage` then."""
        last = self._last
        if last is None:
            with self._lock:
                return self._last or self._count()
        if time.monotonic() >= self._due and self._lock.acquire(blocking=False):
            threading.Thread(target=self._count_aside, name="counting", daemon=True).start()
        return last

    def _count_aside(self) -> None:
        try:
            self._count()
        except Exception as error:
            # Of an error that nobody foresaw only the kind: PostgreSQL's quote whole rows.
            detail = error.message if isinstance(error, Outage) else type(error).__name__
            _LOG.warning("cannot count", detail=detail)
            self._due = time.monotonic() + _FRESH
        finally:
            self._lock.release()

    def _count(self) -> Numbers:
        began, at = time.monotonic(), datetime.now(UTC)
        with self._pool.lend() as service:
            totals = service.read(readings.totals)
            numbers = Numbers(totals, service.read(readings.hours), service.read(readings.lag), at)
        self._last = numbers
        self._due = time.monotonic() + max(_FRESH, (time.monotonic() - began) * _SHARE)
        return numbers
