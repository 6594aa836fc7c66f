"""The topics that must exist: which, how large their records may be, and making those that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from consumer.broker import Admin
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


def describe(admin: Admin, timeout: float = 10.0) -> dict[str, int]:
    """All topics that we may see, and their number of partitions. Raises `Outage` when no broker lets us in."""
    soon = min(2.0, timeout / 4)  # a wrong certificate or password shows by then, and no waiting mends it
    try:
        try:
            metadata = admin.list_topics(timeout=soon)
        except KafkaException:
            if admin.cause() is not None:
                raise
            metadata = admin.list_topics(timeout=timeout - soon)
    except KafkaException as error:
        raise Outage("broker", f"no Kafka broker answers: {admin.cause() or error.args[0].str()}") from error
    admin.forget_cause()
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


def permitted(admin: AdminClient, names: Iterable[str], group: str, timeout: float = 10.0) -> dict[str, set[str]]:
    """What our login may do with each topic, and with the group (under the name ""): Read, Write, ...

    Without an authorizer that is everything. What does not exist, or what the brokers do not tell of, is left out.
    """
    found = {}
    asked: dict[str, Any] = {
        **admin.describe_topics(
            TopicCollection(list(names)), include_authorized_operations=True, request_timeout=timeout
        ),
        "": admin.describe_consumer_groups([group], include_authorized_operations=True, request_timeout=timeout)[group],
    }
    for name, future in asked.items():
        try:
            operations = future.result(timeout + 5).authorized_operations
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
                found[name] = set[str]()
        else:
            if operations:
                found[name] = {each.name.title() for each in operations}
    return found


def max_message_bytes(admin: AdminClient, topic: str, timeout: float = 10.0) -> int | None:
    """The topic's `max.message.bytes`; None when it may not be read."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        entries = admin.describe_configs([resource], request_timeout=timeout)[resource].result(timeout)
    except KafkaException:
        return None
    entry = entries.get("max.message.bytes")
    return int(entry.value) if entry is not None and entry.value else None


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
