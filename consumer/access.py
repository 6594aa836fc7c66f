"""Whether brokers answer and let us in: what librdkafka tells of that while it goes on trying by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException

from consumer.broker import cause_of
from consumer.faults import Outage
from consumer.health import Health
from consumer.metrics import Metrics
from consumer.settings import Settings

_LOG: Final = structlog.get_logger("worker")

ASK_AGAIN_SECONDS: Final = 3.0
"""Between two questions whether a broker answers again, or whether we may read again."""

DENIALS: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
"""Errors that `denied` is to be told of."""

_CAUSE_SECONDS: Final = 60.0  # a client says it again at each try, so what it said earlier was about something else


class Access:
    """Shows in log, metrics and /readyz that no broker answers, or that topics or the group are refused to us."""

    def __init__(self, settings: Settings, metrics: Metrics, health: Health, monotonic: Callable[[], float]) -> None:
        self._settings, self._metrics, self._health = settings, metrics, health
        self._monotonic = monotonic
        self._outage: Outage | None = None  # while no broker answers
        self._denied: dict[str, Outage] = {}  # by topic that we may not read, or "" for the group that we may not join
        self._asked_at = 0.0
        self._cause, self._cause_at = "", -math.inf  # what was last wrong with certificate or login, and when

    @property
    def refused(self) -> Set[str]:
        """The topics that we may not read; "" is the group."""
        return self._denied.keys()

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

    def denied(self, topic: str, error: KafkaError) -> None:
        """We may not read this topic, or not join the group ("")."""
        if topic not in self._denied:
            detail = f"Kafka: no Read on {f'topic {topic}' if topic else f'group {self._settings.group_id}'}"
            _LOG.error("not permitted", detail=detail, error=error.str())
            self._denied[topic] = Outage("privilege", detail)
            self._metrics.hold.labels("privilege").set(1)
            self._show()

    def permitted(self, topics: Set[str]) -> None:
        """We may read these, or need not any more."""
        for topic in topics & self._denied.keys():
            _LOG.warning("permitted again", detail=self._denied.pop(topic).message)
            if not self._denied:
                self._metrics.hold.labels("privilege").set(0)
            self._show()

    def look(self, consumer: Consumer, assigned: Set[str]) -> None:
        """Ask, if it is time to, whether what was wrong still is. `assigned` are the topics that partitions of are
        ours: of them the consumer hears by itself."""
        if (self._outage is None and not self._denied) or self._monotonic() - self._asked_at < ASK_AGAIN_SECONDS:
            return
        self._asked_at = self._monotonic()
        if self._outage is not None:
            self._look_for_broker(consumer)
        else:
            # A refused topic whose partitions went to others is theirs to tell of, once we may see it.
            self._look_for_topics(consumer, self._denied.keys() - assigned - {""})

    def _look_for_broker(self, consumer: Consumer) -> None:
        try:
            consumer.list_topics(self._settings.source_topic, 2)
        except KafkaException:
            return
        self._outage = None
        _LOG.warning("a broker answers again")
        self._metrics.hold.labels("broker").set(0)
        self._show()

    def _look_for_topics(self, consumer: Consumer, topics: Set[str]) -> None:
        for topic in topics:
            try:
                error = consumer.list_topics(topic, 2).topics[topic].error
            except KafkaException:
                return
            if error is None or error.code() not in DENIALS:
                self.permitted({topic})

    def _show(self) -> None:
        self._health.broker(self._outage or next(iter(self._denied.values()), None))
