"""The dead letters: list, show, replay, discard, count."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
import structlog

from consumer import deadletters, dlq_store, selections
from consumer.deadletters import Detail, Entry, Filter, Letter, Place, Stats
from consumer.dlq_topic import DeadLetterTopic, letter_of
from consumer.faults import Outage
from consumer.forecast import Forecaster
from consumer.redress import Redress
from consumer.replay_writer import ReplayWriter
from consumer.selections import Discarded, Replayed, Selection
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.topic_reader import TopicReader

_LOG: Final = structlog.get_logger("dlq")

_MAX_PAYLOAD: Final = 16_384  # characters shown


class DeadLetterQueue:
    """The dead-letter topic and what was done about its records. Not thread-safe; opens its clients when needed.

    Every method raises `Outage` when the brokers or the database cannot be used. What an instance has read it keeps
    (headers, no payloads), and reads only what came since.
    """

    def __init__(self, settings: Settings, service: CFOSyncService) -> None:
        self._service = service
        logger = logging.getLogger("kafka")
        self._reader = TopicReader(settings, logger)
        self._writer = ReplayWriter(settings, logger)
        self._topic = DeadLetterTopic(settings.dlq_topic, self._reader)
        self._redress = Redress(settings, self._topic, self._reader, self._writer)
        self._forecaster = Forecaster(settings, service.rules)

    def __enter__(self) -> DeadLetterQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the clients; the next call opens new ones."""
        self._reader.close()
        self._writer.close()
        self._redress.close()
        self._forecaster.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    def entries(self, wanted: Filter | None = None) -> list[Entry]:
        """The newest record of each failure that matches, with its state, oldest first."""
        wanted = wanted or Filter()
        return [entry for entry in self._matching(wanted) if wanted.matches(entry)]

    def show(self, partition: int, offset: int) -> Detail | None:
        """Everything about one record, newest of its failure or not; None when no such record stands on the topic."""
        place = Place(partition, offset)
        record = self._topic.records([place]).get(place)
        if record is None:
            return None
        letter = letter_of(record)
        newest = deadletters.newest(self._topic.letters(Filter(places=frozenset([place]))))
        latest = newest.get(letter.failure_id, letter)
        [entry] = self._judge([letter])
        payload, kind, is_cut = _printable(record.value)
        return Detail(
            entry=entry,
            superseded_by=latest.place if latest.place != place else None,
            headers=[(name, _text(value)) for name, value in record.headers],
            key=None if record.key is None else _text(record.key),
            payload=payload,
            payload_format=kind,
            payload_bytes=len(record.value or b""),
            is_cut=is_cut,
            invoice=None if letter.invoice_id is None else self._service.status(letter.invoice_id),
            forecast=self._forecaster.of_record(record.value),
        )

    def stats(self) -> Stats:
        """All dead letters on the topic, counted by failure."""
        letters = list(self._topic.letters(Filter(state="all")))
        times = [at for letter in letters if (at := letter.dead_lettered_at) is not None]
        return deadletters.count(self._judge(list(deadletters.newest(letters).values())), min(times, default=None))

    def select(self, wanted: Filter, *, force: bool = False) -> Selection:
        """What `replay` would publish, and what it would leave alone and why. Publishes nothing."""
        selection = selections.select_for_replay(self._matching(wanted), wanted, force=force)
        return self._with_missing(selection, wanted)

    def select_discard(self, wanted: Filter) -> Selection:
        """What `discard` would mark, and what it would leave alone and why."""
        return self._with_missing(selections.select_for_discard(self._matching(wanted), wanted), wanted)

    def _with_missing(self, selection: Selection, wanted: Filter) -> Selection:
        """Add the places that were asked for by name and are not there, or superseded."""
        if not wanted.places:
            return selection
        excluded = Counter(selection.excluded)
        letters = {letter.place: letter for letter in self._topic.letters(wanted)}
        newest = deadletters.newest(letters.values())
        for place in sorted(wanted.places):
            letter = letters.get(place)
            if letter is None:
                excluded[f"no dead letter at {place}"] += 1
            elif (latest := newest[letter.failure_id].place) != place:
                excluded[f"{place} is superseded by {latest}"] += 1
        return Selection(selection.entries, dict(excluded))

    def _matching(self, wanted: Filter) -> list[Entry]:
        """Those that match, whatever their state; which are the newest is decided before."""
        newest = deadletters.newest(self._topic.letters(wanted)).values()
        return deadletters.oldest_first(self._judge([letter for letter in newest if wanted.matches_letter(letter)]))

    def _judge(self, letters: Sequence[Letter]) -> list[Entry]:
        """How they stand. Those that turn out to be booked are written down as resolved."""
        entries = self._service.read(lambda connection: dlq_store.judge(connection, letters))
        news = [
            entry
            for entry in entries
            if entry.state == "resolved" and (entry.handling is None or entry.handling.state != "resolved")
        ]
        if news:
            try:
                self._service.read(lambda connection: dlq_store.record_resolved(connection, news))
            except Outage as outage:  # such as a read-only stand-by: what we tell is true all the same
                _LOG.warning("cannot record resolved dead letters", error=str(outage))
        return entries

    # -- acting --------------------------------------------------------------------------------------------------------

    def replay(
        self,
        wanted: Filter,
        *,
        by: str,
        reason: str | None = None,
        force: bool = False,
        rate: float | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        stop: threading.Event | None = None,
    ) -> Replayed:
        """Publish what `select` gives to the replay topic: each record once, whoever else does the same, and also when
        an earlier call was interrupted at any point.

        `rate` is records per second. `progress` is called with how many are done, and of how many. Setting `stop` ends
        it after the chunk in hand. Raises `Outage`: what was published stays so, and the next call goes on.
        """
        selection = self.select(wanted, force=force)
        return self._redress.replay(
            selection, by=by, reason=reason, force=force, rate=rate, progress=progress, stop=stop or threading.Event()
        )

    def discard(self, wanted: Filter, *, by: str, reason: str) -> Discarded:
        """Mark what `select_discard` gives as not to be booked: final, whatever comes back of it.

        Raises `ValueError` without a reason.
        """
        if not reason.strip():
            raise ValueError("a reason is required")
        return self._redress.discard(self.select_discard(wanted), by=by, reason=reason)


def _printable(value: bytes | None) -> tuple[str | None, Literal["json", "text", "bytes", "none"], bool]:
    """A payload for people: pretty JSON with its numbers as they are, else text, else text with bytes escaped."""
    if value is None:
        return None, "none", False
    kind: Literal["json", "text", "bytes"]
    try:
        msgspec.json.decode(value)
        text, kind = msgspec.json.format(value, indent=2).decode(), "json"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            text, kind = value.decode(), "text"
        except UnicodeDecodeError:
            text, kind = value[:_MAX_PAYLOAD].decode("utf-8", "backslashreplace"), "bytes"
    return text[:_MAX_PAYLOAD], kind, len(text) > _MAX_PAYLOAD or (kind == "bytes" and len(value) > _MAX_PAYLOAD)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "backslashreplace")
