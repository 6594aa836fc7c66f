"""Backlogs: records byte for byte as Debezium writes them, for as many invoices as wanted, and let go all at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import psycopg
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.bench.bed import Bed, Scene, wait_until

_SENTINEL: Final = 1_987_654_321
KeyValue: TypeAlias = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Event:
    """A captured record with holes for the invoice's id, which its number contains."""

    key: tuple[bytes, ...]
    value: tuple[bytes, ...]

    @classmethod
    def of(cls, key: bytes, value: bytes) -> Event:
        """Take it from a record about invoice `_SENTINEL`."""
        hole = str(_SENTINEL).encode()
        return cls(tuple(key.split(hole)), tuple(value.split(hole)))

    def records(self, ids: Iterable[int]) -> Iterator[KeyValue]:
        """The same change of other invoices."""
        for invoice_id in ids:
            text = str(invoice_id).encode()
            yield text.join(self.key), text.join(self.value)


@dataclass(frozen=True, slots=True)
class Captured:
    """What the real Debezium wrote: a draft's insert and the updates to sent, paid and complete; and its schemas."""

    draft: Event
    sent: Event
    paid: Event
    complete: Event
    key_schema: str
    value_schema: str


def capture(bed: Bed) -> Captured:
    """Let Debezium capture one invoice's life, with the shipped connector."""
    with bed.scene(bed.template(1), partitions=1) as scene:
        schemas = {"key.converter.schemas.enable": "true", "value.converter.schemas.enable": "true"}
        scene.start_connector(schemas)
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO crypto_invoices (id, invoice_number, client_id, status) VALUES (%s, %s, 1, 'draft')",
                (_SENTINEL, f"BENCH-{_SENTINEL}"),
            )
            for status in ("sent", "paid", "complete"):
                connection.execute(
                    "UPDATE crypto_invoices SET status = %s, paid_at = now() AT TIME ZONE 'UTC',"
                    " updated_at = now() AT TIME ZONE 'UTC' WHERE id = %s",
                    (status, _SENTINEL),
                )
        keys, values = _read(scene, 4)
    events = [
        Event.of(_encoded(key["payload"]), _encoded(value["payload"])) for key, value in zip(keys, values, strict=True)
    ]
    draft, sent, paid, complete = events
    return Captured(draft, sent, paid, complete, json.dumps(keys[0]["schema"]), json.dumps(values[0]["schema"]))


def _read(scene: Scene, count: int) -> tuple[list[Any], list[Any]]:
    found = read(scene, {0: 0}, lambda found: len(found) >= count)
    return [json.loads(each.key()) for each in found], [json.loads(each.value()) for each in found]


def read(scene: Scene, starts: Mapping[int, int], is_enough: Callable[[list[Any]], bool]) -> list[Any]:
    """The records of the source topic from these offsets on, by partition, until they are enough."""
    consumer = Consumer(
        {
            "bootstrap.servers": scene.settings.kafka_bootstrap_servers,
            "group.id": "bench-reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    found: list[Any] = []

    def has_all() -> bool:
        found.extend(each for each in consumer.consume(1000, 0.5) if each.error() is None)
        return is_enough(found)

    try:
        consumer.assign([TopicPartition(scene.topic, number, offset) for number, offset in starts.items()])
        wait_until(has_all, "Debezium's events")
    finally:
        consumer.close()
    return found


def _encoded(payload: Any) -> bytes:
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()


class Backlog:
    """Records on the source topic that nobody sees before `release`: they are one Kafka transaction.

    So a consumer can start and join its group beforehand, and the clock starts with the first record it can see. Like
    Debezium's with exactly-once support, the records end in a transaction's marker; like its producer's, they are
    spread over the partitions by their keys.
    """

    def __init__(self, scene: Scene, *, largest: int = 1_000_000) -> None:
        self._scene = scene
        self.ends: dict[int, int] = {}
        """What a group has committed that has handled everything, by partition."""
        self._producer = Producer(
            {
                "bootstrap.servers": scene.settings.kafka_bootstrap_servers,
                "transactional.id": scene.prefix,
                "log_level": 3,
                "transaction.timeout.ms": 600_000,
                "partitioner": "murmur2_random",
                "linger.ms": 20,
                "batch.size": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "message.max.bytes": largest,
            }
        )
        self._producer.init_transactions(30)
        self.begin()

    def begin(self) -> None:
        """What is written from now on is seen from the next `release` on."""
        self._producer.begin_transaction()

    def write(self, records: Iterable[KeyValue], topic: str | None = None, headers: Any = None) -> None:
        """Append records, to the source topic if not told otherwise."""
        topic = topic or self._scene.topic
        produce, poll = self._producer.produce, self._producer.poll
        for number, (key, value) in enumerate(records):
            while True:
                try:
                    produce(topic, value, key, headers=headers)
                    break
                except BufferError:
                    poll(0.05)
            if not number % 10_000:
                poll(0)

    def release(self) -> float:
        """Let everybody see them; gives the moment before anybody could (monotonic)."""
        if self._producer.flush(120):
            raise TimeoutError("the backlog could not be written")
        self.ends = end_offsets(self._scene)
        began = time.monotonic()
        self._producer.commit_transaction(60)
        return began


def end_offsets(scene: Scene) -> dict[int, int]:
    """The next offset of each partition of the source topic that has records."""
    client = Consumer(
        {"bootstrap.servers": scene.settings.kafka_bootstrap_servers, "group.id": "bench-reader",
         "isolation.level": "read_uncommitted"}
    )  # fmt: skip
    try:
        partitions = client.list_topics(scene.topic, 10).topics[scene.topic].partitions
        ends = {number: client.get_watermark_offsets(TopicPartition(scene.topic, number), 10) for number in partitions}
        return {number: high for number, (low, high) in ends.items() if high > low}
    finally:
        client.close()
