"""A kill at every step between poll and offset commit, in both database layouts: nothing lost, nothing twice.

The matrix is complete by construction. One run of a small scenario, in which every statement of the consumer occurs,
notes each step that it passes; then the scenario runs once per step, on copies of the same databases and the same
records, and is killed there (`failpoints`). A plain consumer follows and must come to exactly the undisturbed run's
end. Without `CFO_SYNC_TEST_LONG=1` (`make faults`) only one step of each kind is tried; `CFO_SYNC_TEST_REPORT` names a
file for the counts.

PostgreSQL and Kafka are real; the records are produced by hand, byte for byte in Debezium's form. The CFO's table has
no unique key here: nothing but the consumer's own order of steps keeps a booking single. Consumers are static members
of their group, so that a killed one is succeeded at once and not after its session has timed out.

Delivery is at least once: a crash after a fault was published and before the offset commit publishes it again, under
the same failure id. So a letter may stand there twice, and a failed attempt may be logged twice (it was made twice); a
transaction or the log row of a booking never is.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from psycopg import sql

from consumer import cli
from consumer.service import CFOSyncService
from consumer.settings import PREFIX, load
from deploy.local.stack import Stack
from tests.conftest import TEMPLATE, TEMPLATE_CFO, make_database, make_settings
from tests.faults import failpoints
from tests.roles import API, CONSUMER, environment_as
from tests.support import InvoiceSystem, LedgerView

IS_LONG: Final = os.environ.get("CFO_SYNC_TEST_LONG") == "1"
LAYOUTS: Final = ("one-database", "two-databases")
AT_ONCE: Final = 5  # runs; each mostly waits

_NOT_KNOWN: Final = 255
"""What `multiprocessing` says when its server's answer got lost, as was seen once. That it was killed where it should
be is told by the last line of its trace, which stands there before."""

LAUNCHER: Final = "tests.faults.failpoints"
LATE_CLIENT: Final = 4711
COORDINATOR_MOVES: Final = (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE)

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([LAUNCHER, "consumer.running"])
_starting = threading.Lock()
_runs = itertools.count(1)

# Statements without which the scenario would have a hole, by their beginnings.
EVERYWHERE: Final = (
    "SELECT pg_advisory_xact_lock(v.topic",
    "SELECT id::bigint FROM crypto_invoices",  # row locks
    "SELECT i.id::bigint",  # gather
    "SELECT pg_advisory_xact_lock(%s, %s)",  # the ledger has no unique key
    'SELECT "id"::text',  # find
    "SELECT cfo_identifier, cfo_transaction_id, invoice_id",  # holders
    "SELECT invoice_id, details -> 'new' FROM cfo_sync_actions",  # judgements
    'INSERT INTO "transactions"',
    'UPDATE "transactions"',
    "INSERT INTO crypto_invoice_cfo_sync AS s ( invoice_id, cfo_transaction_id",
    "INSERT INTO crypto_cfo_sync_log",
    "UPDATE crypto_invoices SET status = 'complete'",
    "UPDATE cfo_sync_dlq SET state = 'resolved'",
    "UPDATE crypto_invoice_cfo_sync SET sync_status = 'synced'",  # repair of the mapping
    "INSERT INTO crypto_invoice_cfo_sync AS s (invoice_id, sync_status, sync_error",  # mirror of a fault
)
IN_TWO: Final = (
    "SELECT DISTINCT ON (invoice_id) invoice_id, request_payload FROM crypto_cfo_sync_log",  # what the log knows
    "INSERT INTO crypto_invoice_cfo_sync AS s (invoice_id, cfo_identifier)",  # reserve
    "SELECT s.cfo_identifier FROM crypto_invoice_cfo_sync s",  # abandoned reservations
    "UPDATE crypto_invoice_cfo_sync SET cfo_identifier = NULL",  # release
)


# -- the scenario ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """Databases to copy, the records of one batch, and what must come of them."""

    layout: str
    invoice_database: str
    cfo_database: str | None
    records: list[tuple[bytes, bytes]]
    booked: dict[int, tuple[str, str]]  # Identifier and cents, by invoice
    bad: int
    late: int
    letters: frozenset[tuple[bytes, bytes]]  # key and value of the records that are dead letters
    retried: tuple[bytes, bytes]


def event(invoice_id: int, number: str, status: str = "paid") -> tuple[bytes, bytes]:
    """Key and value of an update event as Debezium writes it."""
    sample = json.loads(Path("tests/fixtures/debezium/envelope-u-paid.json").read_text())
    value = json.loads(sample["value"])
    value["after"] |= {"id": invoice_id, "invoice_number": number, "status": status}
    return json.dumps({"id": invoice_id}, separators=(",", ":")).encode(), json.dumps(
        value, separators=(",", ":")
    ).encode()


def build(stack: Stack, layout: str) -> Scenario:
    """An invoice of every kind, and the events that a batch finds of them."""
    two = layout == "two-databases"
    dsn = make_database(stack, TEMPLATE)
    cfo_dsn = make_database(stack, TEMPLATE_CFO) if two else None
    if cfo_dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("DROP TABLE transactions")
    with psycopg.connect(cfo_dsn or dsn) as connection:
        connection.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    invoices, ledger = InvoiceSystem(dsn), LedgerView(cfo_dsn or dsn)
    booked: dict[int, tuple[str, str]] = {}

    def paid(number: str, cents: str, **columns: Any) -> int:
        invoice_id = invoices.paid_invoice(invoice_number=number, amount=cents, **columns)
        booked[invoice_id] = number, cents
        return invoice_id

    with CFOSyncService(make_settings(dsn, cfo_dsn=cfo_dsn, role=API)) as service:
        # Booked before: corrected and paid again; gone from the ledger after a remap; with a mapping that says less;
        # paid again with nothing changed.
        corrected, gone, half = paid("WAS-1", "410.00"), paid("WAS-2", "420.42"), paid("WAS-3", "430.43")
        touched = paid("WAS-4", "440.44")
        moved = paid("OLD-1", "450.45") if two else None
        service.sync(dict.fromkeys(booked, 0))
        invoices.update(corrected, status="paid", amount_usd="410.41")
        booked[corrected] = "WAS-1", "410.41"
        assert service.remap(gone, entity="Judged", by="auditor")["success"]
        ledger.execute("DELETE FROM transactions WHERE identifier = 'WAS-2'")
        invoices.update(gone, status="paid")
        invoices.rows(
            "UPDATE crypto_invoice_cfo_sync SET sync_status = 'retry' WHERE invoice_id = %s RETURNING id", half
        )
        invoices.update(touched, status="paid")
        numbers = {corrected: "WAS-1", gone: "WAS-2", half: "WAS-3", touched: "WAS-4"}
    ordinary = [paid(f"NEW-{n}", f"{n}00.{n}9") for n in (1, 2, 3)]
    numbers |= {each: booked[each][0] for each in ordinary}
    replayed = ordinary[2]
    invoices.rows("INSERT INTO cfo_sync_dlq (failure_id, state, invoice_id) VALUES ('f', 'replayed', %s) RETURNING 1",
                  replayed)  # fmt: skip
    by_hand = paid("HAND-1", "510.51")
    ledger.insert(("date", "amount", "identifier", "classified_entity"), "2025-10-22", "510.51", "HAND-1", "By hand")
    numbers[by_hand] = "HAND-1"
    bad = invoices.paid_invoice(invoice_number="BAD-1", amount=None)
    late = paid("LATE-1", "610.61")
    invoices.update(late, client_id=LATE_CLIENT)  # whose row is not there yet
    numbers |= {bad: "BAD-1", late: "LATE-1"}
    if moved is not None:
        # Killed between the commits, and given another number before the next attempt.
        invoices.rows("UPDATE crypto_invoice_cfo_sync SET cfo_transaction_id = NULL, sync_timestamp = NULL,"
                      " sync_status = 'pending' WHERE invoice_id = %s RETURNING id", moved)  # fmt: skip
        invoices.rows("DELETE FROM crypto_cfo_sync_log WHERE invoice_id = %s RETURNING id", moved)
        invoices.update(moved, status="paid", invoice_number="MOVED-1")
        # The same, but killed before the CFO's commit.
        again = paid("MOVED-2", "460.46")
        reserve(invoices, again, "OLD-2")
        # Its number was reserved for an invoice that was deleted before it was booked.
        heir = paid("REUSED", "470.47")
        reserve(invoices, 9999, "REUSED")
        numbers |= {moved: "MOVED-1", again: "MOVED-2", heir: "REUSED"}
    invoices.close()
    ledger.close()
    garbage = b'{"id":77}', b"\x00\xff no event"
    records = [event(7777, "UNPAID", "sent"), *(event(*each) for each in numbers.items()), garbage]
    records += [event(ordinary[0], "NEW-1"), event(corrected, "WAS-1"), event(ordinary[0], "NEW-1", "complete")]
    name = psycopg.conninfo.conninfo_to_dict
    return Scenario(
        layout=layout,
        invoice_database=str(name(dsn)["dbname"]),
        cfo_database=str(name(cfo_dsn)["dbname"]) if cfo_dsn else None,
        records=records,
        booked=booked,
        bad=bad,
        late=late,
        letters=frozenset({garbage, event(bad, "BAD-1")}),
        retried=event(late, "LATE-1"),
    )


def reserve(invoices: InvoiceSystem, invoice_id: int, identifier: str) -> None:
    """As the first step of a booking in two databases leaves it."""
    invoices.rows("INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_identifier) VALUES (%s, %s) RETURNING id",
                  invoice_id, identifier)  # fmt: skip


# -- one run -----------------------------------------------------------------------------------------------------------


class Run:
    """The scenario on databases, topics and a group of its own."""

    def __init__(self, stack: Stack, admin: AdminClient, scenario: Scenario, folder: Path) -> None:
        number = next(_runs)
        self.scenario = scenario
        self.admin = admin
        self.log = folder / f"run-{number}.log"
        self.trace = folder / f"run-{number}.trace"
        self.dsn = copy_database(stack, scenario.invoice_database, f"crash_{number}")
        self.cfo_dsn = self.dsn
        cfo: dict[str, str] = {}
        if scenario.cfo_database is not None:
            self.cfo_dsn = copy_database(stack, scenario.cfo_database, f"crash_{number}_cfo")
            cfo["CFO_SYNC_CFO_DSN"] = self.cfo_dsn
        properties = folder / f"run-{number}.properties"
        properties.write_text("group.instance.id=one\n")
        environment = cfo | {
            "CFO_SYNC_INVOICE_DSN": self.dsn,
            "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": stack.kafka.bootstrap_servers,
            "CFO_SYNC_KAFKA_CONFIG_FILE": str(properties),
            "CFO_SYNC_SOURCE_TOPIC": f"crash-{number}.public.crypto_invoices",
            "CFO_SYNC_GROUP_ID": f"crash-{number}",
            "CFO_SYNC_TOPIC_PREFIX": f"crash-{number}",
            "CFO_SYNC_RETRY_DELAYS": "1s,1s,1s",
            "CFO_SYNC_SWEEP_INTERVAL": "1h",
            "CFO_SYNC_METRICS_PORT": "0",
            "CFO_SYNC_LOG_FORMAT": "json",
        }
        self.environment = environment_as(CONSUMER, environment)
        self.settings = load(
            _env_file=None, **{name.removeprefix(PREFIX).lower(): value for name, value in self.environment.items()}
        )
        topics = [*self.settings.consumed_topics, self.settings.dlq_topic]
        for created in admin.create_topics([NewTopic(topic, 1, 1) for topic in topics]).values():
            created.result(30)
        producer = Producer({"bootstrap.servers": stack.kafka.bootstrap_servers})
        for key, value in scenario.records:
            producer.produce(self.settings.source_topic, value=value, key=key)
        assert producer.flush(10) == 0
        self.group = Consumer(
            {"bootstrap.servers": stack.kafka.bootstrap_servers, "group.id": self.settings.group_id}
        )  # looks at offsets only
        self.healed = False

    def close(self) -> None:
        """It was looked at for the last time."""
        self.group.close()

    def start(self, module: str, **environment: str) -> Any:
        """`python -m module run`, in a fork of a process that has imported everything."""
        arguments = module, self.environment | environment, str(self.log)
        process = _forks.Process(target=failpoints.run_forked, args=arguments, daemon=True)
        with _starting:
            process.start()
        return process

    def run_until_killed(self, point: str) -> None:
        """A consumer that dies there. It must."""
        process = self.start(LAUNCHER, **{failpoints.POINT: point, failpoints.TRACE: str(self.trace)})
        try:
            deadline = time.monotonic() + 40
            while process.exitcode is None:
                assert time.monotonic() < deadline, "not reached"
                self.heal()
                process.join(0.1)
            assert process.exitcode in (-signal.SIGKILL, _NOT_KNOWN), f"ended with {process.exitcode}"
            assert points_of(self.trace)[-1][0] == point
        finally:
            end(process)

    def run_until_quiet(self, module: str, **environment: str) -> None:
        """A consumer that works until nothing is left."""
        process = self.start(module, **environment)
        try:
            deadline = time.monotonic() + 40
            while not self.is_quiet():
                assert time.monotonic() < deadline, "not quiet"
                assert process.exitcode is None, f"ended with {process.exitcode}"
                self.heal()
                time.sleep(0.1)
        finally:
            end(process)

    def heal(self) -> None:
        """Once the late invoice waits in the retry topic, its client's row comes."""
        if not self.healed and self.ends([self.settings.retry_topics[0]])[self.settings.retry_topics[0]]:
            with psycopg.connect(self.dsn) as connection:
                connection.execute(
                    "INSERT INTO crypto_clients (id, name) VALUES (%s, 'Late') ON CONFLICT DO NOTHING", (LATE_CLIENT,)
                )
            self.healed = True

    # -- topics --

    def ends(self, topics: Sequence[str]) -> dict[str, int]:
        """How many records were written to each."""
        while True:
            latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
            asked = self.admin.list_offsets({TopicPartition(topic, 0): latest for topic in topics})
            try:
                return {each.topic: future.result(10).offset for each, future in asked.items()}
            except KafkaException as error:
                # A topic was just made.
                if error.args[0].code() not in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART):
                    raise
            time.sleep(0.1)

    def committed(self) -> dict[str, int]:
        """The group's offsets; none for a topic of which nothing was committed."""
        try:
            found = self.group.committed([TopicPartition(topic, 0) for topic in self.settings.consumed_topics], 10)
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_MOVES:  # of the broker's first group
                raise
            return {}
        return {each.topic: each.offset for each in found if each.offset >= 0}

    def is_quiet(self) -> bool:
        """Whether the group has committed all that stands there."""
        committed = self.committed()
        return committed.get(self.settings.source_topic) == len(self.scenario.records) and all(
            committed.get(topic, 0) == end for topic, end in self.ends(self.settings.consumed_topics).items()
        )

    def published(self) -> dict[str, list[tuple[bytes, bytes, str]]]:
        """Key, value and failure id of what stands on our topics."""
        topics = [*self.settings.retry_topics, self.settings.replay_topic, self.settings.dlq_topic]
        reader = Consumer(
            {
                "bootstrap.servers": self.settings.kafka_bootstrap_servers,
                "group.id": "crash-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        found: dict[str, list[tuple[bytes, bytes, str]]] = {topic: [] for topic in topics}
        try:
            reader.assign([TopicPartition(topic, 0, 0) for topic in topics])
            unread = set(topics)
            deadline = time.monotonic() + 20
            while unread:
                assert time.monotonic() < deadline, f"cannot read {unread}"
                message = reader.poll(1)
                if message is None:
                    continue
                topic = message.topic() or ""
                if (error := message.error()) is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    unread.discard(topic)
                    continue
                failure_id = dict(message.headers() or [])["cfo-sync.failure-id"]
                found[topic].append((message.key() or b"", message.value() or b"", str(failure_id)))
        finally:
            reader.close()
        return found

    # -- what must hold --

    def check_half_way(self) -> None:
        """The consumer is dead: nothing is there twice, and no offset is ahead of what it stands for."""
        with psycopg.connect(self.cfo_dsn) as connection:
            rows = connection.execute("SELECT identifier FROM transactions").fetchall()
        assert_single(row[0] for row in rows)
        if self.settings.source_topic in self.committed():
            published = self.published()
            assert {each[:2] for each in published[self.settings.dlq_topic]} == self.scenario.letters
            with psycopg.connect(self.dsn) as connection:
                waiting = {
                    row[0]
                    for row in connection.execute("SELECT id FROM crypto_invoices WHERE status = 'paid'").fetchall()
                }
            assert waiting <= {self.scenario.bad, self.scenario.late}
            if self.scenario.late in waiting:
                assert published[self.settings.retry_topics[0]], "the late invoice waits nowhere"

    def check(self, undisturbed: Run | None) -> Counter[str]:
        """All is quiet: what stands there is what the undisturbed run left. Gives what was published more than once."""
        scenario, end = self.scenario, self.state
        amounts = {identifier: str(amount) for identifier, amount, *_ in end["ledger"]}
        assert_single(identifier for identifier, *_ in end["ledger"])
        assert amounts == dict(scenario.booked.values())
        published = self.published()
        # On a slow machine its client may come only after the first retry.
        hops = [published[topic] for topic in self.settings.retry_topics]
        assert {each[:2] for hop in hops for each in hop} <= {scenario.retried}
        assert published[self.settings.replay_topic] == []
        letters = published[self.settings.dlq_topic]
        assert {each[:2] for each in letters} == scenario.letters
        assert len({failure_id for *_, failure_id in letters}) == len(scenario.letters), "one letter is one letter"
        assert len({failure_id for hop in hops for *_, failure_id in hop}) <= 1
        if undisturbed is None:
            assert len(letters) == len(scenario.letters)
            assert len(hops[0]) == 1
            assert all(len(hop) <= 1 for hop in hops)
        else:
            assert end == undisturbed.state
        again = sum(max(0, len(hop) - 1) for hop in hops)
        return +Counter(dead_letters=len(letters) - len(scenario.letters), retries=again)

    @cached_property
    def state(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that must come out the same, whatever happened on the way: ids of new rows and times must not."""
        with psycopg.connect(self.cfo_dsn) as connection:
            # By Identifier: keys differ from run to run, but must be the ones that the mapping names.
            ledger = connection.execute(
                "SELECT identifier, amount, classified_entity, business_unit, source_file, date::date, description,"
                " transaction_type, classification_reason, origin, destination, currency, id"
                " FROM transactions ORDER BY identifier"
            ).fetchall()
        keys = {row[-1]: row[0] for row in ledger}
        with psycopg.connect(self.dsn) as connection:
            mapping = connection.execute(
                "SELECT invoice_id, cfo_identifier, cfo_transaction_id, adopted, sync_status, sync_error,"
                " entity_mapped, category_mapped, sync_timestamp IS NOT NULL"
                " FROM crypto_invoice_cfo_sync ORDER BY invoice_id"
            ).fetchall()
            log = connection.execute(
                "SELECT invoice_id, cfo_transaction_id, request_payload ->> 'action' FROM crypto_cfo_sync_log"
                " WHERE sync_status = 'synced' ORDER BY invoice_id, id"
            ).fetchall()
            failed = connection.execute(
                "SELECT DISTINCT invoice_id, sync_status, error_message FROM crypto_cfo_sync_log"
                " WHERE sync_status <> 'synced' ORDER BY 1, 2, 3"
            ).fetchall()
            status = connection.execute("SELECT id, status FROM crypto_invoices ORDER BY id").fetchall()
            dlq = connection.execute("SELECT failure_id, state, outcome FROM cfo_sync_dlq").fetchall()
        return {
            "ledger": [row[:-1] for row in ledger],
            "mapping": [(*row[:2], keys.get(row[2]), *row[3:]) for row in mapping],
            "log": [(invoice_id, keys.get(key, "gone"), action) for invoice_id, key, action in log],
            "failed": failed,
            "status": status,
            "dlq": dlq,
        }


def assert_single(identifiers: Iterable[str]) -> None:
    """No transaction is there twice."""
    assert [each for each, count in Counter(identifiers).items() if count > 1] == []


def copy_database(stack: Stack, template: str, name: str) -> str:
    """A copy under that name; gives its DSN."""
    with psycopg.connect(stack.postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return stack.postgres.dsn(name)


def end(process: Any) -> None:
    """The consumer is not needed any more."""
    if process.exitcode is None:
        process.kill()
    process.join(10)
    process.close()


def points_of(trace: Path) -> list[tuple[str, str]]:
    """The steps that a run passed: name, and what was done."""
    lines = [line.partition("\t") for line in trace.read_text().splitlines()]
    return [(name, what) for name, _, what in lines]


# -- the matrix --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(postgres: Stack) -> tuple[Stack, AdminClient]:
    """PostgreSQL and Kafka, and a client for topics and groups."""
    postgres.up(["postgres", "kafka"])
    return postgres, AdminClient({"bootstrap.servers": postgres.kafka.bootstrap_servers})


@pytest.mark.timeout(3600 if IS_LONG else 180)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_at_any_step_loses_nothing_and_books_nothing_twice(
    servers: tuple[Stack, AdminClient], tmp_path: Path, layout: str
) -> None:
    stack, admin = servers
    scenario = build(stack, layout)
    undisturbed = Run(stack, admin, scenario, tmp_path)
    undisturbed.run_until_quiet(LAUNCHER, **{failpoints.TRACE: str(undisturbed.trace)})
    undisturbed.check(None)
    undisturbed.close()
    steps = points_of(undisturbed.trace)
    for wanted in (*EVERYWHERE, *(IN_TWO if layout == "two-databases" else ())):
        assert any(wanted in what for _, what in steps), f"the scenario never does {wanted}"

    points = [name for name, _ in steps] if IS_LONG else selected(steps)

    def try_point(point: str) -> tuple[str, Counter[str]]:
        run = Run(stack, admin, scenario, tmp_path)
        try:
            run.run_until_killed(point)
            run.check_half_way()
            # The shipped command knows nothing of fail points: it lives on although the variable is set.
            run.run_until_quiet("consumer", **{failpoints.POINT: point})
            return "", run.check(undisturbed)
        except Exception as error:  # the others go on; told below
            return f"{point} ({dict(steps)[point][:80]}): {error!r}", Counter()
        finally:
            run.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip(points, pool.map(try_point, points), strict=True))
    report(layout, results)
    assert [failure for failure, _ in results.values() if failure] == []


def selected(steps: list[tuple[str, str]]) -> list[str]:
    """One step of each kind: the first from the ledger's insert on, where most is at stake, or else the first."""
    insert = next(number for number, (_, what) in enumerate(steps) if 'INSERT INTO "transactions"' in what)
    kinds: dict[str, str] = {}
    for name, _ in (*steps[insert:], *steps):
        kinds.setdefault(name.rpartition(":")[0], name)
    return list(kinds.values())


def report(layout: str, results: dict[str, tuple[str, Counter[str]]]) -> None:
    """Add the layout's counts to the file that the environment names, if any."""
    path = os.environ.get("CFO_SYNC_TEST_REPORT")
    if not path:
        return
    file = Path(path)
    told = json.loads(file.read_text()) if file.exists() else {}
    told[layout] = {
        "points": len(results),
        "by_kind": dict(sorted(Counter(point.rpartition(":")[0] for point in results).items())),
        "passed": sum(not failure for failure, _ in results.values()),
        "failures": [failure for failure, _ in results.values() if failure],
        "published_again": dict(sum((again for _, again in results.values()), Counter())),
    }
    file.write_text(json.dumps(told, indent=2) + "\n")


# -- the launcher ------------------------------------------------------------------------------------------------------


def in_use() -> list[Any]:
    """What the consumer would use now."""
    return [getattr(owner, name) for owner, name in failpoints.CLIENTS]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The launcher, whose command does nothing; what it replaces is put back afterwards."""
    monkeypatch.setattr(cli, "main", lambda: None)
    for (owner, name), original in zip(failpoints.CLIENTS, in_use(), strict=True):
        monkeypatch.setattr(owner, name, original)
    return failpoints.main


def test_nothing_is_replaced_without_the_variables(launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    originals = in_use()
    assert originals[-2:] == [Consumer, Producer]
    monkeypatch.delenv(failpoints.POINT, raising=False)
    monkeypatch.delenv(failpoints.TRACE, raising=False)
    launch()
    assert in_use() == originals
    monkeypatch.setenv(failpoints.POINT, "before:statement:1")
    launch()
    assert [each for each in in_use() if each in originals] == []


@pytest.mark.parametrize(
    "point", ["statement:1", "before:statement", "during:commit:1", "before:nap:1", "after:flush:0"]
)
def test_a_misspelt_point_is_refused(launch: Callable[[], None], monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setenv(failpoints.POINT, point)
    with pytest.raises(SystemExit, match="before:statement:7"):
        launch()


def test_the_shipped_package_names_no_fail_point() -> None:
    files = [path for path in Path("consumer").rglob("*") if path.suffix in (".py", ".sql", ".toml")]
    assert len(files) > 50
    assert [path for path in files if re.search("fail.?point|TEST_", path.read_text(), re.IGNORECASE)] == []
