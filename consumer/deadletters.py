"""Dead letters as people see them: what a record says of itself, what was done about it, and how it stands.

Nothing here reads a topic or a table. Texts come from records, so from anybody: whoever prints them escapes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

from consumer.headers import FailureHeaders, moment_of
from consumer.texts import utc_text

State: TypeAlias = Literal["open", "replayed", "resolved", "discarded"]
STATES: Final[tuple[State, ...]] = get_args(State)

_MAX_INVOICE_ID: Final = 2**31 - 1
_MAX_COUNT: Final = 1_000_000  # a header can claim anything, the column is an INTEGER
_MAX_REPLAYS_CLAIMED: Final = 10_000  # a header that claims more lies


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record stands on the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """What a dead letter's headers say. The payload stays on the topic."""

    place: Place
    dead_lettered_at: datetime | None  # its Kafka timestamp, UTC; None if it has none
    failure_id: str
    error_kind: str
    error_code: str
    error_message: str
    invoice_id: int | None
    attempt: int  # retries used before it was given up
    replay_count: int
    replay_id: str | None
    first_failed_at: datetime | None
    origin_topic: str
    origin_partition: int
    origin_offset: int

    @classmethod
    def of(cls, place: Place, timestamp: int, headers: FailureHeaders, invoice_id: int | None) -> Letter:
        """Take over what the headers say, within what the tables can hold.

        `timestamp` is milliseconds since the epoch, -1 if unknown; `invoice_id` is used when the headers name none.
        """
        named = headers.invoice_id if headers.invoice_id is not None else invoice_id
        return cls(
            place=place,
            dead_lettered_at=moment_of(timestamp),
            failure_id=_storable(headers.failure_id),
            error_kind=_storable(headers.error_kind),
            error_code=_storable(headers.error_code),
            error_message=_storable(headers.error_message),
            invoice_id=named if named is not None and 0 < named <= _MAX_INVOICE_ID else None,
            attempt=min(max(headers.attempt, 0), _MAX_COUNT),
            replay_count=headers.replay_count if 0 <= headers.replay_count <= _MAX_REPLAYS_CLAIMED else 0,
            replay_id=headers.replay_id,
            first_failed_at=headers.first_failed_at,
            origin_topic=headers.origin.topic,
            origin_partition=headers.origin.partition,
            origin_offset=headers.origin.offset,
        )


HandlingState: TypeAlias = Literal["replaying", "replayed", "resolved", "discarded"]


@dataclass(frozen=True, slots=True)
class Handling:
    """What was done about a failure: its row in `cfo_sync_dlq`. `replaying` is a claim whose publishing is in doubt."""

    state: HandlingState
    replay_count: int
    replay_id: str | None
    changed_by: str | None
    reason: str | None
    outcome: str | None
    updated_at: datetime  # UTC


