"""How far the consumer group has come, seen from outside: it need not be running, and is not disturbed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from consumer import broker
from consumer.faults import Outage
from consumer.partitions import Key, key_of
from consumer.settings import Settings

T = TypeVar("T")

_TIMEOUT: Final = 5.0  # seconds for one question to a broker
_PEEK: Final = 5.0  # seconds for finding the oldest records


@dataclass(frozen=True, slots=True)
class TopicLag:
    """How far the group has come on one topic.

    `records`: from the oldest that is not committed to the end; 0 is exact, else markers of transactions count too.
    `oldest` is when that one was written (UTC); None when there is none, or when it could not be read in time.
    `committed`: the sum of the committed offsets over the partitions.
    """

    records: int
    oldest: datetime | None
    committed: int


@dataclass(frozen=True, slots=True)
class _Peek:
    """What stood at the committed offset: the offset of the first record from there on, and when it was written.

    Without a record `first` is None: up to `end` there were markers of transactions only.
    """

    start: int
    end: int
    first: int | None
    at: datetime | None


class Lags:
    """Asks the brokers. Not thread-safe; opens its clients when needed. Every method raises `Outage`."""

    def __init__(self, settings: Settings, logger: Any) -> None:
        self._settings = settings
        self._logger = logger
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._peeks: dict[Key, _Peek] = {}

    def close(self) -> None:
        """Close the clients; the next question opens new ones."""
        self._admin = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def read(self) -> dict[str, TopicLag]:
        """The lag on each topic that the group consumes."""
        keys = self._partitions(self._settings.consumed_topics)
        # Before the ends: then no offset lies behind its end, unless the topic was made anew.
        committed = self._committed(keys)
        behind = {}
        for key, (low, high) in self._ends(keys).items():
            # Where a consumer would begin (auto.offset.reset=earliest).
            start = committed[key] if low <= committed[key] <= high else low
            if start < high:
                behind[key] = (start, high)
        peeks = self._peek(behind)
        lags = {}
        for topic in self._settings.consumed_topics:
            found = {key: peeks.get(key) for key in behind if key[0] == topic}
            records, times = 0, []
            for key, peek in found.items():
                start, end = behind[key]
                if peek is None:
                    records += end - start
                elif peek.first is not None:
                    records += end - peek.first
                    times += [peek.at] if peek.at is not None else []
            total = sum(max(0, offset) for key, offset in committed.items() if key[0] == topic)
            lags[topic] = TopicLag(records, min(times, default=None), total)
        return lags

    def members(self) -> int:
        """Consumers in the group; 0 when nobody is, or never was."""
        group = self._settings.group_id
        futures = self._ask(lambda admin: admin.describe_consumer_groups([group], request_timeout=_TIMEOUT))
        try:
            description = _result(futures[group])
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:  # newer brokers say so of a group never used
                return 0
            raise _outage(error) from error
        return len(description.members)

    def bounds(self, topics: Iterable[str]) -> dict[Key, tuple[int, int]]:
        """By partition: the first offset that stands there, and the end of what is committed by its writers."""
        return self._ends(self._partitions(topics))

    def retention(self, topic: str) -> float:
        """Seconds for which the topic keeps a record; infinite for ever, NaN when the broker does not say."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        answers = self._ask(lambda admin: admin.describe_configs([resource], request_timeout=_TIMEOUT))
        try:
            entry = _result(answers[resource]).get("retention.ms")
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return math.nan
            raise _outage(error) from error
        if entry is None or not entry.value:
            return math.nan
        milliseconds = int(entry.value)
        return milliseconds / 1000 if milliseconds >= 0 else math.inf

    def _partitions(self, topics: Iterable[str]) -> list[Key]:
        names = list(topics)
        answers = self._ask(lambda admin: admin.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT))
        keys: list[Key] = []
        for name in names:
            try:
                keys += [(name, partition.id) for partition in _result(answers[name]).partitions]
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise Outage("topics", f"no topic {name}: run `cfo-sync topics create`") from error
                raise _outage(error) from error
        return keys

    def _ends(self, keys: Sequence[Key]) -> dict[Key, tuple[int, int]]:
        lows = self._offsets(keys, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        highs = self._offsets(keys, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {key: (lows[key], highs[key]) for key in keys}

    def _offsets(self, keys: Sequence[Key], which: OffsetSpec) -> dict[Key, int]:
        wanted = {TopicPartition(*key): which for key in keys}
        answers = self._ask(
            lambda admin: admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_TIMEOUT
            )
        )
        try:
            return {(each.topic, each.partition): _result(answers[each]).offset for each in wanted}
        except KafkaException as error:
            raise _outage(error) from error

    def _committed(self, keys: Sequence[Key]) -> dict[Key, int]:
        """What the group has committed; a negative number where it has not.

        Not asked with `list_consumer_group_offsets`: librdkafka dies of a group whose coordinator is not there yet.
        """
        try:
            found = self._open().committed([TopicPartition(*key) for key in keys], timeout=_TIMEOUT)
        except KafkaException as error:
            raise _outage(error) from error
        for each in found:
            if each.error is not None:
                raise Outage("broker", f"Kafka: {each.error.str()}")
        return {(each.topic, each.partition): each.offset for each in found}

    def _open(self) -> Consumer:
        """Of the group by name only, so that it needs no further privilege: it is assigned by hand, joins nothing and
        commits nothing."""
        if self._consumer is None:
            self._consumer = broker.make_consumer(self._settings, self._logger, lambda _: None, lambda *_: None)
        return self._consumer

    def _peek(self, behind: Mapping[Key, tuple[int, int]]) -> dict[Key, _Peek]:
        """The first record from each committed offset on. What was seen before and cannot have changed is not read."""
        self._peeks = {
            key: peek
            for key, (start, end) in behind.items()
            if (peek := self._peeks.get(key)) is not None
            and peek.start == start
            and (peek.first is not None or peek.end == end)
        }
        wanted = {key: bounds for key, bounds in behind.items() if key not in self._peeks}
        if wanted:
            self._peeks |= self._read_first(wanted)
        return self._peeks

    def _read_first(self, wanted: Mapping[Key, tuple[int, int]]) -> dict[Key, _Peek]:
        consumer = self._open()
        found: dict[Key, _Peek] = {}
        deadline = time.monotonic() + _PEEK
        try:
            consumer.assign([TopicPartition(*key, start) for key, (start, _) in wanted.items()])
            while len(found) < len(wanted) and time.monotonic() < deadline:
                for message in consumer.consume(500, 0.05):
                    key, offset = key_of(message), message.offset() or 0
                    error = message.error()
                    # The others of a partition are of no interest; not paused, for a pause would outlast this reading.
                    if key in found or key not in wanted:
                        continue
                    start, end = wanted[key]
                    if error is None and offset >= start:
                        kind, stamp = message.timestamp()
                        at = datetime.fromtimestamp(stamp / 1000, UTC) if kind and stamp >= 0 else None
                        # Written since we asked for the end: then there was none up to there.
                        found[key] = _Peek(start, end, offset, at) if offset < end else _Peek(start, end, None, None)
                    elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                        found[key] = _Peek(start, end, None, None)
        except KafkaException as error:
            raise _outage(error) from error
        finally:
            consumer.unassign()
        return found

    def _ask(self, question: Callable[[AdminClient], T]) -> T:
        if self._admin is None:
            self._admin = broker.make_admin(self._settings, self._logger)
        try:
            return question(self._admin)
        except KafkaException as error:
            raise _outage(error) from error


def _result(future: Future[Any]) -> Any:
    return future.result(_TIMEOUT + 5)


def _outage(error: KafkaException) -> Outage:
    return Outage("broker", f"Kafka: {error.args[0].str()}")
