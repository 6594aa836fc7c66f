"""Publishes records that failed, and asks about topics meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumer.broker import Publication


class Publisher:
    """Publishes records and waits until the brokers have confirmed each."""

    def __init__(self, make: Callable[[], Producer]) -> None:
        self._make = make
        self._producer = make()
        self._is_broken = False

    def serve(self) -> None:
        """Let the client tell what it has to tell; its log would else come all at once, hours later."""
        try:
            self._producer.poll(0)
        except KafkaException:
            # Fatal, and logged: without Write on any topic, say, a producer gets no identity. There may be nothing to
            # publish for long, so the next one is made when it is needed.
            self._is_broken = True

    def topic_error(self, topic: str) -> KafkaError | None:
        """What a broker says against a topic, None when we can see it. Raises `KafkaException` without an answer.

        A consumer's question would wait behind the fetch that the broker has in hand.
        """
        error: KafkaError | None = self._producer.list_topics(topic, 1).topics[topic].error
        return error

    def publish(self, publications: Sequence[Publication]) -> list[tuple[Publication, str]]:
        """Publish all, wait for all; gives those that were not confirmed, with the reason. Never raises for them."""
        if self._is_broken:
            self._renew()
        failed: dict[int, str] = dict.fromkeys(range(len(publications)), "not confirmed in time")

        def confirm(number: int) -> Callable[[KafkaError | None, Message], None]:
            def delivered(error: KafkaError | None, _: Message) -> None:
                if error is None:
                    failed.pop(number, None)
                else:
                    failed[number] = error.str()

            return delivered

        for number, each in enumerate(publications):
            try:
                self._produce(each, confirm(number))
            except (KafkaException, BufferError, SystemError) as error:  # SystemError: as below
                failed[number] = str(error)
        try:
            self._producer.flush(15)
        except (KafkaException, SystemError) as error:
            # Fatal: nothing of what was left will be confirmed. A callback that is called meanwhile makes a SystemError
            # of it.
            fatal = error if isinstance(error, KafkaException) else error.__cause__
            why = fatal.args[0].str() if isinstance(fatal, KafkaException) else str(error)
            failed = dict.fromkeys(failed, f"{why} (if it is not authorized: no Write on any topic)")
        if failed:
            self._renew()
        return [(publications[number], reason) for number, reason in sorted(failed.items())]

    def _renew(self) -> None:
        # A producer with a fatal error never works again, and what it still holds must not arrive after all.
        self._producer.purge()
        self._producer = self._make()
        self._is_broken = False

    def _produce(self, each: Publication, delivered: Callable[[KafkaError | None, Message], None]) -> None:
        while True:
            try:
                self._producer.produce(
                    each.topic, value=each.value, key=each.key, headers=list(each.headers), on_delivery=delivered
                )
            except BufferError:
                # The local queue is full: serve deliveries until there is room.
                if self._producer.flush(15):
                    raise
            else:
                return
