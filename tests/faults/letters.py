"""Records of the retry topics and the dead-letter topic, and what must hold for each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

from confluent_kafka import Message

from consumer.headers import MAX_MESSAGE_BYTES, MAX_TRACE_BYTES, PREFIX
from consumer.retry import MAX_RETRIES
from tests.faults.reading import Place

Report: TypeAlias = Callable[[str, str], None]  # kind, detail
Spans: TypeAlias = Sequence[tuple[datetime, datetime]]

DEAD: Final = MAX_RETRIES + 1  # the level of the dead-letter topic; the retry topics are 1, 2, 3

# Faults that an invoice of each kind may meet.
REASONS: Final[dict[str, frozenset[str]]] = {
    "bad": frozenset({"amount-missing", "amount-not-positive"}),
    "late-client": frozenset({"client-not-there"}),
    "late-payment": frozenset({"paid-at-not-there"}),
    "locked": frozenset({"row-locked"}),
    "foreign": frozenset(),
}

_TOLERANCE: Final = 250  # ms between two readings of one clock, one right after the other
_ROUNDING: Final = 2  # ms
_REQUIRED: Final = (
    "failure-id", "origin-topic", "origin-partition", "origin-offset", "origin-timestamp", "attempt", "first-failed-at",
    "error-kind", "error-code", "error-message", "replay-count",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of a retry topic or of the dead-letter topic. Times are milliseconds since the epoch."""

    place: Place
    level: int
    timestamp: int
    origin: Place
    origin_timestamp: int
    attempt: int
    not_before: int | None
    first_failed_at: int
    error_kind: str
    error_code: str
    invoice_id: int | None
    digest: bytes  # of key, value and headers that are not ours

    def __str__(self) -> str:
        return f"{where(self.place)} (invoice {self.invoice_id}, {self.error_code}, origin {where(self.origin)})"


@dataclass(frozen=True, slots=True)
class Ground:
    """What letters are judged by. `is_deleted` tells of an invoice whether it ever was."""

    kinds: Mapping[int, str]
    is_deleted: Callable[[int], bool]
    disturbed: Collection[str]
    delays: Sequence[int]  # ms
    max_skew: int  # ms
    lost: Spans


def where(place: Place) -> str:
    """A place as people look it up."""
    return f"{place[0]}[{place[1]}]@{place[2]}"


def place_of(message: Message) -> Place:
    """Where a message stands."""
    return message.topic() or "", message.partition() or 0, message.offset() or 0


def digest_of(message: Message) -> bytes:
    """Equal for records with the same key, value and headers, ours aside."""
    headers = [(name, value) for name, value in _headers(message) if not name.startswith(PREFIX)]
    return hashlib.sha256(repr((message.key(), message.value(), headers)).encode()).digest()


def read_letter(message: Message, level: int) -> Letter:
    """Raises `ValueError`, saying which header is wrong."""
    found: dict[str, str] = {}
    for name, value in _headers(message):
        if not name.startswith(PREFIX):
            continue
        short = name.removeprefix(PREFIX)
        if short in found:
            raise ValueError(f"{name} stands there twice")
        found[short] = (value or b"").decode()
    for short in _REQUIRED + (("not-before",) if level < DEAD else ()):
        if short not in found:
            raise ValueError(f"{PREFIX}{short} is missing")
    for short, limit in (("error-message", MAX_MESSAGE_BYTES), ("error-trace", MAX_TRACE_BYTES)):
        if len(found.get(short, "").encode()) > limit:
            raise ValueError(f"{PREFIX}{short} is longer than {limit} bytes")
    return Letter(
        place=place_of(message),
        level=level,
        timestamp=message.timestamp()[1],
        origin=(found["origin-topic"], int(found["origin-partition"]), int(found["origin-offset"])),
        origin_timestamp=int(found["origin-timestamp"]),
        attempt=int(found["attempt"]),
        not_before=_milliseconds(found["not-before"]) if "not-before" in found else None,
        first_failed_at=_milliseconds(found["first-failed-at"]),
        error_kind=found["error-kind"],
        error_code=found["error-code"],
        invoice_id=int(found["invoice-id"]) if "invoice-id" in found else None,
        digest=digest_of(message),
    )


