"""The dead-letter topic, read into letters: what the headers say, without the payloads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from confluent_kafka import Message

from consumer import broker, envelope, headers
from consumer.broker import Record
from consumer.deadletters import Filter, Letter, Place
from consumer.envelope import Doorbell
from consumer.faults import RecordFault
from consumer.headers import FailureHeaders, Origin
from consumer.pipeline import VERSION
from consumer.topic_reader import TopicReader

CLOCK_SKEW: Final = timedelta(minutes=5)
"""What the clocks of two machines that write to one topic may differ."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """The last record read of a partition, to notice that the topic was made anew."""

    offset: int
    failure_id: str
    dead_lettered_at: datetime | None

    @classmethod
    def of(cls, letter: Letter) -> _Anchor:
        return cls(letter.place.offset, letter.failure_id, letter.dead_lettered_at)


class DeadLetterTopic:
    """Reads letters. What it has read to the end it keeps, and reads only what came since. Not thread-safe."""

    def __init__(self, name: str, reader: TopicReader) -> None:
        self._name = name
        self._reader = reader
        self._letters: dict[Place, Letter] = {}
        self._anchors: dict[int, _Anchor] = {}
        self._floors: dict[int, int] = {}  # by partition: from where on all is known, up to the anchor

    def records(self, places: Iterable[Place]) -> dict[Place, Record]:
        """The records at these places, payload and all; those that are still there. Raises `Outage`."""
        found = self._reader.pick(self._name, [(place.partition, place.offset) for place in places])
        return {Place(*where): record for where, record in found.items()}

    def letters(self, wanted: Filter) -> Collection[Letter]:
        """All letters among which are those that match and every newer one of the same failures. Raises `Outage`."""
        bounds = self._reader.bounds(self._name)
        lows = {number: low for number, (low, _) in bounds.items()}
        if not self._reaches(lows):
            starts = self._starts(wanted, bounds) or lows
            if not self._reaches(starts):
                # One record more where there is none from there on: it tells a topic made anew.
                self._forget({n: max(low, min(starts[n], high - 1)) for n, (low, high) in bounds.items()})
        self._read_on(bounds)
        for number, low in lows.items():
            if number not in self._anchors and self._floors.get(number, low) > low:
                del self._floors[number]  # nothing would tell: do not rely on it next time
        for place in [place for place in self._letters if place.offset < lows.get(place.partition, 0)]:
            del self._letters[place]  # by retention
        return self._letters.values()

    def _reaches(self, starts: Mapping[int, int]) -> bool:
        """Whether all that stands from these offsets on is known, but for what came since."""
        return all(self._floors.get(number, start + 1) <= start for number, start in starts.items())

    def _forget(self, starts: Mapping[int, int]) -> None:
        """Begin anew, at these offsets."""
        self._letters.clear()
        self._anchors.clear()
        self._floors = dict(starts)

    def _read_on(self, bounds: Mapping[int, tuple[int, int]]) -> None:
        """Read what came since, and the last known record of each partition again: it tells a topic made anew."""
        lows = {number: low for number, (low, _) in bounds.items()}
        for number, anchor in list(self._anchors.items()):
            low, high = bounds.get(number, (0, 0))
            if high <= anchor.offset:
                self._forget(lows)
                break
            if low > anchor.offset:
                del self._anchors[number]
                self._floors[number] = low
        starts = {
            number: self._anchors[number].offset if number in self._anchors else max(low, self._floors.get(number, low))
            for number, low in lows.items()
        }
        unchecked = set(self._anchors)
        for batch in self._reader.read(self._name, starts, bounds):
            for message in batch:
                letter = _letter(message)
                number = letter.place.partition
                if number in unchecked:
                    unchecked.remove(number)
                    if _Anchor.of(letter) != self._anchors[number]:
                        # Another record at the same offset: the topic was deleted and made anew.
                        self._forget(lows)
                        self._read_on(bounds)
                        return
                self._letters[letter.place] = letter
                self._anchors[number] = _Anchor.of(letter)

    def _starts(self, wanted: Filter, bounds: Mapping[int, tuple[int, int]]) -> dict[int, int] | None:
        """Where to begin, so that nothing is missed; None for the beginning.

        A newer record of the same failure is written later, but may stand in another partition.
        """
        moment = wanted.since
        firsts: dict[int, int] = {}
        for place in wanted.places:
            firsts[place.partition] = min(place.offset, firsts.get(place.partition, place.offset))
        if not firsts and wanted.partition is not None and wanted.first_offset is not None:
            firsts = {wanted.partition: wanted.first_offset}
        if firsts:
            spans = {
                number: (low, min(high, max(firsts[number], low) + 1))
                for number, (low, high) in bounds.items()
                if number in firsts
            }
            found = [_letter(message) for batch in self._reader.read(self._name, firsts, spans) for message in batch]
            times = [letter.dead_lettered_at for letter in found]
            if len(found) < len(firsts) or None in times:
                return None
            moment = max(min(at for at in times if at is not None), moment or _EPOCH)
        if moment is None:
            return None
        starts = self._reader.offsets_at(self._name, max(moment, _EPOCH + CLOCK_SKEW) - CLOCK_SKEW, bounds)
        return {number: min(start, firsts.get(number, start)) for number, start in starts.items()}


def letter_of(record: Record) -> Letter:
    headers_found = headers_of(record)
    invoice_id = headers_found.invoice_id
    if invoice_id is None:
        invoice_id = _invoice_id(record.key, lambda: record.value)
    return Letter.of(Place(record.partition, record.offset), record.timestamp, headers_found, invoice_id)


def _letter(message: Message) -> Letter:
    """The letter alone: the payload of a record that names its invoice in its headers is not even looked at."""
    kind, timestamp = message.timestamp()
    record = Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp=timestamp if kind else -1,
        key=None,
        value=None,
        headers=broker.headers_of(message),
    )
    headers_found = headers_of(record)
    invoice_id = headers_found.invoice_id
    if invoice_id is None:
        invoice_id = _invoice_id(_as_bytes(message.key()), lambda: _as_bytes(message.value()))
    return Letter.of(Place(record.partition, record.offset), record.timestamp, headers_found, invoice_id)


def headers_of(record: Record) -> FailureHeaders:
    here = Origin(record.topic, record.partition, record.offset, record.timestamp)
    now = headers.moment_of(record.timestamp) or _EPOCH
    found = headers.decode(record.headers, here, attempt=0, now=now, version=VERSION)
    # How many retries it had is only said in the header: on this topic stand all.
    for name, value in record.headers:
        if name == headers.PREFIX + "attempt" and value is not None and value.isdigit() and len(value) < 10:
            return replace(found, attempt=int(value))
    return found


def _invoice_id(key: bytes | None, value: Callable[[], bytes | None]) -> int | None:
    """Which invoice a record without headers of ours is about, if that is clear."""
    named = envelope.invoice_id_of_key(key)
    if named is not None:
        return named
    try:
        event = envelope.decode(value())
    except RecordFault:
        return None
    return event.invoice_id if isinstance(event, Doorbell) else None


def _as_bytes(value: object) -> bytes | None:
    return value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else None
