"""One batch of records, from bytes to what is to be published: decode, filter, sync, route.

It commits no offset and publishes nothing: `worker` does, in that order, once this has returned.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal, TypeAlias, assert_never

from confluent_kafka import Message

from consumer import envelope, headers
from consumer.broker import Publication, Record
from consumer.envelope import Doorbell, Ignored
from consumer.faults import Fault, RecordFault
from consumer.headers import Origin
from consumer.outcomes import Booked, Faulted, NotPaid, Outcome, Settled
from consumer.partitions import key_of
from consumer.retry import ToDeadLetters, ToRetry, route
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings
from consumer.store import FaultRow, Partition

try:
    VERSION: Final = version("cfo-sync")
except PackageNotFoundError:  # a source tree that is not installed
    VERSION: Final = "unknown"  # type: ignore[misc]


# No wait is longer than a day (`settings`): a damaged header must not stop its partition for ever.
_LONGEST_WAIT: Final = timedelta(days=1, hours=1)

RecordOutcome: TypeAlias = Literal["booked", "settled", "not-paid", "ignored", "duplicate", "retry", "dead-letter"]
Stage: TypeAlias = Literal["decode", "sync", "mirror"]


@dataclass(slots=True)
class Ring:
    """The doorbell of one invoice in this batch: the message that stands for all that rang, and how many did."""

    message: Message
    topic: str
    attempt: int
    count: int = 1


@dataclass(slots=True)
class Handled:
    """What one batch came to. `publications` must be confirmed before any offset of the batch is committed."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    publications: list[Publication] = field(default_factory=list)
    counts: Counter[tuple[str, RecordOutcome]] = field(
        default_factory=Counter
    )  # records by topic and what became of them
    faults: list[tuple[Record, int | None, Fault, ToRetry | ToDeadLetters]] = field(default_factory=list)
    seconds: dict[Stage, float] = field(default_factory=dict)  # how long each stage took that had something to do

    @property
    def had_work(self) -> bool:
        """Whether the batch did more than pass over events of unpaid invoices."""
        return bool(self.outcomes or self.publications)


