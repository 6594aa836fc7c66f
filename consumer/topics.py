"""The topics that must exist: which, how large their records may be, and making those that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from consumer.faults import Outage
from consumer.settings import Settings

# Our headers come on top of the source's largest record.
HEADROOM_BYTES: Final = 64 * 1024
DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_588  # Kafka's default of max.message.bytes


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic that must exist. `config` holds what differs from the broker's defaults."""

    name: str
    partitions: int
    config: dict[str, str]


def describe(admin: AdminClient, timeout: float = 10.0) -> dict[str, int]:
    """All topics and their number of partitions. Raises `Outage` when no broker answers."""
    try:
        metadata = admin.list_topics(timeout=timeout)
    except KafkaException as error:
        raise Outage("broker", f"no Kafka broker answers: {error.args[0].str()}") from error
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


def max_message_bytes(admin: AdminClient, topic: str, timeout: float = 10.0) -> int:
    """The topic's `max.message.bytes`; Kafka's default when it cannot be read."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        entries = admin.describe_configs([resource], request_timeout=timeout)[resource].result(timeout)
    except KafkaException:
        return DEFAULT_MAX_MESSAGE_BYTES
    entry = entries.get("max.message.bytes")
    return int(entry.value) if entry is not None and entry.value else DEFAULT_MAX_MESSAGE_BYTES


def plan(settings: Settings, existing: Mapping[str, int], source_bytes: int, partitions: int) -> list[TopicPlan]:
    """The topics that must exist: the source's, with `partitions` if it is new, and our own with as many as it has.

    Dead letters stay for 90 days, the others as long as the retries they wait for, and some more for an outage.
    """
    count = existing.get(settings.source_topic, partitions)
    large = {"max.message.bytes": str(source_bytes + HEADROOM_BYTES), "cleanup.policy": "delete"}
    days = {settings.dlq_topic: 90, settings.replay_topic: 14} | dict.fromkeys(settings.retry_topics, 14)
    own = [TopicPlan(name, count, large | {"retention.ms": str(number * 86_400_000)}) for name, number in days.items()]
    return [TopicPlan(settings.source_topic, count, {}), *own]


def create(admin: AdminClient, plans: Iterable[TopicPlan], existing: Mapping[str, int]) -> list[str]:
    """Create those that are missing; gives their names. Raises `Outage`, naming the topic that was refused."""
    missing = [plan for plan in plans if plan.name not in existing]
    if not missing:
        return []
    futures = admin.create_topics(
        [
            NewTopic(plan.name, num_partitions=plan.partitions, replication_factor=-1, config=plan.config)
            for plan in missing
        ],
        operation_timeout=30,
        request_timeout=30,
    )
    created = []
    for name, future in futures.items():
        try:
            future.result(60)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Outage("topics", f"topic {name} cannot be created: {error.args[0].str()}") from error
        else:
            created.append(name)
    return created
