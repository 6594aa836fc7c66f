"""What is measured on: a stack of its own, and for each run a database, topics and a group of its own.

PostgreSQL keeps its data on disk, with fsync and synchronous_commit on.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg import sql

from consumer import origins, topics
from consumer.broker import make_admin
from consumer.settings import Settings, load
from deploy.local.connector import delete_connector, register_connector, request, wait_connector_running
from deploy.local.downloads import fetch_optional
from deploy.local.errors import StackError
from deploy.local.postgres import OWNER
from deploy.local.preparation import connector_definition, prepare_database
from deploy.local.stack import Stack
from tests.bench.results import say

SINK: Final = "jdbc-sink"
PARTITIONS: Final = 8

# Ids of one to `count`.
_INVOICES: Final = """
INSERT INTO crypto_clients (id, name) VALUES (1, 'Alps Blockchain'), (2, 'Exos Capital'), (3, 'GM Data Centers'),
    (4, 'Somebody Else');
INSERT INTO crypto_invoices (id, invoice_number, client_id, status, amount_usd, crypto_currency, crypto_amount,
    crypto_network, billing_period, description, created_at, updated_at, paid_at)
SELECT n, 'BENCH-' || n, 1 + n % 4, '{status}', {amount}, 'USDT', 100 + n % 90000,
    'TRC20', 'October 2025', 'Hosting services', now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC',
    now() AT TIME ZONE 'UTC' - n * interval '1 second'
FROM generate_series(1, {count}) n;
SELECT setval('crypto_invoices_id_seq', {count});
"""
_PAYMENTS: Final = """
INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency, network, status,
    confirmations, confirmed_at)
SELECT n, md5(n::text) || md5('b' || n), 100 + n % 90000, 'USDT', 'TRC20', 'confirmed', 20, now() AT TIME ZONE 'UTC'
FROM generate_series(1, {count}) n;
"""


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 120, every: float = 0.05) -> Any:
    """Poll until the condition holds; gives its value. Raises TimeoutError, naming what was waited for."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(every)
    return value


