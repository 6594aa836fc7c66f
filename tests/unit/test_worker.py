"""What a worker tells of brokers that refuse it, or do not answer: a real client, and nobody listens to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from consumer.health import Health
from consumer.metrics import Metrics
from consumer.pipeline import Pipeline
from consumer.publisher import Publisher
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.sweep import Sweep
from consumer.worker import Worker

NOBODY = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
SETTINGS = Settings(_env_file=None, invoice_dsn="postgresql://127.0.0.1:1/none")  # type: ignore[call-arg,arg-type]
SOURCE, RETRY = SETTINGS.source_topic, SETTINGS.retry_topics[0]


class Scene:
    """A worker that has a partition of two topics."""

    def __init__(self, service: CFOSyncService) -> None:
        self.time = 0.0
        self.health, self.metrics = Health(lambda: self.time), Metrics(SETTINGS.consumed_topics)
        self.consumer = Consumer({**NOBODY, "group.id": "cfo-sync"})
        self.worker = Worker(
            SETTINGS, lambda *_: self.consumer, Publisher(lambda: Producer(NOBODY)), Pipeline(SETTINGS, service),
            Sweep(SETTINGS, service, lambda: self.time), self.metrics, self.health,
            uniform=lambda: 0.5, monotonic=lambda: self.time,
        )  # fmt: skip
        self.health.hold(None)
        self.worker._assigned(self.consumer, [TopicPartition(SOURCE, 0), TopicPartition(RETRY, 0)])

    def refuse(self, topic: str) -> None:
        error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        self.worker._sift([Message(topic=topic, partition=0, offset=-1001, error=error)])

    def end(self, topic: str) -> None:
        self.worker._sift([Message(topic=topic, partition=0, offset=7, error=KafkaError(KafkaError._PARTITION_EOF))])

    def fail(self, code: int, text: str) -> None:
        self.worker._access.failed(KafkaError(code, text))

    def broker(self) -> Publisher:
        """One of the client library's own, which holds every topic."""
        return Publisher(lambda: Producer({"test.mock.num.brokers": 1, "log_level": 0}))

    def look(self, publisher: Publisher) -> None:
        self.worker._access.look(publisher.topic_error, {topic for topic, _ in self.worker._partitions.assigned})

    def told(self) -> str | None:
        return self.health.report()[1].get("detail")

    def gauge(self) -> float | None:
        return self.metrics.registry.get_sample_value("cfo_sync_hold", {"reason": "privilege"})


@pytest.fixture
def scene() -> Iterator[Scene]:
    with CFOSyncService(SETTINGS) as service:
        scene = Scene(service)
        yield scene
        scene.consumer.close()


def test_a_topic_is_refused_until_that_topic_is_read_again(scene: Scene) -> None:
    scene.refuse(SOURCE)
    scene.refuse(RETRY)
    scene.end(RETRY)
    assert (scene.told(), scene.gauge()) == (f"Kafka: no Read on topic {SOURCE}", 1)
    scene.end(SOURCE)
    assert (scene.told(), scene.gauge()) == (None, 0)


def test_a_refused_topic_that_another_consumer_has_now_is_no_trouble_of_ours(scene: Scene) -> None:
    scene.refuse(SOURCE)
    scene.time = 10
    publisher = scene.broker()
    scene.look(publisher)
    assert scene.told() is not None
    scene.worker._revoked(scene.consumer, [TopicPartition(SOURCE, 0)])
    assert scene.told() is not None  # it may be gone because we may not even see it
    scene.time = 20
    scene.look(publisher)
    assert (scene.told(), scene.gauge()) == (None, 0)


def test_a_broker_that_answers_again_does_not_end_a_refusal(scene: Scene) -> None:
    scene.refuse(SOURCE)
    scene.fail(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
    assert "no broker of" in str(scene.told())
    scene.time = 10
    scene.look(scene.broker())
    assert scene.told() == f"Kafka: no Read on topic {SOURCE}"


def test_a_refusal_of_a_topic_moves_no_partition(scene: Scene) -> None:
    scene.refuse(SOURCE)  # without an offset: to begin at 0 again would be everything once more
    assert scene.worker._partitions.parked == {}


def test_why_no_broker_answers_is_what_was_heard_of_late(scene: Scene) -> None:
    scene.fail(KafkaError._AUTHENTICATION, "SASL authentication error")
    scene.time = 3600
    scene.fail(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
    assert "SASL" not in str(scene.told())
    scene.worker._access._outage = None
    scene.fail(KafkaError._AUTHENTICATION, "SASL authentication error")
    scene.fail(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
    assert "SASL authentication error: see sasl.*" in str(scene.told())
