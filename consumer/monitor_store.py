"""What the monitor reads in the invoice database: a few numbers at a time, and never for long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection

from consumer.sql import statement

# The databases have more to do than to be looked at; what takes longer is given up, and tried again later.
_PATIENCE: Final = "10s"


_PENDING: Final = statement("monitor_pending")
_HISTORY: Final = statement("monitor_history")
_SLOTS: Final = statement("monitor_slots")
_DEAD_LETTERS: Final = statement("monitor_dead_letters")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Invoices that are not booked. Ages are seconds since the payment of the oldest, by sync status; 0 for none."""

    pending: int
    used_up: int  # failed with three retries
    retries_left: int  # failed with fewer
    oldest: dict[str, float]


@dataclass(frozen=True, slots=True)
class History:
    """How it went lately. NaN where there is nothing to take it of."""

    average_lag: float  # seconds, over 24 hours
    recent_lag: float  # seconds, 95 % of the bookings of 15 minutes took at most so long
    success: float  # 0 to 1, over 7 days


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot. Bytes of WAL: not confirmed by its reader, and kept for it; NaN when the slot is lost."""

    name: str
    is_active: bool
    lag: float
    retained: float


def read_waiting(connection: Connection) -> Waiting:
    """What the pending view shows, counted."""
    [[pending, used_up, left, *ages]] = _read(connection, _PENDING)
    # A clock that is a little ahead must not make an age negative.
    oldest = {state: max(0.0, age or 0.0) for state, age in zip(("pending", "retry", "failed"), ages, strict=True)}
    return Waiting(pending, used_up, left, oldest)


def read_history(connection: Connection) -> History:
    """The guide's mean lag and success rate, and how it is just now."""
    [[average, recent, success]] = _read(connection, _HISTORY)
    return History(_number(average), _number(recent), _number(success))


def read_slots(connection: Connection) -> list[Slot]:
    """The slots through which changes of this database are captured."""
    rows = _read(connection, _SLOTS)
    return [Slot(name, active, _number(lag), _number(retained)) for name, active, lag, retained in rows]


def read_handlings(connection: Connection) -> tuple[Any, ...]:
    """Something that is another whenever what was done about dead letters is."""
    [row] = _read(connection, _DEAD_LETTERS)
    return row


def limit_patience(connection: Connection) -> None:
    """Give statements of this transaction up soon."""
    connection.execute(f"SET LOCAL statement_timeout = '{_PATIENCE}'".encode())


def _read(connection: Connection, query: bytes) -> list[tuple[Any, ...]]:
    limit_patience(connection)
    return connection.execute(query).fetchall()


def _number(value: float | None) -> float:
    return math.nan if value is None else value