@dataclass(frozen=True, slots=True)
class Entry:
    """The newest dead letter of one failure, and how it stands.

    `handling` is what was done last, also when the record is open again; `booked_as` says under which transaction its
    invoice stands in the ledger.
    """

    letter: Letter
    state: State
    handling: Handling | None = None
    booked_as: str | None = None

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.letter.place

    @property
    def partition(self) -> int:
        """Its partition."""
        return self.letter.place.partition

    @property
    def offset(self) -> int:
        """Its offset."""
        return self.letter.place.offset

    @property
    def is_in_doubt(self) -> bool:
        """Whether a replay of it was begun and nobody knows yet whether it was published; the next replay settles it.

        It counts as open: if its publisher died, nobody else works on it.
        """
        return (
            self.state == "open"
            and self.handling is not None
            and self.handling.state == "replaying"
            and self.handling.replay_count > self.letter.replay_count
        )

    @property
    def replays(self) -> int:
        """Replays asked for so far."""
        return max(self.letter.replay_count, self.handling.replay_count if self.handling else 0)

    @property
    def note(self) -> str | None:
        """What became of it, for people; None when nothing was done yet."""
        if self.is_in_doubt:
            why = self.handling.outcome if self.handling else None
            return why or "a replay was interrupted; the next replay settles whether it was published"
        if self.state == "open":
            return f"came back after {self.letter.replay_count} replay(s)" if self.letter.replay_count else None
        if self.state == "resolved" and self.booked_as is not None:
            return f"booked as transaction {self.booked_as}"
        return self.handling.outcome if self.handling else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values: numbers, texts, None; times in UTC ending in `Z`."""
        letter, done = self.letter, self.handling
        return {
            "partition": letter.place.partition,
            "offset": letter.place.offset,
            "state": self.state,
            "dead_lettered_at": utc_text(letter.dead_lettered_at),
            "first_failed_at": utc_text(letter.first_failed_at),
            "error_kind": letter.error_kind,
            "error_code": letter.error_code,
            "error_message": letter.error_message,
            "invoice_id": letter.invoice_id,
            "attempt": letter.attempt,
            "replay_count": self.replays,
            "failure_id": letter.failure_id,
            "origin_topic": letter.origin_topic,
            "origin_partition": letter.origin_partition,
            "origin_offset": letter.origin_offset,
            "note": self.note,
            "changed_at": utc_text(done.updated_at) if done else None,
            "changed_by": done.changed_by if done else None,
            "reason": done.reason if done else None,
        }


FIELDS: Final = (
    "partition", "offset", "state", "dead_lettered_at", "first_failed_at", "error_kind", "error_code", "error_message",
    "invoice_id", "attempt", "replay_count", "failure_id", "origin_topic", "origin_partition", "origin_offset", "note",
    "changed_at", "changed_by", "reason",
)  # fmt: skip
"""The names in `Entry.as_dict`, in order."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters are meant: those that match everything that is given."""

    state: State | Literal["all"] = "open"
    places: frozenset[Place] = frozenset()  # none: any
    error_codes: frozenset[str] = frozenset()  # none: any
    kind: str | None = None  # "record" or "transient"
    text: str | None = None  # occurs in the message, whatever its case
    invoice_id: int | None = None
    since: datetime | None = None  # of when it was dead-lettered
    until: datetime | None = None  # not included
    partition: int | None = None
    first_offset: int | None = None
    last_offset: int | None = None  # included

    def matches(self, entry: Entry) -> bool:
        """Whether this one is meant, its state included."""
        return self.state in ("all", entry.state) and self.matches_letter(entry.letter)

    def matches_letter(self, letter: Letter) -> bool:
        """Whether this one is meant, whatever its state."""
        at, place = letter.dead_lettered_at, letter.place
        return (
            (not self.places or place in self.places)
            and (not self.error_codes or letter.error_code in self.error_codes)
            and (self.kind is None or letter.error_kind == self.kind)
            and (self.text is None or self.text.casefold() in letter.error_message.casefold())
            and (self.invoice_id is None or letter.invoice_id == self.invoice_id)
            and (self.since is None or (at is not None and at >= self.since))
            and (self.until is None or (at is not None and at < self.until))
            and (self.partition is None or place.partition == self.partition)
            and (self.first_offset is None or place.offset >= self.first_offset)
            and (self.last_offset is None or place.offset <= self.last_offset)
        )


def decide_state(letter: Letter, handling: Handling | None, *, is_booked: bool) -> State:
    """How the newest record of a failure stands.

    `is_booked`: its invoice stands in the ledger now, or was booked after the record was written. No row means open,
    and so does a claim in doubt. A record that carries as many replays as were asked for came back after the last one
    and is open again, unless somebody discarded it: that is final.
    """
    if handling is not None and handling.state == "discarded":
        return "discarded"
    if is_booked:
        return "resolved"
    if handling is None:
        return "open"
    if handling.state == "resolved":
        # Booked once, and not any more: a record written since then is about something new.
        at = letter.dead_lettered_at
        return "open" if at is not None and at > handling.updated_at else "resolved"
    came_back = letter.replay_count >= handling.replay_count
    return "open" if came_back or handling.state == "replaying" else "replayed"


