"""How far the consumer group has come, seen from outside: it need not be running, and is not disturbed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from consumer import broker
from consumer.faults import Outage
from consumer.headers import moment_of
from consumer.partitions import Key, key_of
from consumer.settings import Settings

T = TypeVar("T")

_TIMEOUT: Final = 5.0  # seconds for one question to a broker
_PEEK: Final = 5.0  # seconds for finding the oldest records
_RETENTION_SECONDS: Final = 600.0  # for which the topic's retention is taken as known


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
    """Asks the brokers. Not thread-safe; opens its clients when needed. Every method raises `Outage`.

    Asks with the calls that wait, wherever there is one: the asynchronous ones of the admin client (`describe_…`,
    `list_…_offsets`) end the process in an assertion of librdkafka when a broker goes away meanwhile.
    """

    def __init__(self, settings: Settings, logger: Any) -> None:
        self._settings = settings
        self._logger = logger
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._peeks: dict[Key, _Peek] = {}
        self._retention: tuple[str, float, float] | None = None  # the topic, when it was asked, the answer

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
        with warnings.catch_warnings():
            # Deprecated for calls that are not safe; see above.
            warnings.simplefilter("ignore", DeprecationWarning)
            found = self._ask(lambda: self._open_admin().list_groups(group, _TIMEOUT))
        return sum(len(each.members) for each in found if each.id == group)

    def bounds(self, topics: Iterable[str]) -> dict[Key, tuple[int, int]]:
        """By partition: the first offset that stands there, and the end of what is committed by its writers."""
        return self._ends(self._partitions(topics))

    def retention(self, topic: str) -> float:
        """Seconds for which the topic keeps a record; infinite for ever, NaN when the broker does not say.

        An answer is good for ten minutes.
        """
        now = time.monotonic()
        if self._retention is None or self._retention[0] != topic or now - self._retention[1] > _RETENTION_SECONDS:
            self._partitions([topic])  # the brokers answer
            self._retention = topic, now, self._read_retention(topic)
        return self._retention[2]

    def _read_retention(self, topic: str) -> float:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        answers = self._open_admin().describe_configs([resource], request_timeout=_TIMEOUT)
        try:
            entry = answers[resource].result(_TIMEOUT + 5).get("retention.ms")
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return math.nan
            raise _outage(error) from error
        if entry is None or not entry.value:
            return math.nan
        milliseconds = int(entry.value)
        return milliseconds / 1000 if milliseconds >= 0 else math.inf

    def _partitions(self, topics: Iterable[str]) -> list[Key]:
        there = self._ask(lambda: self._open().list_topics(timeout=_TIMEOUT)).topics
        keys: list[Key] = []
        for name in topics:
            if name not in there:
                raise Outage("topics", f"no topic {name}: run `cfo-sync topics create`")
            keys += [(name, number) for number in there[name].partitions]
        return keys

    def _ends(self, keys: Iterable[Key]) -> dict[Key, tuple[int, int]]:
        consumer = self._open()
        found = {}
        for key in keys:
            place = TopicPartition(*key)
            found[key] = self._ask(lambda place=place: consumer.get_watermark_offsets(place, _TIMEOUT, cached=False))  # type: ignore[misc]
        return found

    def _committed(self, keys: Sequence[Key]) -> dict[Key, int]:
        """What the group has committed; a negative number where it has not."""
        found = self._ask(lambda: self._open().committed([TopicPartition(*key) for key in keys], timeout=_TIMEOUT))
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
                        at = moment_of(stamp) if kind else None
                        # Written since we asked for the end: then there was none up to there.
                        found[key] = _Peek(start, end, offset, at) if offset < end else _Peek(start, end, None, None)
                    elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                        found[key] = _Peek(start, end, None, None)
        except KafkaException as error:
            raise _outage(error) from error
        finally:
            consumer.unassign()
        return found

    def _open_admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = broker.make_admin(self._settings, self._logger)
        return self._admin

    @staticmethod
    def _ask(question: Callable[[], T]) -> T:
        try:
            return broker.ask(question)
        except KafkaException as error:
            raise _outage(error) from error


def _outage(error: KafkaException) -> Outage:
    return Outage("broker", f"Kafka: {error.args[0].str()}")
