"""Kafka clients: how they are configured, and publishing that is confirmed or raises."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.settings import Settings, SettingsError

T = TypeVar("T")

# What a properties file must not change, because the promise rests on it.
PROTECTED: Final = frozenset(
    {
        "auto.offset.reset",
        "isolation.level",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "group.id",
        "partition.assignment.strategy",
    }
)

MAX_POLL_INTERVAL_MS: Final = 300_000

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it stands on a topic. `timestamp` is milliseconds since the epoch, -1 if unknown."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @classmethod
    def of(cls, message: Message) -> Record:
        """Take over what a consumed message holds."""
        kind, timestamp = message.timestamp()
        return cls(
            topic=message.topic() or "",
            partition=_number(message.partition()),
            offset=_number(message.offset()),
            timestamp=timestamp if kind else -1,
            key=_as_bytes(message.key()),
            value=_as_bytes(message.value()),
            headers=headers_of(message),
        )


# For a name that is no UTF-8 confluent-kafka gives a list with holes, and sets an exception that a plain call does not
# look for once Python (3.11 on) has specialised it; who then looks into the list crashes the process. This one looks.
_CALL_HEADERS: Final = methodcaller("headers")


def headers_of(message: Message) -> Headers:
    """A message's headers; none when the name of one is no UTF-8: the client cannot tell then what any of them is."""
    try:
        found = _CALL_HEADERS(message) or []
    except (UnicodeDecodeError, SystemError):
        message.set_headers([])  # asked again, it would give the list with holes
        return []
    pairs = found.items() if isinstance(found, dict) else found
    return [(name, _as_bytes(value)) for name, value in pairs]


