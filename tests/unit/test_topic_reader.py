"""A reading goes to its own end, whatever else the client still delivers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from confluent_kafka import KafkaError, Message, TopicPartition

from consumer.settings import Settings
from consumer.topic_reader import TopicReader

SETTINGS = Settings(_env_file=None, invoice_dsn="postgresql://127.0.0.1:1/none")  # type: ignore[call-arg,arg-type]


def record(topic: str, offset: int) -> Message:
    return Message(topic=topic, partition=0, offset=offset, value=b"{}")


def end(topic: str, offset: int) -> Message:
    return Message(topic=topic, partition=0, offset=offset, error=KafkaError(KafkaError._PARTITION_EOF))


class Deliveries:
    """What a client delivers, in this order."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)

    def assign(self, _: Sequence[TopicPartition]) -> None:
        pass

    def unassign(self) -> None:
        pass

    def consume(self, *_: object) -> list[Message]:
        return [self._messages.pop(0)] if self._messages else []


def read(*messages: Message) -> list[int | None]:
    reader = TopicReader(SETTINGS, logging.getLogger("kafka"))
    reader._consumer = Deliveries(*messages)  # type: ignore[assignment]
    return [message.offset() for batch in reader.read("dlq", {0: 0}, {0: (0, 3)}) for message in batch]


def test_it_ends_with_the_last_record_or_behind_a_marker() -> None:
    assert read(record("dlq", 0), record("dlq", 1), record("dlq", 2)) == [0, 1, 2]
    assert read(record("dlq", 0), record("dlq", 1), end("dlq", 3)) == [0, 1]


def test_the_end_and_the_records_of_another_reading_are_passed_over() -> None:
    assert read(end("replay", 9), end("dlq", 1), record("replay", 7), record("dlq", 0), end("dlq", 4)) == [0]
