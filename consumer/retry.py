"""Where a fault goes next, and how long to wait: decisions as values, nobody sleeps here.

Source of the rule: the guide's "Retry Logic" (three retries after 1, 5 and 15 minutes; validation, duplicate and
schema errors are not retried).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from consumer.faults import Fault, RecordFault

MAX_RETRIES: Final = 3  # the guide's views and queries say `retry_count < 3`


@dataclass(frozen=True, slots=True)
class ToRetry:
    """Publish to retry topic `number` (1..3); nobody handles the record before `not_before` (UTC)."""

    number: int
    not_before: datetime


@dataclass(frozen=True, slots=True)
class ToDeadLetters:
    """Publish to the dead-letter topic, `retries` (0..3) having been used."""

    retries: int


Route: TypeAlias = ToRetry | ToDeadLetters


def route(fault: Fault, attempt: int, now: datetime, delays: Sequence[timedelta]) -> Route:
    """Where a record goes that failed with `fault` after `attempt` (0..3) retries."""
    if isinstance(fault, RecordFault) or attempt >= MAX_RETRIES:
        return ToDeadLetters(retries=attempt)
    return ToRetry(number=attempt + 1, not_before=now + delays[attempt])


class Backoff:
    """Exponential with full jitter: the n-th wait is between a tenth and all of min(cap, base * 2**n) seconds."""

    def __init__(self, base: float, cap: float, random: Callable[[], float]) -> None:
        self._base, self._cap, self._random = base, cap, random
        self._tries = 0

    def next_wait(self) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self._cap, self._base * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return ceiling * (0.1 + 0.9 * self._random())

    def reset(self) -> None:
        """Start again from the shortest wait, after a success."""
        self._tries = 0


class Breaker:
    """Opens after `threshold` consecutive faults that database statements raised; any success closes it.

    Row locks and record faults do not count: garbage flows to the dead-letter topic, and alerts.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._consecutive = 0

    @property
    def is_open(self) -> bool:
        """Whether faults have stopped to look like faults of single records."""
        return self._consecutive >= self._threshold

    def succeeded(self) -> None:
        """A record was synced: the database works."""
        self._consecutive = 0

    def failed(self) -> None:
        """A statement failed for one record alone."""
        self._consecutive += 1