class Pipeline:
    """Handles batches for one service. `now` is the clock, UTC."""

    def __init__(
        self,
        settings: Settings,
        service: CFOSyncService,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._service = service
        self._now, self._monotonic = now, monotonic
        self._attempts = {settings.source_topic: 0, settings.replay_topic: 0} | {
            topic: number for number, topic in enumerate(settings.retry_topics, 1)
        }

    def handle(self, messages: Iterable[Message], keepalive: Callable[[], None] = lambda: None) -> Handled:
        """Sync every invoice that the batch says is paid. Raises `Outage`: then the same batch can be given again."""
        handled = Handled()
        started = self._monotonic()
        rings, partitions, garbage = self._decode(messages, handled)
        decoded = self._monotonic()
        handled.seconds["decode"] = decoded - started
        if rings:
            handled.outcomes = self._service.sync(
                {invoice_id: ring.attempt for invoice_id, ring in rings.items()},
                partitions=sorted(partitions),
                keepalive=keepalive,
            )
            handled.seconds["sync"] = self._monotonic() - decoded
        mirror = []
        for invoice_id, outcome in handled.outcomes.items():
            ring = rings[invoice_id]
            topic = ring.topic
            handled.counts[topic, "duplicate"] += ring.count - 1
            match outcome:
                case Booked():
                    handled.counts[topic, "booked"] += 1
                case Settled():
                    handled.counts[topic, "settled"] += 1
                case NotPaid():
                    handled.counts[topic, "not-paid"] += 1
                case Faulted(fault=fault):
                    decided = self._route(handled, Record.of(ring.message), ring.attempt, fault, invoice_id)
                    mirror.append(_mirror(outcome, decided))
                case _:
                    assert_never(outcome)
        if mirror:
            started = self._monotonic()
            self._service.record_faults(mirror)
            handled.seconds["mirror"] = self._monotonic() - started
        for record, fault in garbage:
            attempt = self._attempts.get(record.topic, 0)
            self._route(handled, record, attempt, fault, envelope.invoice_id_of_key(record.key))
        return handled

    def not_before(self, message: Message) -> datetime | None:
        """When the record may be handled; None for at once."""
        if self._attempts.get(message.topic() or "", 0) == 0:
            return None
        record = Record.of(message)
        due, written = self._headers(record).not_before, headers.moment_of(record.timestamp)
        if due is None or due - (written or self._now()) <= _LONGEST_WAIT:
            return due
        return None if written is None else written + _LONGEST_WAIT

    def _decode(
        self, messages: Iterable[Message], handled: Handled
    ) -> tuple[dict[int, Ring], set[Partition], list[tuple[Record, RecordFault]]]:
        """The doorbells by invoice, the partitions that they came from, and the records that are none.

        An invoice that rings several times is synced once; the record with the fewest retries used stands for all, the
        last of them, for what it is about is in the database and not in the record.
        """
        rings: dict[int, Ring] = {}
        partitions: set[Partition] = set()
        garbage: list[tuple[Record, RecordFault]] = []
        ignored = handled.counts
        for message in messages:
            try:
                event = envelope.decode(message.value())
            except RecordFault as fault:
                garbage.append((Record.of(message), fault))
                continue
            match event:
                case Ignored():
                    ignored[message.topic() or "", "ignored"] += 1
                case Doorbell(invoice_id):
                    topic, number = key_of(message)
                    partitions.add((topic, number))
                    attempt = self._attempts.get(topic, 0)
                    ring = rings.get(invoice_id)
                    if ring is None:
                        rings[invoice_id] = Ring(message, topic, attempt)
                        continue
                    ring.count += 1
                    if attempt <= ring.attempt:
                        ring.message, ring.topic, ring.attempt = message, topic, attempt
        return rings, partitions, garbage

    def _route(
        self, handled: Handled, record: Record, attempt: int, fault: Fault, invoice_id: int | None
    ) -> ToRetry | ToDeadLetters:
        now = self._now()
        decided = route(fault, attempt, now, self._settings.retry_delays)
        due: datetime | None
        match decided:
            case ToRetry(number, not_before):
                topic, used, due = self._settings.retry_topics[number - 1], number, not_before
            case ToDeadLetters(retries):
                topic, used, due = self._settings.dlq_topic, retries, None
        carried = headers.with_fault(
            self._headers(record),
            fault,
            attempt=used,
            not_before=due,
            invoice_id=invoice_id,
            trace=_trace(fault),
            version=VERSION,
        )
        publication = Publication(topic, record.key, record.value, headers.encode(carried, record.headers), record)
        handled.publications.append(publication)
        handled.faults.append((record, invoice_id, fault, decided))
        handled.counts[record.topic, "retry" if isinstance(decided, ToRetry) else "dead-letter"] += 1
        return decided

    def _headers(self, record: Record) -> headers.FailureHeaders:
        here = Origin(record.topic, record.partition, record.offset, record.timestamp)
        attempt = self._attempts.get(record.topic, 0)
        return headers.decode(record.headers, here, attempt=attempt, now=self._now(), version=VERSION)


def _trace(fault: Fault) -> str:
    """Where it was raised, and the types of its causes. Not their texts: PostgreSQL's quote whole rows."""
    text = "".join(traceback.format_exception(fault, chain=False))
    cause = fault.__cause__
    while cause is not None:
        text += f"caused by {type(cause).__module__}.{type(cause).__qualname__}\n"
        cause = cause.__cause__
    return text


def _mirror(outcome: Faulted, decided: ToRetry | ToDeadLetters) -> FaultRow:
    match decided:
        case ToRetry(number, _):
            return fault_row(outcome, "retry", number)
        case ToDeadLetters(retries):
            return fault_row(outcome, "failed", retries)
