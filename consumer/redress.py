"""Doing something about dead letters: replay or discard, safe beside others who do the same and against any crash.

A replay is done in chunks. For each: hold the lock, judge anew, claim in the database, write to the replay topic, mark.
Whoever holds the lock knows that no living process is in the middle of a chunk, so a claim that is not marked belongs
to one that died or lost its connection: its replay is looked for on the replay topic, and published if it is not there.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

import psycopg
from psycopg import Connection

from consumer import dlq_store, headers, sessions
from consumer.broker import Publication, Record
from consumer.deadletters import Entry, Letter, Place
from consumer.dlq_store import Claim
from consumer.dlq_topic import CLOCK_SKEW, DeadLetterTopic, headers_of, letter_of
from consumer.faults import Outage
from consumer.pipeline import VERSION
from consumer.replay_writer import InDoubt, Refused, ReplayWriter
from consumer.selections import Discarded, Replayed, Selection, why_not_discarded, why_not_replayed
from consumer.sessions import Session, Verdict
from consumer.settings import Settings
from consumer.topic_reader import TopicReader

T = TypeVar("T")

CHUNK: Final = 500
_LOCK_PATIENCE: Final = 60.0  # seconds; others hold the lock for a chunk, about a second
_TRIES: Final = 3  # of a transaction that met somebody else
_REPLAYS: Final = uuid.UUID("2d1c6d63-9c0f-4f0e-8b55-6b2f1f6a7d3e")


@dataclass(slots=True)
class _Sent:
    """What became of the selected records so far."""

    published: int = 0
    settled: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


class Redress:
    """Replays and discards. Not thread-safe; opens its clients when needed."""

    def __init__(self, settings: Settings, topic: DeadLetterTopic, reader: TopicReader, writer: ReplayWriter) -> None:
        self._replay_topic = settings.replay_topic
        self._topic = topic
        self._reader = reader
        self._writer = writer
        self._session = Session(settings.invoice_dsn.get_secret_value(), settings.invoice_database)

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._session.close()

    def replay(
        self,
        selection: Selection,
        *,
        by: str,
        reason: str | None,
        force: bool,
        rate: float | None,
        progress: Callable[[int, int], None],
        stop: threading.Event,
    ) -> Replayed:
        """Publish what is selected to the replay topic, each once; see `DeadLetterQueue.replay`. Raises `Outage`."""
        by, reason = _storable(by), None if reason is None else _storable(reason)
        total, done = len(selection.entries), 0
        sum_ = _Sent(excluded=Counter(selection.excluded))
        size = CHUNK if rate is None else max(1, min(CHUNK, int(rate)))
        if total:
            self._reader.bounds(self._replay_topic)  # so that a missing topic is told before anything is claimed
        progress(0, total)
        for first in range(0, total, size):
            if stop.is_set():
                break
            started = time.monotonic()
            chunk = selection.entries[first : first + size]
            self._replay_chunk(chunk, sum_, by=by, reason=reason, force=force)
            done += len(chunk)
            progress(done, total)
            if rate is not None and done < total:
                stop.wait(max(0.0, len(chunk) / rate - (time.monotonic() - started)))
        return Replayed(
            selected=total,
            published=sum_.published,
            settled=sum_.settled,
            excluded=dict(+sum_.excluded),
            failed=dict(sum_.failed),
            not_reached=total - done,
        )

    def _replay_chunk(self, chunk: Sequence[Entry], sent: _Sent, *, by: str, reason: str | None, force: bool) -> None:
        records = self._topic.records([entry.place for entry in chunk])
        there: list[Entry] = []
        for entry in chunk:
            record = records.get(entry.place)
            if record is None or letter_of(record).failure_id != entry.letter.failure_id:
                sent.excluded["gone from the topic meanwhile"] += 1
            else:
                there.append(entry)
        with self._locked() as connection:
            doubtful, fresh = self._claim(connection, there, sent, by=by, reason=reason, force=force)
            if doubtful or fresh:
                self._publish(connection, doubtful, fresh, records, sent)

    def _claim(
        self,
        connection: Connection,
        entries: Sequence[Entry],
        sent: _Sent,
        *,
        by: str,
        reason: str | None,
        force: bool,
    ) -> tuple[list[Claim], list[Claim]]:
        """Judge them anew and claim those that may be published; gives claims in doubt, taken over as they are, and
        new ones."""
        seen = {entry.letter.failure_id: entry.replays for entry in entries}

        def claim(connection: Connection) -> tuple[list[Claim], list[Claim], set[str], Counter[str]]:
            excluded = Counter[str]()
            locked = dlq_store.lock_rows(connection, [entry.letter for entry in entries])
            doubtful: list[Claim] = []
            fresh: list[Claim] = []
            for entry in dlq_store.judge(connection, [entry.letter for entry in entries]):
                failure_id, handling = entry.letter.failure_id, entry.handling
                if entry.is_in_doubt and handling is not None and handling.replay_id:
                    doubtful.append(Claim(entry, handling.replay_count, handling.replay_id))
                elif entry.replays != seen[failure_id]:
                    excluded["replayed by somebody else meanwhile"] += 1
                elif not force and (why := why_not_replayed(entry)) is not None:
                    excluded[f"{why}, meanwhile"] += 1
                else:
                    number = entry.replays + 1
                    fresh.append(Claim(entry, number, replay_id(failure_id, number)))
            ours = dlq_store.claim(connection, fresh, locked, by=by, reason=reason)
            return doubtful, fresh, ours, excluded

        doubtful, fresh, ours, excluded = self._transaction(connection, claim)
        sent.excluded += excluded
        sent.excluded["changed by somebody else meanwhile"] += len(fresh) - len(ours)
        return doubtful, [each for each in fresh if each.entry.letter.failure_id in ours]

    def _publish(
        self,
        connection: Connection,
        doubtful: Sequence[Claim],
        fresh: Sequence[Claim],
        records: Mapping[Place, Record],
        sent: _Sent,
    ) -> None:
        """Publish what is not published yet, and mark it."""
        todo = {claim.replay_id: claim for claim in (*doubtful, *fresh)}
        publications = {
            claim.replay_id: self._publication(records[claim.entry.place], claim) for claim in todo.values()
        }
        in_doubt = list(doubtful)
        for is_last_try in (False, True):
            try:
                if in_doubt:
                    self._writer.take_over()
                    found = self._find_replays(in_doubt)
                    present = [claim for claim in in_doubt if claim.replay_id in found]
                    self._mark(connection, present, todo)
                    sent.settled += len(present)
                self._write(connection, list(todo.values()), publications, todo, sent)
            except InDoubt as doubt:
                # The brokers did not answer, or another writer took over while we had no lock.
                if is_last_try:
                    raise Outage("broker", f"Kafka: {self._replay_topic}: {doubt}") from doubt
                in_doubt = list(todo.values())
            else:
                return

    def _write(
        self,
        connection: Connection,
        claims: Sequence[Claim],
        publications: Mapping[str, Publication],
        todo: dict[str, Claim],
        sent: _Sent,
    ) -> None:
        if not self._writer.is_open:
            self._writer.take_over()
        try:
            self._writer.write([publications[claim.replay_id] for claim in claims])
        except Refused as refused:
            if len(claims) > 1:
                # One that is too large takes all with it that came in the same request.
                middle = len(claims) // 2
                self._write(connection, claims[:middle], publications, todo, sent)
                self._write(connection, claims[middle:], publications, todo, sent)
                return
            why = str(refused)
            self._transaction(connection, lambda connection: dlq_store.note_refusal(connection, claims[0], why))
            del todo[claims[0].replay_id]
            sent.failed[why] += 1
        else:
            self._mark(connection, claims, todo)
            sent.published += len(claims)

    def _mark(self, connection: Connection, claims: Sequence[Claim], todo: dict[str, Claim]) -> None:
        """They are published. A row that a booking holds is resolved in a moment; else the next replay settles it."""
        for claim in claims:
            del todo[claim.replay_id]
        left, topic = list(claims), self._replay_topic
        for wait in (0.0, 0.1, 0.4):
            if not left:
                return
            time.sleep(wait)
            held = set(self._transaction(connection, lambda c, left=left: dlq_store.mark_replayed(c, left, topic)))  # type: ignore[misc]
            left = [claim for claim in left if claim.entry.letter.failure_id in held]

    def _publication(self, record: Record, claim: Claim) -> Publication:
        """The original bytes, to be tried from anew."""
        carried = replace(
            headers_of(record),
            attempt=0,
            not_before=None,
            replay_id=claim.replay_id,
            replay_count=claim.replay_count,
            consumer_version=VERSION,
        )
        return Publication(
            self._replay_topic, record.key, record.value, headers.encode(carried, record.headers), record
        )

    def _find_replays(self, claims: Sequence[Claim]) -> set[str]:
        """Which of these stand on the replay topic."""
        topic = self._replay_topic
        bounds = self._reader.bounds(topic)
        claimed = [each.entry.handling.updated_at for each in claims if each.entry.handling is not None]
        # Claims made by this very call have no time in hand: they are younger than any that does.
        since = min(claimed, default=datetime.now(UTC)) - 2 * CLOCK_SKEW
        wanted = {each.replay_id.encode() for each in claims}
        name = headers.PREFIX + "replay-id"
        found: set[str] = set()
        for batch in self._reader.read(topic, self._reader.offsets_at(topic, since, bounds), bounds):
            for message in batch:
                for key, value in Record.of(message).headers:
                    if key == name and value in wanted:
                        found.add(value.decode())
        return found

    def discard(self, selection: Selection, *, by: str, reason: str) -> Discarded:
        """Mark what is selected as not to be booked; see `DeadLetterQueue.discard`. Raises `Outage`."""
        by, reason = _storable(by), _storable(reason)
        excluded = Counter(selection.excluded)
        discarded = 0
        for first in range(0, len(selection.entries), 10 * CHUNK):
            letters = [entry.letter for entry in selection.entries[first : first + 10 * CHUNK]]
            seen = {entry.letter.failure_id: entry.replays for entry in selection.entries}

            def discard(
                connection: Connection, letters: Sequence[Letter] = letters, seen: Mapping[str, int] = seen
            ) -> tuple[int, Counter[str]]:
                left_alone = Counter[str]()
                locked = dlq_store.lock_rows(connection, letters)
                chosen = []
                for entry in dlq_store.judge(connection, letters):
                    why = why_not_discarded(entry)
                    if why is None and entry.replays != seen[entry.letter.failure_id]:
                        why = "replayed by somebody else"
                    if why is None:
                        chosen.append(entry)
                    else:
                        left_alone[f"{why}, meanwhile"] += 1
                ours = dlq_store.discard(connection, chosen, locked, by=by, reason=reason)
                if len(ours) < len(chosen):
                    left_alone["changed by somebody else meanwhile"] += len(chosen) - len(ours)
                return len(ours), left_alone

            with self._locked() as connection:
                count, left_alone = self._transaction(connection, discard)
            discarded += count
            excluded += left_alone
        return Discarded(discarded, dict(excluded))

    # -- the lock ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[Connection]:
        """A connection that holds the lock, as long as it lives: nobody else replays or discards meanwhile."""
        try:
            self._replace_broken()
            with self._session.connection() as connection:
                deadline = time.monotonic() + _LOCK_PATIENCE
                while not dlq_store.try_lock(connection):
                    if time.monotonic() > deadline:
                        raise Outage("busy", "another replay or discard is at work; try again")
                    time.sleep(0.05)
                try:
                    yield connection
                finally:
                    if not connection.closed:
                        dlq_store.unlock(connection)
        except psycopg.Error as error:
            self._session.close()
            raise sessions.outage_of(error, self._session.database) from error

    def _replace_broken(self) -> None:
        """Let go of a connection that broke while it was idle."""
        try:
            with self._session.connection() as connection:
                connection.execute("SELECT")
        except psycopg.Error:
            self._session.close()

    def _transaction(self, connection: Connection, act: Callable[[Connection], T]) -> T:
        """Act in a transaction, again when others were in the way. Never on another connection: the lock is on this."""
        for left in reversed(range(_TRIES)):
            try:
                with connection.transaction():
                    return act(connection)
            except psycopg.Error as error:
                meaning = sessions.meaning_of(error)
                if not left or meaning.verdict is Verdict.LOST or not meaning.again:
                    raise
        raise AssertionError


def replay_id(failure_id: str, number: int) -> str:
    """The id of a failure's replay with this number: the same whoever computes it."""
    return str(uuid.uuid5(_REPLAYS, f"{failure_id}/{number}"))


def _storable(text: str) -> str:
    """As PostgreSQL can hold it: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