@dataclass(frozen=True, slots=True)
class Publication:
    """A record to publish, and the record it stands for."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    cause: Record


def client_config(settings: Settings) -> dict[str, str]:
    """What all clients share: the properties file, then the brokers' addresses.

    Raises `SettingsError` when the file cannot be read, is malformed, or sets something protected.
    """
    config: dict[str, str] = {}
    if settings.kafka_config_file is not None:
        config = _read_properties(settings)
    config["bootstrap.servers"] = settings.kafka_bootstrap_servers
    config.setdefault("client.id", f"cfo-sync@{socket.gethostname()}")
    return config


def _read_properties(settings: Settings) -> dict[str, str]:
    path = settings.kafka_config_file
    assert path is not None  # noqa: S101  (narrowing)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"CFO_SYNC_KAFKA_CONFIG_FILE: cannot read {path}: {error}") from error
    config: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(("#", "!")):
            continue
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise SettingsError(f"CFO_SYNC_KAFKA_CONFIG_FILE: {path}, line {number}: write name=value")
        if name in PROTECTED:
            raise SettingsError(f"CFO_SYNC_KAFKA_CONFIG_FILE: {path}, line {number}: {name} is fixed, remove the line")
        config[name] = value.strip()
    return config


# Settings of one kind of client that a properties file for all of them may hold; the others would warn about them.
CONSUMER_ONLY: Final = (
    "fetch.",
    "queued.",
    "session.timeout",
    "heartbeat.",
    "max.poll",
    "group.",
    "auto.commit",
    "check.crcs",
)
PRODUCER_ONLY: Final = (
    "linger.",
    "batch.",
    "compression.",
    "queue.buffering.",
    "transactional.",
    "delivery.",
    "message.timeout",
    "message.max",
)


def without(config: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """The settings that do not begin with one of these."""
    return {name: value for name, value in config.items() if not name.startswith(prefixes)}


def make_consumer(
    settings: Settings,
    logger: Any,
    on_error: Callable[[KafkaError], None],
    on_commit: Callable[[KafkaError | None, list[TopicPartition]], None],
    *,
    fetch_wait_ms: int = 100,
) -> Consumer:
    """A consumer that commits nothing by itself, and sees only committed records.

    While polling, `on_error` is called with what goes wrong on the way to the brokers, `on_commit` with the answer to
    each asynchronous commit. `fetch_wait_ms` is how long a broker may keep a fetch that finds nothing.
    """
    config: dict[str, Any] = {
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        # Small queues: memory stays flat however large the backlog is, and what is fetched beyond them is not missed.
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 4_096,
        "fetch.max.bytes": 4_194_304,
        # How long fetching rests once a queue is full. Its default, a second, is far longer than such a queue lasts us.
        "fetch.queue.backoff.ms": 5,
        "fetch.wait.max.ms": fetch_wait_ms,
        **without(client_config(settings), PRODUCER_ONLY),
        "group.id": settings.group_id,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Debezium's transactions end in markers that only this event lets us see behind: without it an idle group
        # would show a lag of one record per partition for ever.
        "enable.partition.eof": True,
        # Each topic is shared out by itself. `cooperative-sticky` balances the sum over our five topics, and is content
        # when one consumer has all partitions of the source topic and the others those of the retry topics.
        "partition.assignment.strategy": "range",
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "error_cb": on_error,
        "on_commit": on_commit,
    }
    return Consumer(config, logger=logger)


def make_producer(settings: Settings, logger: Any) -> Producer:
    """An idempotent producer whose records may be as large as our topics allow."""
    config: dict[str, Any] = {
        "linger.ms": 5,
        "compression.type": "lz4",
        # Short, because the other partitions wait meanwhile; what fails is tried again.
        "delivery.timeout.ms": 10_000,
        "topic.metadata.propagation.max.ms": 5_000,
        # Larger than any topic's limit: the broker, who knows it, decides what is too large.
        "message.max.bytes": 100_000_000,
        **without(client_config(settings), CONSUMER_ONLY),
        "enable.idempotence": True,
        "acks": "all",
    }
    return Producer(config, logger=logger)


class Admin(AdminClient):
    """A client for topics that remembers what keeps it from the brokers."""

    def __init__(self, config: Mapping[str, Any], logger: Any) -> None:
        causes: list[str] = []

        def note(error: KafkaError) -> None:
            causes[:] = [cause] if (cause := cause_of(error)) else causes

        with_note: dict[str, Any] = {**config, "error_cb": note}
        super().__init__(with_note, logger=logger)
        self._causes = causes

    def cause(self) -> str | None:
        """What is wrong with certificate or login, as `cause_of` says it; None when nothing was heard of that."""
        self.poll(0)
        return self._causes[0] if self._causes else None

    def forget_cause(self) -> None:
        """A broker has answered: the next trouble is another one."""
        self._causes.clear()


def make_admin(settings: Settings, logger: Any) -> Admin:
    """A client for topics."""
    return Admin(without(client_config(settings), CONSUMER_ONLY + PRODUCER_ONLY), logger)


def cause_of(error: KafkaError) -> str | None:
    """What a client's error says about certificate or login, and where that is set; None when it is about neither."""
    text = re.sub(r" \(after \d+ms in state \w+\)$", "", error.str())  # so that it reads the same each time
    if error.code() == KafkaError._AUTHENTICATION:
        return f"{text}: see sasl.* in CFO_SYNC_KAFKA_CONFIG_FILE"
    if error.code() == KafkaError._SSL:
        names = "ssl.ca.location in CFO_SYNC_KAFKA_CONFIG_FILE, and the host names in CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"
        return f"{text}: see {names}, which must be the certificate's"
    if "SSL handshake failed" in text:
        return f"{text}: see security.protocol in CFO_SYNC_KAFKA_CONFIG_FILE"
    return None


_PATIENCE: Final = 5.0  # seconds in which a partition may be without a leader, or a group without a coordinator
_MOVING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


def ask(question: Callable[[], T]) -> T:
    """Ask a broker; again for a while when leaders or coordinators are moving. Raises `KafkaException`."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return question()
        except KafkaException as error:
            if error.args[0].code() not in _MOVING or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _as_bytes(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return str(value).encode()


def _number(value: int | None) -> int:
    return -1 if value is None else value