def newest(letters: Iterable[Letter]) -> dict[str, Letter]:
    """The newest letter of each failure, by failure id; the others are superseded.

    A record that failed again after a replay counts one replay more. Of copies with the same count (a crash between
    publishing and commit writes one twice) the last one written stands for all.
    """
    found: dict[str, Letter] = {}
    for letter in letters:
        other = found.get(letter.failure_id)
        if other is None or _age(letter) >= _age(other):
            found[letter.failure_id] = letter
    return found


def _age(letter: Letter) -> tuple[int, float, Place]:
    at = letter.dead_lettered_at
    return letter.replay_count, at.timestamp() if at is not None else 0.0, letter.place


def oldest_first(entries: Iterable[Entry]) -> list[Entry]:
    """In the order in which they were dead-lettered."""
    return sorted(entries, key=lambda entry: (_age(entry.letter)[1], entry.letter.place))


ForecastKind: TypeAlias = Literal["books", "refreshes", "adopts", "booked", "fails", "not-paid", "ignored"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a replay would do now, judged without touching anything. `text` says it in a sentence."""

    kind: ForecastKind
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "text": self.text}


@dataclass(frozen=True, slots=True)
class Detail:
    """Everything about one dead letter. `payload` is bounded text, `payload_format` says of what kind."""

    entry: Entry
    superseded_by: Place | None  # a newer record of the same failure
    headers: Sequence[tuple[str, str]]
    key: str | None
    payload: str | None
    payload_format: Literal["json", "text", "bytes", "none"]
    payload_bytes: int
    is_cut: bool
    invoice: Mapping[str, Any] | None  # as `CFOSyncService.status` gives it
    forecast: Forecast

    def as_dict(self) -> dict[str, Any]:
        """Plain values: numbers, texts, None, lists; times in UTC ending in `Z`."""
        invoice = None
        if self.invoice is not None:
            invoice = {
                name: utc_text(value) if isinstance(value, datetime) else value for name, value in self.invoice.items()
            }
        return self.entry.as_dict() | {
            "superseded_by": None
            if self.superseded_by is None
            else {"partition": self.superseded_by.partition, "offset": self.superseded_by.offset},
            "headers": [{"name": name, "value": value} for name, value in self.headers],
            "key": self.key,
            "payload": self.payload,
            "payload_format": self.payload_format,
            "payload_bytes": self.payload_bytes,
            "payload_is_cut": self.is_cut,
            "invoice": invoice,
            "if_replayed_now": self.forecast.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Stats:
    """All dead letters on the topic, counted by failure."""

    total: int
    by_state: Mapping[State, int]  # all states, 0 included
    open_by_code: Mapping[str, int]
    oldest_open: datetime | None  # UTC
    oldest_record: datetime | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "total": self.total,
            "by_state": dict(self.by_state),
            "open_by_code": dict(self.open_by_code),
            "oldest_open": utc_text(self.oldest_open),
            "oldest_record": utc_text(self.oldest_record),
        }


def count(entries: Sequence[Entry], oldest_record: datetime | None) -> Stats:
    """Count entries; `oldest_record` is the time of the oldest record on the topic, superseded ones included."""
    states = Counter(entry.state for entry in entries)
    still_open = [entry for entry in entries if entry.state == "open"]
    codes = Counter(entry.letter.error_code for entry in still_open)
    times = [at for entry in still_open if (at := entry.letter.dead_lettered_at) is not None]
    return Stats(
        total=len(entries),
        by_state={state: states[state] for state in STATES},
        open_by_code=dict(sorted(codes.items(), key=lambda pair: (-pair[1], pair[0]))),
        oldest_open=min(times, default=None),
        oldest_record=oldest_record,
    )


def _storable(text: str) -> str:
    """PostgreSQL holds every character but this one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
