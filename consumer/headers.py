"""Headers of retry, dead-letter and replay records: UTF-8 text, bounded, set once and replaced, never appended.

Key and value stay the original bytes; all that we know about a failure travels here (DESIGN, "DLQ and retry records").
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

from consumer.faults import Fault

PREFIX: Final = "cfo-sync."
MAX_MESSAGE_BYTES: Final = 1024
MAX_TRACE_BYTES: Final = 4096

RawHeaders: TypeAlias = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the record first stood, as Kafka knows it. `timestamp` is milliseconds since the epoch, -1 if unknown."""

    topic: str
    partition: int
    offset: int
    timestamp: int


def moment_of(timestamp: int) -> datetime | None:
    """A record's timestamp as a time, UTC; None when it has none, or one that no calendar has."""
    try:
        return datetime.fromtimestamp(timestamp / 1000, UTC) if timestamp >= 0 else None
    except (ValueError, OverflowError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class FailureHeaders:
    """Everything that our headers say of one failed record."""

    failure_id: str  # stays with the record through retries and replays; the dead-letter tool's key
    origin: Origin
    attempt: int  # retries used so far, 0..3
    not_before: datetime | None  # nobody handles the record earlier
    first_failed_at: datetime
    error_kind: str  # "record" or "transient"
    error_code: str
    error_message: str
    error_trace: str
    invoice_id: int | None
    replay_id: str | None
    replay_count: int
    consumer_version: str


def first_failure(origin: Origin, *, attempt: int, now: datetime, version: str) -> FailureHeaders:
    """Headers of a record that has not failed before; `with_fault` fills in why it does now.

    The failure id follows from where the record stood, so that publishing it twice (a crash before the offset commit)
    makes one failure, not two.
    """
    name = f"{origin.topic}/{origin.partition}/{origin.offset}/{origin.timestamp}"
    return FailureHeaders(
        failure_id=str(uuid.uuid5(_FAILURES, name)),
        origin=origin,
        attempt=attempt,
        not_before=None,
        first_failed_at=now,
        error_kind="",
        error_code="",
        error_message="",
        error_trace="",
        invoice_id=None,
        replay_id=None,
        replay_count=0,
        consumer_version=version,
    )


def with_fault(
    headers: FailureHeaders,
    fault: Fault,
    *,
    attempt: int,
    not_before: datetime | None,
    invoice_id: int | None,
    trace: str,
    version: str,
) -> FailureHeaders:
    """The same record, after one more fault: what describes the failure is replaced, the origin stays."""
    return replace(
        headers,
        attempt=attempt,
        not_before=not_before,
        error_kind=fault.kind,
        error_code=fault.code,
        error_message=fault.message,
        error_trace=trace,
        invoice_id=invoice_id if invoice_id is not None else headers.invoice_id,
        consumer_version=version,
    )


def encode(headers: FailureHeaders, foreign: Iterable[tuple[str, bytes | None]] = ()) -> list[tuple[str, bytes | None]]:
    """Kafka headers, each once. Headers that are not ours (`foreign`) are passed on as they came."""
    fields: dict[str, str | None] = {
        "failure-id": headers.failure_id,
        "origin-topic": headers.origin.topic,
        "origin-partition": str(headers.origin.partition),
        "origin-offset": str(headers.origin.offset),
        "origin-timestamp": str(headers.origin.timestamp),
        "attempt": str(headers.attempt),
        "not-before": _iso(headers.not_before),
        "first-failed-at": _iso(headers.first_failed_at),
        "error-kind": headers.error_kind,
        "error-code": headers.error_code,
        "error-message": _bounded(headers.error_message, MAX_MESSAGE_BYTES),
        "error-trace": _bounded(headers.error_trace, MAX_TRACE_BYTES),
        "invoice-id": None if headers.invoice_id is None else str(headers.invoice_id),
        "replay-id": headers.replay_id,
        "replay-count": str(headers.replay_count),
        "consumer-version": headers.consumer_version,
    }
    ours = [(PREFIX + name, text.encode()) for name, text in fields.items() if text is not None]
    return [(name, value) for name, value in foreign if not name.startswith(PREFIX)] + ours


def decode(
    raw: Iterable[tuple[str, bytes | None]] | None, here: Origin, *, attempt: int, now: datetime, version: str
) -> FailureHeaders:
    """Read our headers from a record that stands at `here`.

    Never fails: a header that is missing or unreadable gets the value of a first failure at `here`, so that a record
    which somebody damaged, or produced by hand, is still handled. `attempt` comes from the topic, which cannot lie.
    Every text is bounded, so that the record is never too large for our own topics.
    """
    fresh = first_failure(here, attempt=attempt, now=now, version=version)
    found = {
        name[len(PREFIX) :]: _text(value) for name, value in raw or () if name.startswith(PREFIX) and value is not None
    }
    origin = here
    if "origin-topic" in found:
        partition, offset = _integer(found.get("origin-partition")), _integer(found.get("origin-offset"))
        if partition is not None and offset is not None:
            timestamp = _integer(found.get("origin-timestamp"))
            origin = Origin(found["origin-topic"], partition, offset, -1 if timestamp is None else timestamp)
    return replace(
        fresh,
        failure_id=_bounded(found.get("failure-id") or fresh.failure_id, 64),
        origin=origin,
        not_before=_time(found.get("not-before")),
        first_failed_at=_time(found.get("first-failed-at")) or now,
        error_kind=found.get("error-kind", ""),
        error_code=found.get("error-code", ""),
        error_message=found.get("error-message", ""),
        error_trace=found.get("error-trace", ""),
        invoice_id=_integer(found.get("invoice-id")),
        replay_id=found.get("replay-id"),
        replay_count=_integer(found.get("replay-count")) or 0,
        consumer_version=found.get("consumer-version", ""),
    )


_FAILURES: Final = uuid.UUID("6f0b2f0e-55e7-4b0b-9d0f-6a1f5b0c7c11")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _integer(text: str | None) -> int | None:
    digits = (text or "").removeprefix("-")
    return int(text) if text and digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def _text(value: bytes) -> str:
    text = value[: MAX_TRACE_BYTES + 1].decode("utf-8", "replace")
    # A byte that is no UTF-8 becomes three.
    return text if 3 * len(value) <= MAX_TRACE_BYTES else _bounded(text, MAX_TRACE_BYTES)


def _bounded(text: str, limit: int) -> str:
    encoded = text.encode("utf-8", "replace")  # a lone surrogate is no UTF-8
    short = encoded if len(encoded) <= limit else encoded[: limit - 3]
    return short.decode("utf-8", "ignore") + ("" if short is encoded else "…")
