"""What happens on the topics from the start of the demo on: read, never written, and no offset committed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from consumer import broker, envelope, headers, topics
from consumer.broker import Record
from consumer.envelope import Doorbell
from consumer.faults import Outage, RecordFault
from consumer.headers import FailureHeaders, Origin
from consumer.settings import Settings

Place: TypeAlias = tuple[str, int]  # topic, partition

_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A record of a retry topic or of the dead-letter topic, and what its headers say."""

    record: Record
    carried: FailureHeaders


@dataclass(frozen=True, slots=True)
class Lag:
    """Of one topic: what the group has committed, and where the topic ends; sums over its partitions."""

    committed: int
    end: int
    partitions: int
    is_zero: bool


class Tape:
    """Follows the source topic, the retry topics and the dead-letter topic; starts at their ends.

    All methods raise `Outage` when no broker answers.
    """

    def __init__(self, settings: Settings) -> None:
        logger = logging.getLogger("kafka")
        self._settings = settings
        self._admin = broker.make_admin(settings, logger)
        # In the group's name, to ask for its offsets; without `subscribe` it never joins.
        self._consumer = Consumer(
            {
                **broker.client_config(settings),
                "group.id": settings.group_id,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 100,
            },
            logger=logger,
        )
        self._records: list[Record] = []
        followed = (settings.source_topic, *settings.retry_topics, settings.dlq_topic)
        counts = topics.describe(self._admin)
        if missing := [topic for topic in followed if topic not in counts]:
            raise Outage("topics", f"no topic {', '.join(missing)}: run `cfo-sync topics create`")
        self._places = [(topic, number) for topic in followed for number in range(counts[topic])]
        self._starts = self._ends(self._places)
        self._next = dict(self._starts)
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._starts.items()])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def records(self, *topics: str) -> Iterator[Record]:
        """What was written to these topics since the start, up to now."""
        self._catch_up()
        return (record for record in self._records if record.topic in topics)

    def events(self, invoice_id: int) -> list[Record]:
        """The events about this invoice."""
        records = self.records(self._settings.source_topic)
        return [record for record in records if envelope.invoice_id_of_key(record.key) == invoice_id]

    def doorbells(self, invoice_id: int) -> list[Record]:
        """The events that said that this invoice is paid."""
        return [record for record in self.records(self._settings.source_topic) if _rings_for(record, invoice_id)]

    def retries(self) -> list[Failure]:
        """The records of the three retry topics."""
        topics = self._settings.retry_topics
        return [self._failure(record, topics.index(record.topic) + 1) for record in self.records(*topics)]

    def dead_letters(self) -> list[Failure]:
        """The records of the dead-letter topic."""
        return [self._failure(record, 0) for record in self.records(self._settings.dlq_topic)]

    def source_of(self, failure: Failure) -> Record | None:
        """The record of the source topic that failed; None if it was written before the start, or stands elsewhere."""
        origin = failure.carried.origin
        for record in self._records:
            if (record.topic, record.partition, record.offset) == (origin.topic, origin.partition, origin.offset):
                return record
        return None

    def began_before(self, failure: Failure) -> bool:
        """Whether the record that failed was written before the start."""
        origin = failure.carried.origin
        return origin.offset < self._starts.get((origin.topic, origin.partition), 0)

    def lag(self, topic: str) -> Lag:
        """How far the group is behind on one of the topics."""
        places = [place for place in self._places if place[0] == topic]
        ends = self._ends(places)
        try:
            found = self._consumer.committed([TopicPartition(*place) for place in places], _TIMEOUT)
        except KafkaException as error:
            raise _outage(error) from error
        # Nothing committed yet is a negative offset.
        committed = {(each.topic, each.partition): max(0, each.offset) for each in found}
        return Lag(sum(committed.values()), sum(ends.values()), len(places), committed == ends)

    def _failure(self, record: Record, attempt: int) -> Failure:
        here = Origin(record.topic, record.partition, record.offset, record.timestamp)
        carried = headers.decode(record.headers, here, attempt=attempt, now=datetime.now(UTC), version="")
        return Failure(record, carried)

    def _catch_up(self) -> None:
        ends = self._ends(self._places)
        deadline = time.monotonic() + _TIMEOUT
        while any(self._next[place] < end for place, end in ends.items()):
            if time.monotonic() > deadline:
                raise Outage("broker", f"cannot read the topics to their ends within {_TIMEOUT:g} s")
            try:
                # One at a time: several would wait the whole timeout for a full batch.
                message = self._consumer.poll(0.2)
            except KafkaException as error:
                raise _outage(error) from error
            if message is not None:
                self._take(message)

    def _take(self, message: Message) -> None:
        place = message.topic() or "", message.partition() or 0
        offset = message.offset() or 0
        error = message.error()
        if error is None:
            self._records.append(Record.of(message))
            self._next[place] = offset + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            # Behind the markers of Debezium's transactions, which are no records.
            self._next[place] = offset

    def _ends(self, places: Iterable[Place]) -> dict[Place, int]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        futures = self._admin.list_offsets(
            {TopicPartition(*place): latest for place in places}, request_timeout=_TIMEOUT
        )
        try:
            return {(each.topic, each.partition): future.result(_TIMEOUT).offset for each, future in futures.items()}
        except KafkaException as error:
            raise _outage(error) from error


def _rings_for(record: Record, invoice_id: int) -> bool:
    try:
        event = envelope.decode(record.value)
    except RecordFault:
        return False
    return isinstance(event, Doorbell) and event.invoice_id == invoice_id


def _outage(error: KafkaException) -> Outage:
    return Outage("broker", f"Kafka does not answer: {error.args[0].str()}")
