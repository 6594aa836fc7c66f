"""The real pipeline of one test: its own database, connector, topics and consumer group on the session's stack."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.settings import load
from deploy.local.connector import delete_connector
from deploy.local.ports import choose_port
from deploy.local.preparation import prepare
from deploy.local.stack import Stack
from tests.roles import CONSUMER, DEBEZIUM, create_roles, environment_as
from tests.support import InvoiceSystem, LedgerView

_pipelines = itertools.count(1)

COORDINATOR_MOVES = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)

# The same schedule as in production, in seconds.
SHORT_DELAYS = "1s,2s,3s"


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    """Poll until the condition holds; gives its value. Fails, naming what was waited for."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.05)


class ConsumerProcess:
    """`cfo-sync run` as a process of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.port = choose_port()
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumer", "run"],
                env={
                    **os.environ,
                    **environment,
                    "CFO_SYNC_METRICS_PORT": str(self.port),
                    "CFO_SYNC_METRICS_HOST": "127.0.0.1",
                },
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def wait_ready(self, timeout: float = 30) -> ConsumerProcess:
        """Until it consumes."""
        wait_until(lambda: self.ready()["ready"], "the consumer to be ready", timeout)
        return self

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))
        except OSError:
            return {"ready": False}

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def pause(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines with this message."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]


class Pipeline:
    """Everything of one test."""

    def __init__(
        self, stack: Stack, folder: Path, *, connector: Mapping[str, str] | None = None, **settings: str
    ) -> None:
        number = next(_pipelines)
        self.stack = stack
        self.folder = folder
        self.dbname = f"pipeline_{number}"
        self.prefix = f"p{number}"
        self.connector = f"pipeline-{number}"
        self.source_topic = f"{self.prefix}.public.crypto_invoices"
        environment = prepare(
            stack,
            dbname=self.dbname,
            connector_name=self.connector,
            connector_config={
                "slot.name": f"slot_{number}",
                "database.user": DEBEZIUM,
                "topic.prefix": self.prefix,
                **(connector or {}),
            },
            settings={
                "CFO_SYNC_SOURCE_TOPIC": self.source_topic,
                "CFO_SYNC_GROUP_ID": f"cfo-sync-{number}",
                "CFO_SYNC_TOPIC_PREFIX": f"cfo-sync-{number}",
                "CFO_SYNC_RETRY_DELAYS": SHORT_DELAYS,
                "CFO_SYNC_LOG_FORMAT": "json",
                **settings,
            },
            grant=create_roles,
        )
        self.environment = environment_as(CONSUMER, environment)
        self.settings = load(
            _env_file=None,
            **{
                name.removeprefix("CFO_SYNC_").lower(): value
                for name, value in self.environment.items()
                if name.startswith("CFO_SYNC_")
            },
        )
        self.invoices = InvoiceSystem(stack.postgres.dsn(self.dbname))
        self.ledger = LedgerView(stack.postgres.dsn(self.dbname))
        self.consumers: list[ConsumerProcess] = []

    def start_consumer(self, *, wait: bool = True, **environment: str) -> ConsumerProcess:
        """One more consumer of the group."""
        log = self.folder / f"consumer-{len(self.consumers) + 1}.log"
        process = ConsumerProcess({**self.environment, **environment}, log)
        self.consumers.append(process)
        return process.wait_ready() if wait else process

    def start_drain(self, count: int) -> ConsumerProcess:
        """A consumer in the middle of so many invoices: a thousand are booked."""
        consumer = self.start_consumer(CFO_SYNC_BATCH_SIZE="200")
        self.invoices.paid_invoices(count)
        self.wait_complete(1000)
        return consumer

    def short_session(self) -> str:
        """A file of client settings with which a consumer is missed after three seconds, and not after ten."""
        properties = self.folder / "kafka.properties"
        properties.write_text("session.timeout.ms=3000\nheartbeat.interval.ms=500\n")
        return str(properties)

    def close(self) -> None:
        """End the consumers and the connector."""
        for each in self.consumers:
            if each.process.poll() is None:
                each.resume()
                each.kill()
        self.invoices.close()
        self.ledger.close()
        delete_connector(self.stack.connect.url, self.connector)
        # A slot that nobody reads keeps all of the server's WAL.
        with psycopg.connect(self.stack.postgres.dsn("postgres"), autocommit=True) as connection:
            wait_until(
                lambda: (
                    not connection.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                        " WHERE database = %s AND NOT active",
                        (self.dbname,),
                    ).fetchall()
                    and not connection.execute(
                        "SELECT FROM pg_replication_slots WHERE database = %s", (self.dbname,)
                    ).fetchall()
                ),
                "the replication slot to be dropped",
            )

    # -- topics --------------------------------------------------------------------------------------------------------

    def records(self, topic: str) -> list[Any]:
        """All records that stand on a topic now, by partition and offset."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.settings.kafka_bootstrap_servers,
                "group.id": "test-reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
            }
        )
        try:
            ends = self.end_offsets(topic)
            left = {number for number, (low, high) in ends.items() if high > low}
            consumer.assign([TopicPartition(topic, number, ends[number][0]) for number in left])
            found = []
            deadline = time.monotonic() + 30
            while left:
                assert time.monotonic() < deadline, f"cannot read {topic} to its end"
                for message in consumer.consume(1000, 0.2):
                    assert message.error() is None, message.error()
                    found.append(message)
                positions = consumer.position([TopicPartition(topic, number) for number in left])
                left -= {each.partition for each in positions if each.offset >= ends[each.partition][1]}
            return sorted(found, key=lambda message: (message.partition(), message.offset()))
        finally:
            consumer.close()

    def end_offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        """First and next offset of each partition."""
        consumer = Consumer({"bootstrap.servers": self.settings.kafka_bootstrap_servers, "group.id": "test-reader"})
        try:
            partitions = consumer.list_topics(topic, 10).topics[topic].partitions
            return {number: consumer.get_watermark_offsets(TopicPartition(topic, number), 10) for number in partitions}
        finally:
            consumer.close()

    def dead_letters(self) -> list[Any]:
        """The records of the dead-letter topic."""
        return self.records(self.settings.dlq_topic)

    def retries(self) -> list[Any]:
        """The records of the three retry topics."""
        return [message for topic in self.settings.retry_topics for message in self.records(topic)]

    def lag(self) -> int:
        """Records of all subscribed topics that the group has not committed; -1 while no broker can tell."""
        topics = [self.settings.source_topic, *self.settings.retry_topics, self.settings.replay_topic]
        consumer = Consumer(
            {"bootstrap.servers": self.settings.kafka_bootstrap_servers, "group.id": self.settings.group_id}
        )
        try:
            behind = 0
            for topic in topics:
                partitions = [
                    TopicPartition(topic, number) for number in consumer.list_topics(topic, 10).topics[topic].partitions
                ]
                for each in consumer.committed(partitions, 10):
                    low, high = consumer.get_watermark_offsets(TopicPartition(topic, each.partition), 10)
                    behind += high - (each.offset if each.offset >= 0 else low)
        except KafkaException as error:
            # A broker that was just started has to read the group's offsets first.
            if error.args[0].code() not in COORDINATOR_MOVES:
                raise
            return -1
        else:
            return behind
        finally:
            consumer.close()

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Any = None) -> None:
        """Write a record by hand."""
        producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap_servers})
        producer.produce(topic, value=value, key=key, headers=headers or [])
        assert producer.flush(10) == 0

    def admin(self) -> AdminClient:
        """A client for topics and groups."""
        return AdminClient({"bootstrap.servers": self.settings.kafka_bootstrap_servers})

    # -- what must hold ------------------------------------------------------------------------------------------------

    def wait_complete(self, count: int, timeout: float = 120) -> None:
        """Until so many invoices are complete."""
        wait_until(
            lambda: self.invoices.value("SELECT count(*) FROM crypto_invoices WHERE status = 'complete'") >= count,
            f"{count} complete invoices", timeout,
        )  # fmt: skip

    def wait_quiet(self, timeout: float = 60) -> None:
        """Until the group has committed all that stands on its topics."""
        wait_until(lambda: self.lag() == 0, "the group to catch up", timeout)

    def assert_drained(self, count: int) -> None:
        """Wait until so many invoices are booked, each once; nothing went to the retry topics or the dead letters."""
        self.wait_complete(count)
        self.wait_quiet()
        self.assert_booked_exactly_once(count)
        assert self.retries() == []
        assert self.dead_letters() == []

    def assert_booked_exactly_once(self, count: int) -> None:
        """So many invoices are complete, and each has one transaction, one mapping row and one log row that agree."""
        assert self.invoices.value("SELECT count(*) FROM crypto_invoices WHERE status = 'complete'") == count
        assert self.invoices.value("SELECT count(*) FROM transactions") == count
        assert self.invoices.value("SELECT count(DISTINCT identifier) FROM transactions") == count
        assert self.invoices.value("SELECT count(*) FROM crypto_cfo_sync_log") == count
        agreeing = self.invoices.value(
            "SELECT count(*) FROM crypto_invoices i JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id"
            " JOIN transactions t ON t.id = s.cfo_transaction_id AND t.identifier = i.invoice_number"
            " JOIN crypto_cfo_sync_log l ON l.invoice_id = i.id AND l.cfo_transaction_id = t.id"
            " WHERE s.sync_status = 'synced' AND t.amount = i.amount_usd AND l.sync_status = 'synced'"
        )
        assert agreeing == count
        assert self.invoices.value("SELECT count(*) FROM v_crypto_invoices_pending_sync") == 0
