"""Reads a topic from given offsets to its end as of now, outside any group: nothing is committed, nobody rebalances."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer import broker
from consumer.broker import Record
from consumer.faults import Outage
from consumer.settings import Settings

T = TypeVar("T")

_TIMEOUT: Final = 15.0  # seconds for one question to a broker
_SOON: Final = 3.0  # seconds, when no broker takes a connection
_SILENCE: Final = 30.0  # seconds without a record or an end: the broker is gone
_BATCH: Final = 2000


class TopicReader:
    """One consumer, assigned by hand for each reading. Not thread-safe; one reading at a time.

    Only committed records are seen. Every method raises `Outage` when no broker answers or the topic is not there.
    """

    def __init__(self, settings: Settings, logger: Any) -> None:
        self._settings = settings
        self._logger = logger
        self._consumer: Consumer | None = None
        self._is_down = False  # no broker took a connection, and none has answered since
        self._cause: str | None = None

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the client; the next call opens a new one."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """By partition: the first offset that stands there, and the one that the next record will get."""
        consumer = self._open()
        found = self._ask(lambda: self._metadata(consumer, topic)).topics[topic]
        self._is_down, self._cause = False, None
        if found.error is not None or not found.partitions:
            why = found.error.str() if found.error else "it has no partitions"
            raise Outage(
                "topics", f"topic {topic} cannot be read: {why}; `cfo-sync topics create` makes what is missing"
            )
        bounds: dict[int, tuple[int, int]] = {}
        for number in sorted(found.partitions):
            where = TopicPartition(topic, number)
            bounds[number] = self._ask(lambda where=where: consumer.get_watermark_offsets(where, _TIMEOUT))  # type: ignore[misc]
        return bounds

    def offsets_at(self, topic: str, moment: datetime, bounds: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """By partition: the offset of the first record written at `moment` or later; the end when there is none."""
        consumer = self._open()
        at = max(0, int(moment.timestamp() * 1000))
        asked = [TopicPartition(topic, number, at) for number in bounds]
        answers = self._ask(lambda: consumer.offsets_for_times(asked, _TIMEOUT))
        for each in answers:
            if each.error is not None:
                raise Outage("broker", f"Kafka: {topic}: {each.error.str()}")
        return {each.partition: each.offset if each.offset >= 0 else bounds[each.partition][1] for each in answers}

    def read(
        self, topic: str, starts: Mapping[int, int], bounds: Mapping[int, tuple[int, int]]
    ) -> Iterator[list[Message]]:
        """The records from `starts` on, up to the end that `bounds` gives, in batches.

        Partitions that `starts` does not name are not read.
        """
        left = {
            number: bounds[number][1]
            for number, start in starts.items()
            if number in bounds and max(start, bounds[number][0]) < bounds[number][1]
        }
        if not left:
            return
        consumer = self._open()
        assigned = [TopicPartition(topic, number, max(starts[number], bounds[number][0])) for number in left]
        self._ask(lambda: consumer.assign(assigned))
        try:
            heard = time.monotonic()
            while left:
                batch = []
                # It waits the whole timeout for a batch that is not full.
                for message in self._ask(lambda: consumer.consume(_BATCH, 0.02)):
                    heard, self._is_down = time.monotonic(), False
                    number, offset, error = message.partition() or 0, message.offset() or 0, message.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise Outage("broker", f"Kafka: {topic}: {error.str()}")
                    end = left.get(number)
                    if end is None:
                        continue
                    # What stands before the end may be a transaction's marker, which only this event tells.
                    if error is not None or offset >= end - 1:
                        del left[number]
                    if error is None and offset < end:
                        batch.append(message)
                if batch:
                    yield batch
                silence = time.monotonic() - heard
                if self._is_down and silence > _SOON:
                    raise Outage("broker", f"no Kafka broker answers: {self._cause or 'no connection'}")
                if silence > _SILENCE:
                    raise Outage("broker", f"topic {topic} could not be read to its end: Kafka has gone silent")
        finally:
            consumer.unassign()

    def pick(self, topic: str, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Record]:
        """The records at these partitions and offsets, those that are still there. Reads what lies between them too."""
        wanted: dict[int, set[int]] = {}
        for partition, offset in places:
            wanted.setdefault(partition, set()).add(offset)
        bounds = self.bounds(topic)
        spans = {
            number: (bounds[number][0], min(bounds[number][1], max(offsets) + 1))
            for number, offsets in wanted.items()
            if number in bounds
        }
        starts = {number: min(wanted[number]) for number in spans}
        found: dict[tuple[int, int], Record] = {}
        for batch in self.read(topic, starts, spans):
            for message in batch:
                record = Record.of(message)
                if record.offset in wanted[record.partition]:
                    found[record.partition, record.offset] = record
        return found

    def _metadata(self, consumer: Consumer, topic: str) -> Any:
        """Waits for a slow broker, but not where none takes a connection or lets us in."""
        try:
            return consumer.list_topics(topic, _SOON)
        except KafkaException:
            consumer.poll(0.1)  # it calls `_erred`
            if self._is_down or self._cause is not None:
                raise
        return consumer.list_topics(topic, _TIMEOUT - _SOON)

    def _open(self) -> Consumer:
        if self._consumer is None:
            self._cause = None
            # Questions to a broker wait behind the fetch that it has in hand, also when nobody wants that any more.
            self._consumer = broker.make_consumer(
                self._settings, self._logger, self._erred, lambda *_: None, fetch_wait_ms=10
            )
        return self._consumer

    def _erred(self, error: KafkaError) -> None:
        self._is_down = self._is_down or error.code() == KafkaError._ALL_BROKERS_DOWN
        self._cause = broker.cause_of(error) or self._cause

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask a broker; again for a while when partitions are moving to other brokers."""
        try:
            return broker.ask(question)
        except KafkaException as error:
            found: KafkaError = error.args[0]
            away = found.code() in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
            if away and self._consumer is not None:
                self._consumer.poll(0)  # it calls `_erred`
            why = self._cause or found.str()
            raise Outage("broker", ("no Kafka broker answers: " if away else "Kafka: ") + why) from error
