"""What must hold after any faults: asked of the databases with SQL, and of the topics by reading them whole.

`check` is for the time after the faults, when all is quiet; `audit_offsets` may run at any moment. Neither trusts the
consumer's own tables alone: `campaign.history` (history.sql) tells what each commit really left behind.

The kinds of violation, all of them:

  still-open             an invoice is paid, not booked (again) and not failed
  failed-without-reason  an invoice is failed that had no reason to, or its row does not say which
  bad-booked             an invoice that can never be booked is booked or complete
  wrong-cents            a complete invoice's own transaction has another amount than the invoice
  cents-never-paid       … of an invoice that is not complete now, or gone: an amount it never had while it was paid
  never-paid             the transaction of an invoice that nobody ever set to paid
  identifier-wrong       a transaction bears another Identifier than its mapping row, or one its invoice never had
  booked-twice           several transactions with one Identifier
  orphan                 a transaction of ours that no mapping row points to
  transaction-missing    a mapping row points to a transaction that is not there
  adopted-wrongly        ours is mapped as somebody else's, or the other way round, or none was to be adopted
  mapping-disagrees      complete but not synced; synced without a transaction; synced but never complete
  log-disagrees          booked without a `synced` row, not inserted exactly once by the log, failed without a row
  failed-not-in-dlq      an invoice is failed, an event of it was handled, and no dead letter tells of it
  fault-without-reason   a record on a retry topic or the DLQ whose invoice had no reason to meet this fault
  headers-wrong          such a record's headers are missing, repeated, too long, not readable, or name another invoice
  bytes-differ           its key, value or other headers are not those of its origin, or the origin is not there
  attempt-wrong          its attempt number does not follow from where it stands, or the retry before it is not there
  retry-delay            it is due at another time than its delay after it was written
  handled-early          it was written before the retry before it was due
  behind                 records that the group has not committed, though all is quiet
  offset-beyond-end      an offset committed beyond the end of its partition
  doorbell-lost          an event below the committed offset whose invoice is paid, neither booked nor failed, and
                         stands neither on a retry topic nor on the DLQ

With two databases a kill between the two commits leaves a transaction that the next attempt finds and links: the log
then has no row that says `inserted`. And the transaction of an invoice that is deleted or unpaid just then is linked
by its reserved Identifier only: not an orphan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from confluent_kafka import Message

from consumer import envelope
from consumer.envelope import Doorbell
from consumer.faults import RecordFault
from consumer.settings import Settings
from tests.faults import letters
from tests.faults.books import Watched, connect, read_books, read_watched
from tests.faults.letters import DEAD, Ground, Letter, Spans, place_of
from tests.faults.reading import Key, Place, Reader

_SHOWN: Final = 20  # violations of one kind with their detail
_MARGIN: Final = timedelta(minutes=1)  # an event is written after its commit, by a clock that may differ a little


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never be. `kind` is one of the module's list."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `check` found. `counts` tells what it looked at, so that an empty stage cannot pass for a clean one."""

    violations: list[Violation]
    counts: dict[str, int]


def check(
    settings: Settings,
    *,
    invoice_dsn: str,
    cfo_dsn: str,
    max_skew: float = 0.0,
    lost: Spans = (),
    disturbed: Collection[str] = (),
) -> Verdict:
    """Everything, once all is quiet. The DSNs are the owners'.

    `max_skew` (seconds) is how far the consumers' clocks were apart; `lost` are UTC spans whose records the broker
    lost; `disturbed` are error codes that the injected faults explain for any invoice. Raises `KafkaException` or
    `psycopg.Error` when a server does not answer.
    """
    found = _Findings()
    with Reader(settings) as reader:
        # Offsets, database, topics, in this order; see `audit_offsets`.
        committed = reader.committed(reader.partitions(settings.consumed_topics))
        state = read_books(invoice_dsn, cfo_dsn, settings.is_one_database, disturbed, found.report)
        ground = Ground(
            state.kinds,
            lambda invoice_id: invoice_id in state.deleted,
            disturbed,
            [round(delay.total_seconds() * 1000) for delay in settings.retry_delays],
            round(max_skew * 1000),
            lost,
        )
        _check_offsets(reader, committed, found)
        topics = _Topics(settings, committed, state.watched)
        topics.read(reader, found)
    letters.judge(topics.letters, topics.origins, ground, found.report)
    for key, count in topics.unhandled.items():
        found.report("behind", f"{key[0]}[{key[1]}]: {count} records from {committed[key]} on")
    _report_lost_doorbells(topics, state.watched, found)
    for invoice_id, watched in state.watched.items():
        if watched.failed_at is None or invoice_id not in topics.rung or invoice_id in topics.dead:
            continue
        if not any(first - _MARGIN <= watched.failed_at <= last for first, last in lost):
            event = letters.where(topics.rung[invoice_id])
            found.report("failed-not-in-dlq", f"invoice {invoice_id} is failed, its event {event} was handled")
    return Verdict(found.violations(), state.counts | dict(topics.counts))


