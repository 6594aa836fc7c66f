"""The consumer of `cfo-sync run`: poll, hand batches to the pipeline, publish, commit. The only place that commits.

Order is the promise: what a batch did is committed in the database, then its faults are published and confirmed, then
its offsets are committed. A crash anywhere repeats work that is idempotent. An outage moves nothing: the batch in hand
is kept and tried again while polling goes on, so that the group stays as it is (DESIGN, "Hold").
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumer.access import ASK_AGAIN_SECONDS, UNREADABLE, Access
from consumer.faults import Outage
from consumer.health import Health
from consumer.metrics import Metrics
from consumer.partitions import Key, Partitions, key_of, names
from consumer.pipeline import Handled, Pipeline
from consumer.publisher import Publisher
from consumer.reporting import Report, place_of
from consumer.retry import Backoff
from consumer.settings import Settings
from consumer.sweep import Sweep

MakeConsumer: TypeAlias = Callable[
    [Callable[[KafkaError], None], Callable[[KafkaError | None, list[TopicPartition]], None]], Consumer
]

_LOG: Final = structlog.get_logger("worker")

_IDLE_SECONDS: Final = 1.0  # longest wait for a first record
_GATHER_SECONDS: Final = 0.02  # wait for more records of the same batch
_CLOSE_SECONDS: Final = 10.0  # for leaving the group
_KEEPALIVE_SECONDS: Final = 20.0  # between polls, while a batch is bisected
_LAZY_COMMIT_SECONDS: Final = 1.0  # for offsets of records that asked nothing of us
_COMMIT_PATIENCE: Final = 90.0  # with a commit that is not answered, longer than any request to a broker takes


@dataclass(slots=True)
class Hold:
    """Nothing can be synced now: the batch in hand, and when it is tried again (monotonic seconds)."""

    batch: list[Message]
    outage: Outage
    retry_at: float
    since: float


class Worker:
    """One consumer. `run` returns when `stop` was called and the batch in hand is finished."""

    def __init__(
        self,
        settings: Settings,
        make_consumer: MakeConsumer,
        publisher: Publisher,
        pipeline: Pipeline,
        sweep: Sweep,
        metrics: Metrics,
        health: Health,
        *,
        uniform: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._access = Access(settings, metrics, health, monotonic)
        self._consumer = make_consumer(self._access.failed, self._committed)
        self._publisher = publisher
        self._pipeline = pipeline
        self._sweep = sweep
        self._metrics = metrics
        self._report = Report(metrics, now)
        self._health = health
        self._now, self._monotonic = now, monotonic
        self._partitions = Partitions(self._consumer, now)
        self._hold: Hold | None = None
        self._hold_backoff = Backoff(0.5, 30, uniform)
        self._publish_backoff = Backoff(1, 30, uniform)
        self._committing = False
        self._stopping = self._leaving = False
        self.is_closed = False
        self._last_poll = self._last_commit = monotonic()

    def stop(self) -> None:
        """Finish the batch in hand and leave the group. May be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Consume until stopped."""
        topics = list(self._settings.consumed_topics)
        self._consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        try:
            while not self._stopping:
                self._step()
            self._commit_before_leaving(patience=5)
            self._leaving = True
        finally:
            self._close()

    def _close(self) -> None:
        """Leave the group. Without a broker librdkafka can wait for one without end, and we do not."""
        closing = threading.Thread(target=self._consumer.close, name="close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        self.is_closed = not closing.is_alive()

    def _step(self) -> None:
        self._health.beat()
        self._publisher.serve()
        self._access.look(self._publisher.topic_error, {topic for topic, _ in self._partitions.assigned})
        self._partitions.unpark(paused=self._hold is not None)
        if self._hold is not None:
            self._keep_holding(self._hold)
            return
        batch = self._sift(self._poll())
        if batch:
            self._work(batch)
        if self._hold is None:
            self._partitions.pass_markers()
        if self._monotonic() - self._last_commit >= _LAZY_COMMIT_SECONDS:
            self._commit()
        if self._hold is None and self._sweep.is_due:
            self._run_sweep()

    # -- a batch -------------------------------------------------------------------------------------------------------

    def _poll(self) -> list[Message]:
        """A first record as soon as there is one, and what else is there: `consume` waits for a full batch."""
        first = self._consumer.poll(self._patience())
        self._last_poll = self._monotonic()
        if first is None:
            return []
        return [first, *self._consumer.consume(self._settings.batch_size - 1, _GATHER_SECONDS)]

    def _patience(self) -> float:
        due = self._partitions.next_due()
        return _IDLE_SECONDS if due is None else min(_IDLE_SECONDS, due)

    def _sift(self, messages: Sequence[Message]) -> list[Message]:
        """Keep what may be handled now; park partitions whose next record is not due."""
        batch: list[Message] = []
        unreadable = self._access.unreadable
        for message in messages:
            if (error := message.error()) is not None:
                self._erred(message, error)
                continue
            key = key_of(message)
            if unreadable and key[0] in unreadable:
                self._access.can_read({key[0]})
            if not self._partitions.is_readable(key):
                continue
            due = self._pipeline.not_before(message)
            if due is not None and due > self._now():
                self._partitions.park(key, message.offset() or 0, due)
            else:
                batch.append(message)
        return batch

    def _erred(self, message: Message, error: KafkaError) -> None:
        """Not a record: the end of a partition, a refusal, or trouble that librdkafka deals with."""
        topic, number = key_of(message)
        if error.code() in UNREADABLE:
            self._access.cannot_read(topic, error)
            offset = message.offset()  # None when it is about the topic, and not about one of its partitions
            if offset is not None and self._partitions.is_readable((topic, number)):
                # Of a partition it says this once, and nothing when it ends: so let it fetch anew.
                self._partitions.park((topic, number), offset, self._now() + timedelta(seconds=ASK_AGAIN_SECONDS))
        elif self._partitions.reached_end(message):
            self._access.can_read({topic})
        else:
            _LOG.warning("kafka", error=error.str(), code=error.name())

    def _work(self, batch: list[Message]) -> None:
        started = self._monotonic()
        try:
            handled = self._pipeline.handle(batch, self._keepalive)
        except Outage as outage:
            self._begin_hold(batch, outage)
            return
        self._finish(batch, handled)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(self._monotonic() - started)

    def _finish(self, batch: Sequence[Message], handled: Handled) -> None:
        """Publish what failed, then let offsets go: each partition's up to its first record that was not published."""
        state = self._partitions
        ends: dict[Key, int] = {}
        for message in batch:
            ends[key_of(message)] = (message.offset() or 0) + 1
        stuck: dict[Key, int] = {}
        if handled.publications:
            started = self._monotonic()
            failed = self._publisher.publish(handled.publications)
            self._report.published(self._monotonic() - started)
            for publication, reason in failed:
                cause = publication.cause
                key = (cause.topic, cause.partition)
                stuck[key] = min(stuck.get(key, cause.offset), cause.offset)
                _LOG.error("cannot publish", to=publication.topic, reason=reason, **place_of(cause))
        for key, end in ends.items():
            if key in state.assigned:
                state.done[key] = stuck.get(key, end)
        if stuck:
            until = self._now() + timedelta(seconds=self._publish_backoff.next_wait())
            for key, offset in stuck.items():
                if key in state.assigned:
                    state.park(key, offset, until)
        else:
            self._publish_backoff.reset()
        self._metrics.hold.labels("publish").set(1 if stuck else 0)
        self._report.batch(len(batch), handled)
        if handled.had_work:
            self._commit()

    def _commit(self) -> None:
        """Send the offsets of what is done, unless some are on their way; `_committed` hears of them.

        Not waited for: while no broker answers that would stop the polling, and a failure costs nothing but doing the
        work again.
        """
        is_awaited = self._committing and self._monotonic() - self._last_commit < _COMMIT_PATIENCE
        if self._partitions.done and not is_awaited:
            self._send_offsets()

    def _send_offsets(self) -> None:
        self._last_commit = self._monotonic()
        try:
            self._consumer.commit(offsets=self._partitions.offsets(), asynchronous=True)
        except KafkaException as error:
            _LOG.warning("offsets not committed, will be again", error=error.args[0].str())
        else:
            self._committing = True

    def _committed(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """The broker's answer. What it did not take stays among what is to be committed."""
        took = self._monotonic() - self._last_commit if self._committing else None
        self._committing = False
        for each in offsets:
            failure = error or each.error
            if failure is not None:
                _LOG.warning("offset not committed", topic=each.topic, partition=each.partition, error=str(failure))
            else:
                self._partitions.committed(each)
        if error is None:
            self._access.can_read({""})
            self._report.committed(took)

    def _commit_before_leaving(self, patience: float) -> None:
        """Commit and wait for the answer, but not for ever."""
        deadline = self._monotonic() + patience
        self._partitions.pause()
        while (self._partitions.done or self._committing) and self._monotonic() < deadline:
            self._commit()
            self._put_back(self._consumer.poll(0.05))

    def _keepalive(self) -> None:
        """Between the transactions of a long batch: poll, so that the group does not take us for dead."""
        if self._monotonic() - self._last_poll < _KEEPALIVE_SECONDS:
            return
        self._partitions.pause()
        self._put_back(self._consumer.poll(0))
        self._last_poll = self._monotonic()
        if self._hold is None:
            self._partitions.resume()

    # -- hold ----------------------------------------------------------------------------------------------------------

    def _begin_hold(self, batch: list[Message], outage: Outage) -> None:
        now = self._monotonic()
        wait = self._hold_backoff.next_wait()
        if self._hold is None:
            _LOG.error(
                "on hold", reason=outage.reason, detail=outage.message, records=len(batch), retry_in=round(wait, 1)
            )
            self._hold = Hold(batch, outage, now + wait, since=now)
            self._partitions.pause()
        else:
            _LOG.warning("still on hold", reason=outage.reason, detail=outage.message, retry_in=round(wait, 1))
            if outage.reason != self._hold.outage.reason:
                self._metrics.hold.labels(self._hold.outage.reason).set(0)
            self._hold.outage, self._hold.retry_at = outage, now + wait
        self._metrics.hold.labels(outage.reason).set(1)
        self._health.hold(outage)

    def _keep_holding(self, hold: Hold) -> None:
        wait = max(0.0, min(0.5, hold.retry_at - self._monotonic()))
        if hold.outage.wants_another and len(hold.batch) < self._settings.batch_size:
            # One more record tells a poisonous one from a sick database.
            self._partitions.resume()
            another = self._poll_one(wait)
            self._partitions.pause()
            hold.batch += another  # only now: polling may have taken revoked partitions' records out
        else:
            self._put_back(self._consumer.poll(wait))
        self._last_poll = self._monotonic()
        if self._stopping or self._monotonic() < hold.retry_at:
            return
        if not hold.batch:
            # All of it went to other consumers in a rebalance: they hold it now.
            self._end_hold()
            return
        try:
            handled = self._pipeline.handle(hold.batch, self._keepalive)
        except Outage as outage:
            self._begin_hold(hold.batch, outage)
            return
        self._end_hold()
        self._finish(hold.batch, handled)

    def _poll_one(self, patience: float) -> list[Message]:
        """At most one record that may be handled; ends of partitions do not count."""
        deadline = self._monotonic() + patience
        while (left := deadline - self._monotonic()) > 0:
            message = self._consumer.poll(left)
            if message is not None and (found := self._sift([message])):
                return found
        return []

    def _end_hold(self) -> None:
        hold, self._hold = self._hold, None
        self._hold_backoff.reset()
        if hold is not None:
            _LOG.warning("hold ended", reason=hold.outage.reason, seconds=round(self._monotonic() - hold.since, 1))
            self._metrics.hold.labels(hold.outage.reason).set(0)
        self._health.hold(None)
        self._partitions.resume()

    # -- assignment ----------------------------------------------------------------------------------------------------

    def _put_back(self, message: Message | None) -> None:
        """Something came while everything is paused."""
        if message is None:
            return
        if message.error() is None:
            self._partitions.put_back(message)
        else:
            self._sift([message])

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        keys = self._partitions.add(partitions, paused=self._hold is not None)
        _LOG.info("partitions assigned", partitions=names(keys))
        self._access.can_read({""})
        self._health.assigned(len(self._partitions.assigned))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Sent before we ask for new partitions, and so before anybody else is given these. Not waited for, here less
        # than anywhere: after a session that timed out librdkafka may never answer.
        if self._partitions.done and not self._leaving:
            self._send_offsets()
        self._lost(consumer, partitions)

    def _lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        keys = self._partitions.drop(partitions)
        if self._hold is not None:
            # Uncommitted: whoever gets the partitions reads these records again.
            self._hold.batch = [message for message in self._hold.batch if key_of(message) not in keys]
        _LOG.info("partitions revoked", partitions=names(keys))
        self._health.assigned(len(self._partitions.assigned))

    # -- sweep ---------------------------------------------------------------------------------------------------------

    def _run_sweep(self) -> None:
        try:
            outcomes = self._sweep.step()
        except Outage as outage:
            _LOG.warning("sweep put off", reason=outage.reason, detail=outage.message)
            return
        self._report.swept(outcomes)
