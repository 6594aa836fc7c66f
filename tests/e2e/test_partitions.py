"""`Partitions` on a real consumer: what is not handled is never passed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from consumer import broker
from consumer.partitions import Partitions, key_of
from tests.e2e.harness import Pipeline, wait_until


@pytest.fixture
def consumer(pipeline: Pipeline) -> Iterator[Consumer]:
    consumer = broker.make_consumer(pipeline.settings, logging.getLogger("kafka"), lambda _: None, lambda *_: None)
    yield consumer
    consumer.close()


def read_to_the_end(consumer: Consumer) -> tuple[Message, Message]:
    """The only record of the partition, and the event of its end behind it."""
    found: list[Message] = []

    def poll() -> bool:
        if (message := consumer.poll(0.2)) is not None:
            found.append(message)
        return len(found) == 2

    wait_until(poll, "the record and the end")
    record, end = found
    error: Any = end.error()
    assert record.error() is None
    assert error.code() == KafkaError._PARTITION_EOF
    return record, end


@pytest.mark.parametrize("end_is_noted", ["before", "after"])
def test_an_end_that_was_seen_does_not_pass_a_record_that_was_parked(
    pipeline: Pipeline, consumer: Consumer, end_is_noted: str
) -> None:
    topic = pipeline.settings.retry_topics[0]
    pipeline.produce(topic, b"{}", key=b"1")
    [produced] = pipeline.records(topic)
    clock = datetime.now(UTC)
    partitions = Partitions(consumer, lambda: clock)
    partitions.add([TopicPartition(topic, produced.partition(), 0)], paused=False)
    record, end = read_to_the_end(consumer)
    key = key_of(record)

    if end_is_noted == "before":
        assert partitions.reached_end(end)
    partitions.park(key, record.offset() or 0, clock + timedelta(seconds=5))
    if end_is_noted == "after":
        assert partitions.reached_end(end)
    # A hold: it outlasts the wait, and only then offsets are looked at again.
    clock += timedelta(seconds=6)
    partitions.unpark(paused=True)
    partitions.pass_markers()

    assert partitions.done == {}, "the record is not handled yet"
    partitions.resume()
    again, end = read_to_the_end(consumer)
    assert again.offset() == record.offset()
    partitions.reached_end(end)
    partitions.pass_markers()
    assert partitions.done == {key: (record.offset() or 0) + 1}
