"""How each kind of fault is done to the real parts, and undone again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from deploy.local.connector import request, wait_connector_running
from deploy.local.part import Part
from tests import roles
from tests.faults.schedule import Planned

if TYPE_CHECKING:
    from tests.faults.campaign import Pipeline

_CONSUMER: Final = "application_name = 'cfo-sync'"
_FAILING: Final = "campaign_disk_full"


class Injectors:
    """Does planned faults to one pipeline. A fault waits for its turn at the parts that it needs for itself."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._stack = pipeline.stack
        names = ("postgres", "kafka", "connect", "spare", *(f"replica-{each.number}" for each in pipeline.replicas))
        self._turns = {name: threading.Lock() for name in names}
        self.lost: list[tuple[datetime, datetime]] = []

    def inject(self, planned: Planned) -> dict[str, Any]:
        """Do it and undo it; gives when it began and ended, seconds after the campaign's start."""
        family = planned.kind.split("-")[0]
        turns, work = {
            "consumer": ([f"replica-{planned.replica}"] if planned.replica else ["spare"], self._consumer),
            "postgres": (["postgres"], self._postgres),
            "kafka": (["kafka"], self._kafka),
            "connect": (["connect"], self._connect),
            "dlq": (["kafka"], self._dlq_unwritable),
        }.get(family, (["postgres"], self._sql))
        if planned.kind in _LOSSES:
            turns, work = list(self._turns), _LOSSES[planned.kind].__get__(self)
        with self.having(*turns):
            began = self._pipeline.clock()
            work(planned)
            return planned.as_json() | {"began": round(began, 2), "ended": round(self._pipeline.clock(), 2)}

    @contextmanager
    def having(self, *turns: str) -> Iterator[None]:
        """Nobody else does anything to these parts meanwhile."""
        with ExitStack() as held:
            for name in sorted(turns):
                held.enter_context(self._turns[name])
            yield

    # -- consumers -----------------------------------------------------------------------------------------------------

    def _consumer(self, planned: Planned) -> None:
        if not planned.replica:
            self._pipeline.spare.start()
            time.sleep(planned.seconds)
            self._pipeline.spare.stop()
            return
        replica = self._pipeline.replicas[planned.replica - 1]
        match planned.kind:
            case "consumer-kill":
                replica.kill()
                time.sleep(planned.seconds)
                replica.start()
            case "consumer-freeze":
                replica.pause()
                time.sleep(planned.seconds)
                replica.resume()
            case "consumer-leaves":
                replica.stop()
                time.sleep(planned.seconds)
                replica.start()
            case "consumer-clock":
                skew = self._pipeline.max_skew * (1 if planned.seconds * 100 % 2 < 1 else -1)
                replica.stop()
                replica.start(skew=skew)
                time.sleep(planned.seconds)
                replica.stop()
                replica.start()
            case _:
                raise AssertionError(planned.kind)

    # -- servers and the way to them -----------------------------------------------------------------------------------

    def _postgres(self, planned: Planned) -> None:
        if planned.kind == "postgres-backends":
            with self._admin() as connection:
                connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_CONSUMER}")
        elif planned.kind.startswith("postgres-net-"):
            self._net(planned, "postgres")
        else:
            _part(planned, self._stack.postgres)

    def _kafka(self, planned: Planned) -> None:
        if planned.kind.startswith("kafka-net-"):
            self._net(planned, "kafka")
        else:
            _part(planned, self._stack.kafka)

    def _connect(self, planned: Planned) -> None:
        _part(planned, self._stack.connect)

    def _net(self, planned: Planned, to: str) -> None:
        proxy = self._pipeline.proxies[to]
        match planned.kind.removeprefix(f"{to}-net-"):
            case "cut":
                proxy.cut()
            case "refuse":
                proxy.refuse(True)
                time.sleep(planned.seconds)
                proxy.refuse(False)
            case "delay":
                proxy.delay(0.2)
                time.sleep(planned.seconds)
                proxy.delay(0)
            case "half-open":
                proxy.half_open(True)
                time.sleep(planned.seconds)
                proxy.half_open(False)
            case other:
                raise AssertionError(other)

    # -- PostgreSQL says no --------------------------------------------------------------------------------------------

    def _sql(self, planned: Planned) -> None:
        role, ledger = self._pipeline.consumer_role, self._pipeline.cfo_dsn
        invoices = self._pipeline.invoice_dsn
        begin: tuple[str, ...]
        end: tuple[str, ...]
        match planned.kind:
            case "read-only":
                begin = (
                    f"ALTER ROLE {role} SET default_transaction_read_only = on",
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_CONSUMER}",
                )
                end = (
                    f"ALTER ROLE {role} RESET default_transaction_read_only",
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_CONSUMER}",
                )
                self._for_a_while(planned, self._stack.postgres.superuser_dsn(), begin, end)
            case "disk-full":
                begin = (
                    f"CREATE FUNCTION {_FAILING}() RETURNS trigger LANGUAGE plpgsql AS"
                    " $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device'"
                    " USING ERRCODE = 'disk_full'; END $$",
                    f"CREATE TRIGGER {_FAILING} BEFORE INSERT OR UPDATE ON transactions FOR EACH STATEMENT"
                    f" WHEN (current_setting('application_name') = 'cfo-sync') EXECUTE FUNCTION {_FAILING}()",
                )
                end = (f"DROP FUNCTION {_FAILING} CASCADE",)
                self._for_a_while(planned, ledger, begin, end)
            case "privilege-revoked":
                table, dsn = self._pick(planned, ("transactions", ledger), ("crypto_cfo_sync_log", invoices))
                file = roles.CFO_DATABASE if table == "transactions" else roles.INVOICE_DATABASE
                begin = (f"REVOKE INSERT ON {table} FROM {role}",)
                self._for_a_while(planned, dsn, begin, (file.read_text(),))
            case "column-dropped":
                (table, column), dsn = self._pick(
                    planned,
                    (("transactions", "currency"), ledger),
                    (("crypto_cfo_sync_log", "response_data"), invoices),
                )
                begin = (f"ALTER TABLE {table} RENAME {column} TO {column}_gone",)
                self._for_a_while(planned, dsn, begin, (f"ALTER TABLE {table} RENAME {column}_gone TO {column}",))
            case "deadlock":
                self._deadlock()
            case "table-locked":
                table, dsn = self._pick(planned, ("transactions", ledger), ("crypto_invoice_cfo_sync", invoices))
                with suppress(psycopg.OperationalError), psycopg.connect(dsn) as connection:
                    connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
                    time.sleep(planned.seconds)
            case other:
                raise AssertionError(other)

    def _pick(self, planned: Planned, *choices: tuple[Any, str]) -> tuple[Any, str]:
        return choices[int(planned.seconds * 100) % len(choices)]

    def _for_a_while(self, planned: Planned, dsn: str, begin: tuple[str, ...], end: tuple[str, ...]) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            with connection.transaction():
                for statement in begin:
                    connection.execute(statement.encode())
            time.sleep(planned.seconds)
            for statement in end:
                connection.execute(statement.encode())

    def _deadlock(self) -> None:
        """Take what our booking takes, in another order: a mapping row first, then the invoice's row.

        PostgreSQL ends one of the two; this one takes back what it did in any case.
        """
        with psycopg.connect(self._pipeline.invoice_dsn, autocommit=True) as connection:
            ids = [
                row[0]
                for row in connection.execute(
                    "SELECT id FROM crypto_invoices WHERE status = 'sent' AND amount_usd > 0 AND client_id < 10000000"
                    " ORDER BY id DESC LIMIT 20"
                )
            ]
            connection.execute(
                "INSERT INTO campaign.expected SELECT unnest(%s::int[]), 'locked' ON CONFLICT DO NOTHING", [ids]
            )
            with suppress(psycopg.errors.DeadlockDetected), connection.transaction(force_rollback=True):
                connection.execute(
                    "INSERT INTO crypto_invoice_cfo_sync (invoice_id) SELECT unnest(%s::int[]) ON CONFLICT DO NOTHING",
                    [ids],
                )
                with psycopg.connect(self._pipeline.invoice_dsn) as payer:
                    payer.execute(
                        "UPDATE crypto_invoices SET status = 'paid', paid_at = now() AT TIME ZONE 'UTC'"
                        " WHERE id = ANY(%s) AND status = 'sent'",
                        [ids],
                    )
                time.sleep(0.5)
                connection.execute("UPDATE crypto_invoices SET notes = 'seen' WHERE id = ANY(%s)", [ids])

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self._stack.postgres.superuser_dsn(), autocommit=True)

    # -- Kafka says no -------------------------------------------------------------------------------------------------

    def _kafka_admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self._stack.kafka.bootstrap_servers})

    def _dlq_unwritable(self, planned: Planned) -> None:
        topic, name = self._pipeline.settings.dlq_topic, "max.message.bytes"
        admin = self._kafka_admin()
        [described] = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        before = described.result(20)[name].value
        for value in ("10", before):
            entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
            for future in admin.incremental_alter_configs([resource]).values():
                future.result(20)
            if value != before:
                time.sleep(planned.seconds)

    # -- what loses records --------------------------------------------------------------------------------------------

    def _slot_dropped_snapshot(self, planned: Planned) -> None:
        """The slot is gone: Debezium makes a new one and reads the whole table."""
        with self._stopped_connector():
            self._drop_slot()
            time.sleep(planned.seconds)

    def _slot_dropped_no_snapshot(self, planned: Planned) -> None:
        """The slot is gone, and what changed meanwhile never becomes an event."""
        path = f"/connectors/{self._pipeline.connector}"
        with self._stopped_connector():
            self._drop_slot()
            time.sleep(planned.seconds)
            self._ask("DELETE", f"{path}/offsets", None)
            self._ask("PUT", f"{path}/config", self._pipeline.connector_config | {"snapshot.mode": "no_data"})
        self._ask("PUT", f"{path}/config", self._pipeline.connector_config)
        wait_connector_running(self._stack.connect.url, self._pipeline.connector)

    @contextmanager
    def _stopped_connector(self) -> Iterator[None]:
        path = f"/connectors/{self._pipeline.connector}"
        self._ask("PUT", f"{path}/stop", None)
        yield
        self._ask("PUT", f"{path}/resume", None)
        wait_connector_running(self._stack.connect.url, self._pipeline.connector)

    def _ask(self, method: str, path: str, body: Any) -> None:
        status, answer = request(self._stack.connect.url, method, path, body)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer}")

    def _drop_slot(self) -> None:
        deadline = time.monotonic() + 30
        with self._admin() as connection:
            while True:
                try:
                    connection.execute("SELECT pg_drop_replication_slot(%s)", [self._pipeline.slot])
                except psycopg.errors.ObjectInUse:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
                else:
                    return

    def _offsets_reset(self, planned: Planned) -> None:
        """All is read again from the beginning, the retry topics too."""
        replicas = self._pipeline.replicas
        for each in replicas:
            each.stop()
        settings = self._pipeline.settings
        admin = self._kafka_admin()
        described = admin.list_topics(timeout=20).topics
        beginnings = [
            TopicPartition(topic, number, 0)
            for topic in settings.consumed_topics
            for number in described[topic].partitions
        ]
        deadline = time.monotonic() + 30
        while True:
            request_ = ConsumerGroupTopicPartitions(settings.group_id, beginnings)
            try:
                for future in admin.alter_consumer_group_offsets([request_]).values():
                    future.result(20)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)  # a killed member is still believed to be there
            else:
                break
        for each in replicas:
            each.start()

    def _older_broker_log(self, planned: Planned) -> None:
        """The broker's disk is restored from a copy of some seconds ago; its clients are started anew with it.

        Consumers would else stand where the lost log had brought them: in front of offsets that come a second time.
        """
        kafka, connect = self._stack.kafka, self._stack.connect
        data, copy = kafka.folder / "data", kafka.folder / "data.copy"
        kafka.stop()
        copied = datetime.now(UTC)
        shutil.copytree(data, copy)
        kafka.start()
        kafka.wait_ready(60)
        time.sleep(8 + planned.seconds)
        connect.kill()
        kafka.kill()
        shutil.rmtree(data)
        copy.rename(data)
        self.lost.append((copied, datetime.now(UTC)))
        kafka.start()
        kafka.wait_ready(60)
        for replica in self._pipeline.replicas:
            replica.stop()
            replica.start()
        connect.start()
        connect.wait_ready(60)
        wait_connector_running(connect.url, self._pipeline.connector)


_LOSSES: Final[dict[str, Callable[[Injectors, Planned], None]]] = {
    "slot-dropped-snapshot": Injectors._slot_dropped_snapshot,
    "slot-dropped-no-snapshot": Injectors._slot_dropped_no_snapshot,
    "offsets-reset": Injectors._offsets_reset,
    "older-broker-log": Injectors._older_broker_log,
}


def _part(planned: Planned, part: Part) -> None:
    if planned.kind.endswith("-kill"):
        part.kill()
        time.sleep(planned.seconds)
        part.start()
        part.wait_ready(90)
    else:
        part.pause()
        time.sleep(planned.seconds)
        part.resume()
        part.wait_ready(90)
