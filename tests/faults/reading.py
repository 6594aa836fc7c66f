"""Reads topics whole, for the checker: outside any group, committed records only, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Final, TypeAlias, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer.broker import CONSUMER_ONLY, PRODUCER_ONLY, client_config, without
from consumer.settings import Settings

T = TypeVar("T")
Place: TypeAlias = tuple[str, int, int]  # topic, partition, offset
Key: TypeAlias = tuple[str, int]  # topic, partition

_TIMEOUT: Final = 10.0  # seconds for one question to a broker
_PATIENCE: Final = 30.0  # seconds for which a broker may be starting, or be silent


class Reader:
    """Assigned by hand: joins no group, commits nothing. Raises `KafkaException` when no broker answers for 30 s."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = Consumer(
            {
                **without(client_config(settings), CONSUMER_ONLY + PRODUCER_ONLY),
                "group.id": settings.group_id,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "fetch.queue.backoff.ms": 10,
                "queued.max.messages.kbytes": 65_536,
                "log_level": 3,
            }
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._consumer.close()

    def partitions(self, topics: Iterable[str]) -> list[Key]:
        """The partitions of these topics."""
        there = _ask(lambda: self._consumer.list_topics(timeout=_TIMEOUT)).topics
        return [(topic, number) for topic in topics for number in there[topic].partitions]

    def committed(self, keys: Iterable[Key]) -> dict[Key, int]:
        """What the group has committed, of all partitions at one moment; -1 where it has not."""
        wanted = [TopicPartition(*key) for key in keys]
        found = _ask(lambda: self._consumer.committed(wanted, timeout=_TIMEOUT))
        return {(each.topic, each.partition): max(-1, each.offset) for each in found}

    def bounds(self, keys: Iterable[Key]) -> dict[Key, tuple[int, int]]:
        """The first offset that stands there, and the one that the next record will get."""
        return {key: self._bounds(key) for key in keys}

    def starts(self, keys: Iterable[Key], moment: datetime) -> dict[Key, int]:
        """The first record written at `moment` or later; the end where there is none."""
        at = int(moment.timestamp() * 1000)
        asked = [TopicPartition(*key, at) for key in keys]
        found = _ask(lambda: self._consumer.offsets_for_times(asked, timeout=_TIMEOUT))
        return {
            (each.topic, each.partition): each.offset
            if each.offset >= 0
            else self._bounds((each.topic, each.partition))[1]
            for each in found
        }

    def read(self, starts: Mapping[Key, int]) -> Iterator[list[Message]]:
        """All records from these offsets on, up to the end as it is now."""
        left = {key: bounds[1] for key, start in starts.items() if (bounds := self._bounds(key))[1] > start}
        if not left:
            return
        self._consumer.assign([TopicPartition(*key, starts[key]) for key in left])
        heard = time.monotonic()
        while left:
            batch = []
            for message in self._consumer.consume(10_000, 0.02):
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    continue  # the client reconnects by itself
                heard = time.monotonic()
                key, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
                end = left.get(key)
                if end is None:
                    continue
                # What stands before the end may be a transaction's marker, which only the end's event tells.
                if error is not None or offset >= end - 1:
                    del left[key]
                if error is None and offset < end:
                    batch.append(message)
            if batch:
                yield batch
            if time.monotonic() - heard > _PATIENCE:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"cannot read to the end of {sorted(left)}"))
        self._consumer.unassign()

    def _bounds(self, key: Key) -> tuple[int, int]:
        return _ask(lambda: self._consumer.get_watermark_offsets(TopicPartition(*key), _TIMEOUT))


def _ask(question: Callable[[], T]) -> T:
    """Again for a while: a broker that was just started has to read the group's offsets first."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return question()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
