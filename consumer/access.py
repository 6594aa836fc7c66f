"""Whether brokers answer, have our topics and let us in: what librdkafka tells of that while it goes on trying."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from contextlib import suppress
from typing import Final

import structlog
from confluent_kafka import KafkaError, KafkaException

from consumer.broker import cause_of
from consumer.faults import Outage
from consumer.health import Health
from consumer.metrics import Metrics
from consumer.settings import Settings

_LOG: Final = structlog.get_logger("worker")

ASK_AGAIN_SECONDS: Final = 3.0
"""Between two questions whether a broker answers again, or whether we may read again."""

_ABSENT: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
UNREADABLE: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, *_ABSENT)
"""Errors that `cannot_read` is to be told of."""

_LOOK_SECONDS: Final = 10.0  # between two questions when nothing is known to be wrong
_CAUSE_SECONDS: Final = 60.0  # a client says it again at each try, so what it said earlier was about something else


class Access:
    """Shows in log, metrics and /readyz that no broker answers, or which topic or group is gone or refuses us."""

    def __init__(self, settings: Settings, metrics: Metrics, health: Health, monotonic: Callable[[], float]) -> None:
        self._settings, self._metrics, self._health = settings, metrics, health
        self._monotonic = monotonic
        self._outage: Outage | None = None  # while no broker answers
        self._unreadable: dict[str, Outage] = {}  # by topic, or "" for the group that we may not join
        self._asked_at = monotonic()
        self._cause, self._cause_at = "", -math.inf  # what was last wrong with certificate or login, and when

    @property
    def unreadable(self) -> Set[str]:
        """The topics that we cannot read; "" is the group."""
        return self._unreadable.keys()

    def failed(self, error: KafkaError) -> None:
        """The client says what went wrong on its way to a broker."""
        if (cause := cause_of(error)) is not None:
            self._cause, self._cause_at = cause, self._monotonic()
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._outage is None:
            # Its own words count bootstrap addresses among the brokers: "0/2 brokers are down".
            detail = f"no broker of {self._settings.kafka_bootstrap_servers} answers"
            if self._monotonic() - self._cause_at < _CAUSE_SECONDS:
                detail += f": {self._cause}"
            _LOG.error("no broker answers", detail=detail)
            self._outage, self._asked_at = Outage("broker", detail), self._monotonic()
            self._metrics.hold.labels("broker").set(1)
            self._show()

    def cannot_read(self, topic: str, error: KafkaError) -> None:
        """This topic is gone, or we may not read it, or not join the group ("")."""
        if topic in self._unreadable:
            return
        if error.code() in _ABSENT:
            outage = Outage("topics", f"Kafka: no topic {topic}: run `cfo-sync topics create`")
        else:
            what = f"topic {topic}" if topic else f"group {self._settings.group_id}"
            outage = Outage("privilege", f"Kafka: no Read on {what}")
        _LOG.error("cannot read", reason=outage.reason, detail=outage.message, error=error.str())
        self._unreadable[topic] = outage
        self._metrics.hold.labels(outage.reason).set(1)
        self._show()

    def can_read(self, topics: Set[str]) -> None:
        """We can read these, or need not any more."""
        for topic in topics & self._unreadable.keys():
            outage = self._unreadable.pop(topic)
            _LOG.warning("can read again", reason=outage.reason, detail=outage.message)
            if all(other.reason != outage.reason for other in self._unreadable.values()):
                self._metrics.hold.labels(outage.reason).set(0)
            self._show()

    def look(self, error_of: Callable[[str], KafkaError | None], assigned: Set[str]) -> None:
        """Ask, if it is time to, whether what was wrong still is, and whether all topics are there: the client would
        not tell of one that was deleted. `error_of` asks a broker for a topic's error and raises `KafkaException`;
        `assigned` are the topics that partitions of are ours."""
        is_wrong = self._outage is not None or bool(self._unreadable)
        if self._monotonic() - self._asked_at < (ASK_AGAIN_SECONDS if is_wrong else _LOOK_SECONDS):
            return
        self._asked_at = self._monotonic()
        with suppress(KafkaException):
            if self._outage is not None:
                self._look_for_broker(error_of)
            else:
                self._look_for_topics(error_of, assigned)

    def _look_for_broker(self, error_of: Callable[[str], KafkaError | None]) -> None:
        error_of(self._settings.source_topic)
        self._outage = None
        _LOG.warning("a broker answers again")
        self._metrics.hold.labels("broker").set(0)
        self._show()

    def _look_for_topics(self, error_of: Callable[[str], KafkaError | None], assigned: Set[str]) -> None:
        for topic in self._settings.consumed_topics:
            outage = self._unreadable.get(topic)
            if outage is not None and outage.reason == "privilege" and topic in assigned:
                continue  # that we may see it does not mean that we may read it: this the consumer hears
            error = error_of(topic)
            if error is not None and error.code() in UNREADABLE:
                self.cannot_read(topic, error)
            else:
                # If it was refused and its partitions went to others, it is theirs to tell of.
                self.can_read({topic})

    def _show(self) -> None:
        self._health.broker(self._outage or next(iter(self._unreadable.values()), None))
