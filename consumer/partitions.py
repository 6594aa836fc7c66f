"""The partitions assigned to a consumer: which are parked, how far each is done, and pausing, seeking and resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeAlias

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

Key: TypeAlias = tuple[str, int]  # topic, partition


def key_of(message: Message) -> Key:
    """The partition that a message came from."""
    return message.topic() or "", message.partition() or 0


class Partitions:
    """State of the assignment.

    What librdkafka keeps of a pause over a reassignment depends on how it came to that: of partitions that were lost it
    keeps it for ever, of others it may forget it. So pauses are set anew, both ways, whenever partitions come.
    """

    def __init__(self, consumer: Consumer, now: Callable[[], datetime]) -> None:
        self._consumer = consumer
        self._now = now
        self.assigned: set[Key] = set()
        # Stopped in front of a record until then (UTC): it is not due yet, or its fault could not be published.
        self.parked: dict[Key, datetime] = {}
        # Next offset to commit, of work that is done.
        self.done: dict[Key, int] = {}
        # Where a partition ended when we had read all of it, behind the markers of transactions.
        self._ends: dict[Key, int] = {}

    # -- assignment ----------------------------------------------------------------------------------------------------

    def add(self, partitions: list[TopicPartition], *, paused: bool) -> set[Key]:
        """These are ours from now on, from their committed offsets; paused when nothing may be fetched."""
        self._consumer.assign(partitions)
        keys = _keys(partitions)
        self.assigned |= keys
        if paused:
            self.pause()
        else:
            self.resume()
            self._pause(self.parked)
        return keys

    def drop(self, partitions: list[TopicPartition]) -> set[Key]:
        """They are somebody else's now; what was not committed of them is forgotten."""
        keys = _keys(partitions)
        for key in keys:
            self.assigned.discard(key)
            self.parked.pop(key, None)
            self.done.pop(key, None)
            self._ends.pop(key, None)
        self._consumer.unassign()
        return keys

    # -- reading -------------------------------------------------------------------------------------------------------

    def is_readable(self, key: Key) -> bool:
        """Whether records of it may be handled: not revoked while they were fetched, not behind one that waits."""
        return key in self.assigned and key not in self.parked

    def pause(self) -> None:
        """Fetch nothing."""
        self._pause(self.assigned)

    def resume(self) -> None:
        """Fetch again, but from those that are parked."""
        self._resume(self.assigned - self.parked.keys())

    def park(self, key: Key, offset: int, until: datetime) -> None:
        """Stop a partition in front of a record, until then."""
        self._pause({key})
        self._consumer.seek(TopicPartition(*key, offset))
        self.parked[key] = until
        self._ends.pop(key, None)  # the end lies behind a record that is not handled

    def unpark(self, *, paused: bool) -> None:
        """Let go on those whose time has come; if everything is paused, when that ends."""
        now = self._now()
        due = {key for key, until in self.parked.items() if until <= now}
        for key in due:
            del self.parked[key]
        if not paused:
            self._resume(due)

    def next_due(self) -> float | None:
        """Seconds until the first parked partition may go on; None when none is."""
        due = min(self.parked.values(), default=None)
        return None if due is None else max(0.0, (due - self._now()).total_seconds())

    def put_back(self, message: Message) -> None:
        """A record came although its partition is paused: it shall come again."""
        key = key_of(message)
        if key in self.assigned:
            self._pause({key})
            self._consumer.seek(TopicPartition(*key, message.offset() or 0))
            self._ends.pop(key, None)

    # -- offsets -------------------------------------------------------------------------------------------------------

    def reached_end(self, message: Message) -> bool:
        """Take note of an end-of-partition event; False if the message is another error."""
        error = message.error()
        if error is None or error.code() != KafkaError._PARTITION_EOF:
            return False
        if self.is_readable(key := key_of(message)):
            self._ends[key] = message.offset() or 0
        return True

    def pass_markers(self) -> None:
        """Nothing is in hand: a partition that was read to its end is done up to there."""
        for key, end in self._ends.items():
            if self.is_readable(key):
                self.done[key] = max(end, self.done.get(key, 0))
        self._ends.clear()

    def offsets(self) -> list[TopicPartition]:
        """What is to be committed."""
        return [TopicPartition(topic, number, offset) for (topic, number), offset in self.done.items()]

    def committed(self, offset: TopicPartition) -> None:
        """The broker has taken this one."""
        key = (offset.topic, offset.partition)
        if self.done.get(key) == offset.offset:
            del self.done[key]

    def _pause(self, keys: Iterable[Key]) -> None:
        if partitions := [TopicPartition(*key) for key in keys]:
            self._consumer.pause(partitions)

    def _resume(self, keys: Iterable[Key]) -> None:
        if partitions := [TopicPartition(*key) for key in keys]:
            self._consumer.resume(partitions)


def _keys(partitions: Sequence[TopicPartition]) -> set[Key]:
    return {(each.topic, each.partition) for each in partitions}


def names(keys: Iterable[Key]) -> str:
    """Short enough for a log line: `topic[0-7] other[1,3]`."""
    numbers: dict[str, list[int]] = {}
    for topic, number in sorted(keys):
        numbers.setdefault(topic, []).append(number)
    shown = []
    for topic, found in numbers.items():
        whole = len(found) > 1 and found == list(range(found[0], found[-1] + 1))
        shown.append(f"{topic}[{f'{found[0]}-{found[-1]}' if whole else ','.join(map(str, found))}]")
    return " ".join(shown)