def audit_offsets(settings: Settings, *, invoice_dsn: str) -> list[Violation]:
    """No offset is committed beyond what the database or a topic holds: `offset-beyond-end` and `doorbell-lost` only.

    At any moment, with consumers at work or dead: the offsets are read first, then the database, then the topics, so
    that whatever happens meanwhile can only add to what justifies them. Raises what `check` does.
    """
    found = _Findings()
    with Reader(settings) as reader:
        keys = reader.partitions(settings.consumed_topics)
        committed = reader.committed(keys)
        with connect(invoice_dsn) as connection:
            watched = {each.invoice_id: each for each in read_watched(connection) if each.failed_at is None}
        _check_offsets(reader, committed, found)
        if watched:
            topics = _Topics(settings, committed, watched)
            topics.read(reader, _Findings(), since=min(each.since for each in watched.values()) - _MARGIN)
            _report_lost_doorbells(topics, watched, found)
    return found.violations()


# -- findings ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Findings:
    details: dict[str, list[str]] = field(default_factory=dict)

    def report(self, kind: str, detail: str) -> None:
        self.details.setdefault(kind, []).append(detail)

    def violations(self) -> list[Violation]:
        """The first of each kind, and how many more there are."""
        found = []
        for kind, details in self.details.items():
            found += [Violation(kind, detail) for detail in details[:_SHOWN]]
            if len(details) > _SHOWN:
                found.append(Violation(kind, f"… and {len(details) - _SHOWN} more"))
        return found


# -- topics ------------------------------------------------------------------------------------------------------------


def _check_offsets(reader: Reader, committed: Mapping[Key, int], found: _Findings) -> None:
    for key, (_, end) in reader.bounds(committed).items():
        if committed[key] > end:
            found.report("offset-beyond-end", f"{key[0]}[{key[1]}]: committed {committed[key]}, the end is {end}")


class _Topics:
    """What all topics hold, of interest here. Values are not kept."""

    def __init__(self, settings: Settings, committed: Mapping[Key, int], watched: Mapping[int, Watched]) -> None:
        self._settings = settings
        self._committed = committed
        self._watched = watched
        self._levels = {topic: number for number, topic in enumerate(settings.retry_topics, 1)}
        self._levels[settings.dlq_topic] = DEAD
        self.letters: list[Letter] = []
        self.origins: dict[Place, bytes | None] = {}
        self.rung: dict[int, Place] = {}  # watched invoices with an event that was handled, and the last of them
        self.waiting: set[int] = set()  # invoices with a record that is to be handled again
        self.dead: set[int] = set()  # invoices with a dead letter
        self.unhandled: Counter[Key] = Counter()
        self.counts: Counter[str] = Counter()

    def read(self, reader: Reader, found: _Findings, since: datetime | None = None) -> None:
        """Our own topics, then the source topic; only what was written from `since` on."""
        own = [*self._levels, self._settings.replay_topic]
        for topics in (own, [self._settings.source_topic]):
            keys = reader.partitions(topics)
            bounds = reader.bounds(keys)
            starts = {key: low for key, (low, _) in bounds.items()} if since is None else reader.starts(keys, since)
            if topics is not own:
                # Those that retention has deleted.
                self.origins |= {
                    each.origin: None
                    for each in self.letters
                    if each.origin[:2] in bounds and each.origin[2] < bounds[each.origin[:2]][0]
                }
            wanted = {each.origin for each in self.letters}
            for batch in reader.read(starts):
                for message in batch:
                    self._take(message, wanted, found)

    def _take(self, message: Message, wanted: Collection[Place], found: _Findings) -> None:
        place = place_of(message)
        topic = place[0]
        self.counts[f"records {topic}"] += 1
        handled = topic == self._settings.dlq_topic or place[2] < self._committed[place[:2]]
        if not handled:
            self.unhandled[place[:2]] += 1
        value = message.value()
        try:
            event = envelope.decode(value if isinstance(value, bytes) else None)
        except RecordFault:
            event = None
        invoice_id = event.invoice_id if isinstance(event, Doorbell) else None
        if topic in self._levels:
            self._take_letter(message, invoice_id, found)
        if topic != self._settings.source_topic or place in wanted:
            self.origins[place] = letters.digest_of(message)
        if invoice_id is None:
            return
        self.counts["doorbells"] += topic == self._settings.source_topic
        if topic == self._settings.dlq_topic:
            self.dead.add(invoice_id)
        elif not handled and topic != self._settings.source_topic:
            self.waiting.add(invoice_id)
        elif handled and (watched := self._watched.get(invoice_id)) is not None and watched.is_rung_by(value):
            self.rung[invoice_id] = place

    def _take_letter(self, message: Message, invoice_id: int | None, found: _Findings) -> None:
        place = place_of(message)
        try:
            letter = letters.read_letter(message, self._levels[place[0]])
        except ValueError as error:
            found.report("headers-wrong", f"{letters.where(place)} (invoice {invoice_id}): {error}")
            return
        if invoice_id is not None and letter.invoice_id != invoice_id:
            found.report("headers-wrong", f"{letter}: its event is of invoice {invoice_id}")
        self.letters.append(letter)


def _report_lost_doorbells(topics: _Topics, watched: Mapping[int, Watched], found: _Findings) -> None:
    for invoice_id, place in topics.rung.items():
        if watched[invoice_id].failed_at is None and invoice_id not in topics.waiting and invoice_id not in topics.dead:
            found.report("doorbell-lost", f"invoice {invoice_id}: {letters.where(place)} is below the committed offset")