class Bed:
    """The stack, and what the runs make on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = Stack(folder / "stack", detached=False)
        self._numbers = itertools.count(1)
        self._templates: dict[tuple[Any, ...], str] = {}

    def __enter__(self) -> Bed:
        self.stack.connect.plugins[SINK] = fetch_optional(SINK)
        self.stack.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.remove()

    # -- databases -----------------------------------------------------------------------------------------------------

    def superuser(self, dbname: str = "postgres") -> psycopg.Connection:
        """A session that may do everything, in autocommit mode."""
        return psycopg.connect(self.stack.postgres.superuser_dsn(dbname), autocommit=True)

    def template(
        self, count: int, *, status: str = "paid", amount: str = "100 + n % 90000", is_paid: bool = True
    ) -> str:
        """A database with so many invoices, and a payment for each if they are paid; made once, copied for each run."""
        key = (count, status, amount, is_paid)
        if key not in self._templates:
            name = f"template_{len(self._templates)}"
            prepare_database(self.stack, name)
            with psycopg.connect(self.stack.postgres.dsn(name), autocommit=True) as connection:
                connection.execute(_INVOICES.format(count=count, status=status, amount=amount).encode())
                if is_paid:
                    connection.execute(_PAYMENTS.format(count=count).encode())
            with self.superuser(name) as connection:
                connection.execute("VACUUM ANALYZE")
                # For SILENCE_ECHO; the copies have it too.
                connection.execute(f"GRANT EXECUTE ON FUNCTION {', '.join(origins.FUNCTIONS)} TO {OWNER}".encode())
            self._templates[key] = name
        return self._templates[key]

    def copy(self, template: str, name: str) -> None:
        """A database like the template, on disk, with no write of it outstanding."""
        with self.superuser() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER cfo STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
            connection.execute("CHECKPOINT")

    def drop(self, name: str) -> None:
        """Delete a database, whoever uses it, and its replication slots."""
        with self.superuser() as connection:

            def is_without_slots() -> bool:
                with suppress(psycopg.errors.ObjectInUse):
                    connection.execute(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                        " WHERE database = %s AND NOT active",
                        (name,),
                    )
                query = "SELECT FROM pg_replication_slots WHERE database = %s"
                return connection.execute(query, (name,)).fetchone() is None

            wait_until(is_without_slots, "the replication slot to be free")
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    # -- runs ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def scene(
        self, template: str, *, partitions: int = PARTITIONS, environment: Mapping[str, str] | None = None
    ) -> Iterator[Scene]:
        """All that one run needs for itself; nothing of it is left afterwards."""
        number = next(self._numbers)
        prefix = f"b{number}"
        name = f"bench_{number}"
        self.copy(template, name)
        variables = self.stack.environment(name) | {
            "CFO_SYNC_SOURCE_TOPIC": f"{prefix}.public.crypto_invoices",
            "CFO_SYNC_GROUP_ID": f"bench-{number}",
            "CFO_SYNC_TOPIC_PREFIX": f"bench-{number}",
            "CFO_SYNC_LOG_FORMAT": "json",
            "CFO_SYNC_SWEEP_INTERVAL": "1d",
            **(environment or {}),
        }
        overrides = {
            key.removeprefix("CFO_SYNC_").lower(): value
            for key, value in variables.items()
            if key.startswith("CFO_SYNC_")
        }
        scene = Scene(self, number, name, prefix, load(_env_file=None, **overrides), variables)
        try:
            scene.create_topics(partitions)
            yield scene
        finally:
            scene.close()


@dataclass(slots=True)
class Scene:
    """One run's database, topics, group, connectors and processes."""

    bed: Bed
    number: int
    dbname: str
    prefix: str
    settings: Settings
    environment: Mapping[str, str]
    cleanup: ExitStack = field(default_factory=ExitStack)
    _offsets: Consumer | None = None

    @property
    def dsn(self) -> str:
        return self.bed.stack.postgres.dsn(self.dbname)

    @property
    def topic(self) -> str:
        return self.settings.source_topic

    @property
    def folder(self) -> Path:
        return self.bed.folder

    def create_topics(self, partitions: int) -> None:
        """As `cfo-sync topics create` does."""
        admin = make_admin(self.settings, logging.getLogger("kafka"))
        plans = topics.plan(self.settings, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, partitions)
        topics.create(admin, plans, {})

    def admin(self) -> AdminClient:
        """A client for topics and groups."""
        return AdminClient({"bootstrap.servers": self.settings.kafka_bootstrap_servers, "log_level": 3})

    def start_connector(self, config: Mapping[str, str] | None = None) -> str:
        """Debezium captures this database from now on, as debezium-connector.json says; gives its name."""
        name = f"bench-source-{self.number}"
        definition = connector_definition(
            name,
            {
                "database.dbname": self.dbname,
                "slot.name": f"bench_{self.number}",
                "topic.prefix": self.prefix,
                "snapshot.mode": "no_data",
                **(config or {}),
            },
        )
        self.add_connector(definition)
        slot = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
        with self.bed.superuser() as connection:
            wait_until(
                lambda: connection.execute(slot, (f"bench_{self.number}",)).fetchone() is not None,
                "Debezium to stream",
            )
        return name

    def add_connector(self, definition: Mapping[str, Any]) -> None:
        """Register it, wait until it runs, and delete it when the scene closes."""
        url, name = self.bed.stack.connect.url, definition["name"]
        self.cleanup.callback(_delete_connector, url, name)
        register_connector(url, definition)
        try:
            wait_connector_running(url, name, 15)
        except StackError:
            # Connect now and then forgets a connector that comes while another one goes.
            if request(url, "GET", f"/connectors/{name}/status")[0] != 404:
                raise
            say(f"  {name} was not started by Connect: registered again")
            _delete_connector(url, name)
            register_connector(url, definition)
            wait_connector_running(url, name)

    def value(self, query: str, *parameters: Any) -> Any:
        """The single value of a query."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute(query.encode(), parameters or None).fetchone()
        return None if row is None else row[0]

    # -- the group -----------------------------------------------------------------------------------------------------

    def wait_assigned(
        self, members: int, partitions: int, group: str | None = None, timeout: float = 60
    ) -> tuple[int, ...]:
        """Until so many members share so many partitions of the source topic; gives how many each has of it."""
        admin, group = self.admin(), group or self.settings.group_id

        def shares() -> tuple[int, ...]:
            with suppress(KafkaException):
                found = admin.describe_consumer_groups([group])[group].result(10)
                assigned = [
                    sum(each.topic == self.topic for each in member.assignment.topic_partitions)
                    for member in found.members
                ]
                if found.state.name == "STABLE" and sum(assigned) == partitions and len(assigned) == members:
                    return tuple(sorted(assigned))
            return ()

        return tuple(wait_until(shares, f"{members} members of {group}", timeout, every=0.02))

    def wait_committed(self, ends: Mapping[int, int], timeout: float = 600) -> float:
        """Until the group has committed these offsets of the source topic; gives the moment (monotonic)."""
        return self.watch_committed(ends, timeout)[-1][0]

    def watch_committed(self, ends: Mapping[int, int], timeout: float = 600) -> list[tuple[float, int]]:
        """The same; gives each moment (monotonic) at which more was committed, and the sum of the offsets then."""
        if self._offsets is None:
            config = {
                "bootstrap.servers": self.settings.kafka_bootstrap_servers,
                "group.id": self.settings.group_id,
                "log_level": 3,
            }
            self._offsets = Consumer(config)
            self.cleanup.callback(self._offsets.close)
        client = self._offsets
        wanted = [TopicPartition(self.topic, number) for number in ends]
        seen = [(time.monotonic(), 0)]

        def is_committed() -> bool:
            try:
                found = client.committed(wanted, 10)
            except KafkaException:
                return False
            total = sum(max(0, each.offset) for each in found)
            if total > seen[-1][1]:
                seen.append((time.monotonic(), total))
            return all(each.offset >= ends[each.partition] for each in found)

        wait_until(is_committed, "the offsets to be committed", timeout, every=0.01)
        return seen

    def close(self) -> None:
        """End and delete everything of this run."""
        self.cleanup.close()
        admin = self.admin()
        names = [
            name
            for name in admin.list_topics(timeout=10).topics
            if name.startswith((f"{self.prefix}.", f"{self.settings.topic_prefix}."))
            or name == f"__debezium-heartbeat.{self.prefix}"
        ]
        for future in admin.delete_topics(names, operation_timeout=30).values():
            future.result(30)
        with suppress(KafkaException):
            admin.delete_consumer_groups([self.settings.group_id])[self.settings.group_id].result(10)
        self.bed.drop(self.dbname)


def _delete_connector(url: str, name: str) -> None:
    """Delete it, and wait until it is gone."""
    delete_connector(url, name)
    wait_until(lambda: request(url, "GET", f"/connectors/{name}/status")[0] == 404, "the connector to be gone")


def merged(environment: Mapping[str, str]) -> dict[str, str]:
    """Our variables, without the CFO_SYNC_* of whoever runs this, and those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CFO_SYNC_")}
    return inherited | dict(environment)
