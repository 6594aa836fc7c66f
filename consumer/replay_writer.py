"""Writes to the replay topic, and to no other, in transactions: of a set all records can be read, or none.

Kafka knows the writer by one name and lets only the last one that took over write. So whoever takes over knows that
nothing more will arrive from an earlier one, be it killed, stopped or cut off: what stands on the topic now is all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumer import broker
from consumer.broker import Publication
from consumer.faults import Outage
from consumer.settings import Settings

_OPEN_TIMEOUT: Final = 30.0  # seconds; longer than a transaction that somebody left open
_COMMIT_TIMEOUT: Final = 20.0

# The broker gives these to everything that came in the same request.
_REFUSALS: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
    }
)


class Refused(Exception):
    """The brokers do not take these records, or one of them; nothing of the set was written."""


class InDoubt(Exception):
    """Nobody knows whether the set was written, or another writer has taken over: `take_over` before anything else."""


class ReplayWriter:
    """Not thread-safe. `take_over` comes before the first `write`."""

    def __init__(self, settings: Settings, logger: Any) -> None:
        self._settings = settings
        self._logger = logger
        self._producer: Producer | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has taken over, and nothing went wrong since."""
        return self._producer is not None

    def close(self) -> None:
        """Forget the client. What it has not committed will never be read."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def take_over(self) -> None:
        """Become the only writer: whatever earlier ones began can be read now, or never will.

        Raises `Outage` when that cannot be made certain now.
        """
        self.close()
        try:
            producer = self._make()
            producer.init_transactions(_OPEN_TIMEOUT)
        except KafkaException as error:
            why: str = error.args[0].str()
            if error.args[0].code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
                why = f"no Write on the transactional id {self._transactional_id}"
            raise Outage("broker", f"Kafka does not let us write to {self._topic}: {why}") from error
        self._producer = producer

    def write(self, publications: Sequence[Publication]) -> None:
        """Write all or none, confirmed by all replicas in sync. Raises `Refused` or `InDoubt`."""
        if not publications:
            return
        producer = self._producer
        if producer is None:
            raise InDoubt("another writer may have taken over")
        errors: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                errors.append(error)

        try:
            producer.begin_transaction()
            for each in publications:
                if each.topic != self._topic:
                    raise ValueError(f"{each.topic} is not the replay topic")
                self._produce(producer, each, delivered)
            producer.commit_transaction(_COMMIT_TIMEOUT)
        except (KafkaException, BufferError) as error:
            found = error.args[0]
            # A commit that may be tried again may have happened; anything else that can be aborted has not.
            is_known = not (isinstance(found, KafkaError) and found.retriable()) and self._aborted(producer)
            self.close()
            refusals = [each.str() for each in errors if each.code() in _REFUSALS]
            if is_known and refusals:
                raise Refused(refusals[0]) from error
            raise InDoubt(found.str() if isinstance(found, KafkaError) else str(found)) from error
        except BaseException:
            self.close()
            raise

    @property
    def _topic(self) -> str:
        return self._settings.replay_topic

    @property
    def _transactional_id(self) -> str:
        return f"{self._topic}-writer"

    def _make(self) -> Producer:
        shared = broker.without(broker.client_config(self._settings), broker.CONSUMER_ONLY)
        config: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "lz4",
            "topic.metadata.propagation.max.ms": 5_000,
            # Larger than any topic's limit: the broker, who knows it, decides what is too large.
            "message.max.bytes": 100_000_000,
            **shared,
            # While a dead writer's transaction is open, readers wait in front of it. Kafka wants the first to be
            # shorter than the second.
            "delivery.timeout.ms": 10_000,
            "transaction.timeout.ms": 15_000,
            "transactional.id": self._transactional_id,
            "enable.idempotence": True,
            "acks": "all",
        }
        for synonym in ("message.timeout.ms", "request.required.acks"):
            config.pop(synonym, None)
        return Producer(config, logger=self._logger)

    def _aborted(self, producer: Producer) -> bool:
        try:
            producer.abort_transaction(_COMMIT_TIMEOUT)
        except KafkaException:
            return False
        return True

    @staticmethod
    def _produce(
        producer: Producer, each: Publication, delivered: Callable[[KafkaError | None, Message], None]
    ) -> None:
        while True:
            try:
                producer.produce(
                    each.topic, value=each.value, key=each.key, headers=list(each.headers), on_delivery=delivered
                )
            except BufferError:
                # The local queue is full: serve deliveries until there is room.
                if producer.flush(10):
                    raise
            else:
                return