def judge(letters: Iterable[Letter], origins: Mapping[Place, bytes | None], ground: Ground, report: Report) -> None:
    """Report what is wrong with these letters.

    `origins` has the digest of each record that a letter names as its origin; None for one that cannot be there any
    more.
    """
    hops: dict[tuple[Place, int], dict[int, list[Letter]]] = {}
    for each in letters:
        hops.setdefault((each.origin, each.origin_timestamp), {}).setdefault(each.level, []).append(each)
    for levels in hops.values():
        for each in (letter for level in levels.values() for letter in level):
            for kind, detail in _wrong(each, levels, ground):
                report(kind, f"{each}: {detail}")
            if was_lost(each.origin_timestamp, each.origin_timestamp, ground.lost):
                continue  # gone, or another record has its offset now
            if each.origin not in origins:
                report("bytes-differ", f"{each}: no such record")
            elif origins[each.origin] not in (None, each.digest):
                report("bytes-differ", f"{each}: key, value or headers are not the origin's")


def is_explained(kind: str | None, code: str, disturbed: Collection[str], deleted: bool) -> bool:
    """Whether an invoice of this kind may have met this fault."""
    return (
        code in disturbed
        or (kind is not None and code in REASONS[kind])
        or (code == "invoice-missing" and deleted)
    )  # fmt: skip


def was_lost(earliest: int, latest: int, lost: Spans) -> bool:
    """Whether the broker may have lost what was written between these two, milliseconds since the epoch."""
    begin, end = (datetime.fromtimestamp(max(0, moment) / 1000, UTC) for moment in (earliest, latest))
    return any(first <= end and begin <= last for first, last in lost)


def _wrong(each: Letter, levels: Mapping[int, list[Letter]], ground: Ground) -> Iterator[tuple[str, str]]:
    invoice_id = each.invoice_id
    kind = None if invoice_id is None else ground.kinds.get(invoice_id)
    deleted = invoice_id is not None and ground.is_deleted(invoice_id)
    if not is_explained(kind, each.error_code, ground.disturbed, deleted):
        yield "fault-without-reason", f"an invoice of kind {kind or 'ordinary'} has no reason for it"
    if each.level < DEAD:
        if each.attempt != each.level:
            yield "attempt-wrong", f"attempt is {each.attempt}"
        elif each.error_kind != "transient":
            yield "attempt-wrong", f"a fault of kind {each.error_kind} is not to be retried"
    elif each.error_kind == "transient" and each.attempt != MAX_RETRIES:
        yield "attempt-wrong", f"given up after {each.attempt} retries"
    elif not 0 <= each.attempt <= MAX_RETRIES:
        yield "attempt-wrong", f"attempt is {each.attempt}"
    before = (each.level if each.level < DEAD else each.attempt + 1) - 1  # the level that it came from
    # The same record may have come there more than once: after a kill, or a reset of offsets.
    due = [due for hop in levels.get(before, ()) if (due := hop.not_before) is not None]
    # When the clock that the letter's own times are taken from read at least this.
    tolerance = min(_TOLERANCE, ground.delays[0] // 2)
    earliest = each.first_failed_at - tolerance if before == 0 else min(due, default=None)
    if earliest is None:
        if not was_lost(each.first_failed_at, each.timestamp, ground.lost):
            yield "attempt-wrong", f"there is no retry {before} before it"
    elif before > 0 and each.timestamp < earliest - ground.max_skew - _ROUNDING:
        yield "handled-early", f"written {earliest - each.timestamp} ms before retry {before} was due"
        return
    if each.not_before is None or each.level == DEAD:
        return
    delay = ground.delays[each.level - 1]
    if each.not_before > each.timestamp + delay + ground.max_skew + _ROUNDING:
        yield "retry-delay", f"due {each.not_before - each.timestamp} ms after it was written, the delay is {delay} ms"
    elif earliest is not None and each.not_before - delay < earliest - ground.max_skew - _ROUNDING:
        yield "retry-delay", f"due {each.not_before - earliest} ms after it could be handled, the delay is {delay} ms"


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]


def _milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no zone")
    return round(moment.timestamp() * 1000)
