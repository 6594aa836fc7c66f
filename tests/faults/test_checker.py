"""The checker finds what it is for: nothing after a clean run, and each kind of violation that is planted.

One pipeline for all tests: a consumer process books invoices of every kind, then it and the connector stop. Each plant
has an invoice or a record of its own, so that all can be planted at once and one check must tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from psycopg import sql
from pydantic import SecretStr

from consumer.envelope import invoice_id_of_key
from consumer.headers import PREFIX
from deploy.local.connector import delete_connector
from deploy.local.stack import Stack
from tests.e2e.harness import Pipeline, wait_until
from tests.faults.checker import Verdict, audit_offsets, check
from tests.faults.letters import place_of, where

_HISTORY = Path(__file__).with_name("history.sql")
_TABLES = (
    "crypto_invoices", "crypto_invoice_cfo_sync", "crypto_cfo_sync_log", "transactions",
    "campaign.history", "campaign.expected",
)  # fmt: skip
_NEVER = 1_000_000  # a client that never comes

_NEW_INVOICE = (
    "INSERT INTO crypto_invoices (id, invoice_number, client_id, status, amount_usd)"
    " VALUES ({id}, '{number}', 1, 'paid', 5);"
)
_NEW_FAILURE = (
    _NEW_INVOICE + "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_identifier, sync_status, sync_error)"
    " VALUES ({id}, '{number}', 'failed', 'amount-missing: x');"
    "INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status) VALUES ({id}, 'failed')"
)

# The kind of violation, what the invoice was before (None for one that the statements insert), and the statements.
_PLANTS = [
    ("still-open", "ordinary", "UPDATE crypto_invoices SET status = 'paid' WHERE id = {id}"),
    ("still-open", None, _NEW_INVOICE),
    ("failed-without-reason", None, _NEW_FAILURE),
    ("failed-without-reason", "bad", "UPDATE crypto_invoice_cfo_sync SET sync_error = 'row-locked: x'"
     " WHERE invoice_id = {id}"),
    ("failed-without-reason", "bad", "UPDATE crypto_invoice_cfo_sync SET sync_error = NULL WHERE invoice_id = {id}"),
    ("bad-booked", "ordinary", "INSERT INTO campaign.expected VALUES ({id}, 'bad')"),
    ("wrong-cents", "reopened", "UPDATE transactions SET amount = 100 WHERE identifier = '{number}'"),
    ("wrong-cents", "ordinary", "UPDATE crypto_invoices SET amount_usd = amount_usd - 0.01 WHERE id = {id}"),
    ("cents-never-paid", "unpaid", "UPDATE transactions SET amount = 99.99 WHERE identifier = '{number}'"),
    ("cents-never-paid", "deleted", "UPDATE transactions SET amount = 99.99 WHERE identifier = '{number}'"),
    ("never-paid", "ordinary", "UPDATE campaign.history SET status = 'sent'"
     " WHERE invoice_id = {id} AND status = 'paid'"),
    # Paid and unpaid again by one transaction: nobody ever saw it paid.
    ("never-paid", "ordinary", "INSERT INTO campaign.history (op, invoice_id, status, xid)"
     " SELECT 'U', invoice_id, 'sent', xid FROM campaign.history WHERE invoice_id = {id} AND status = 'paid'"),
    ("identifier-wrong", "ordinary", "UPDATE transactions SET identifier = 'A{id}' WHERE identifier = '{number}'"),
    ("identifier-wrong", "ordinary", "UPDATE transactions SET identifier = 'B{id}' WHERE identifier = '{number}';"
     "UPDATE crypto_invoice_cfo_sync SET cfo_identifier = 'B{id}' WHERE invoice_id = {id}"),
    ("booked-twice", "ordinary", "INSERT INTO transactions (date, amount, identifier) VALUES (now(), 100, '{number}')"),
    ("booked-twice", None, "INSERT INTO transactions (date, amount, identifier)"
     " SELECT now(), 100, '{number}' FROM generate_series(1, 2)"),
    ("orphan", None, "INSERT INTO transactions (date, amount, identifier, source_file)"
     " VALUES (now(), 100, '{number}', 'crypto_invoice_{number}')"),
    ("transaction-missing", "ordinary", "DELETE FROM transactions WHERE identifier = '{number}'"),
    ("adopted-wrongly", "ordinary", "UPDATE crypto_invoice_cfo_sync SET adopted = true WHERE invoice_id = {id};"
     "UPDATE crypto_cfo_sync_log SET response_data = NULL WHERE invoice_id = {id}"),
    ("adopted-wrongly", "foreign", "DELETE FROM campaign.expected WHERE invoice_id = {id}"),
    ("mapping-disagrees", "ordinary", "UPDATE crypto_invoice_cfo_sync SET sync_status = 'retry'"
     " WHERE invoice_id = {id}"),
    ("mapping-disagrees", "unpaid", "UPDATE campaign.history SET status = 'paid'"
     " WHERE invoice_id = {id} AND status = 'complete'"),
    ("log-disagrees", "foreign", "DELETE FROM crypto_cfo_sync_log WHERE invoice_id = {id}"),
    ("log-disagrees", "bad", "DELETE FROM crypto_cfo_sync_log WHERE invoice_id = {id}"),
    ("log-disagrees", "ordinary", "UPDATE crypto_cfo_sync_log SET response_data = NULL WHERE invoice_id = {id}"),
    ("log-disagrees", "ordinary", "INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status, response_data)"
     " SELECT invoice_id, sync_status, response_data FROM crypto_cfo_sync_log WHERE invoice_id = {id}"),
]  # fmt: skip

# What is changed in a copy of a record on the first or second retry topic or the DLQ; None leaves a header out.
_COPIES: list[tuple[str, str, dict[str, Any]]] = [
    ("fault-without-reason", "retry", {"error-code": "row-locked"}),
    ("fault-without-reason", "dlq", {"error-code": "row-locked"}),
    ("headers-wrong", "retry", {"not-before": None}),
    ("headers-wrong", "retry", {"attempt": "first"}),
    ("headers-wrong", "retry", {"error-message": "x" * 1025}),
    ("headers-wrong", "retry", {"invoice-id": "{late}"}),
    ("headers-wrong", "retry", {"twice": "attempt"}),
    ("bytes-differ", "retry", {"value": b" "}),
    ("bytes-differ", "retry", {"key": b" "}),
    ("bytes-differ", "retry", {"foreign": "header"}),
    ("bytes-differ", "retry", {"origin-offset": "100000"}),
    ("attempt-wrong", "retry", {"attempt": "2"}),
    ("attempt-wrong", "retry", {"error-kind": "record"}),
    ("attempt-wrong", "dlq", {"attempt": "1"}),
    ("attempt-wrong", "dlq", {"attempt": "2", "error-kind": "record", "origin-timestamp": "1"}),
    ("retry-delay", "retry", {"not-before": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}),
    ("retry-delay", "retry", {"not-before": "{first-failed-at}"}),
    ("retry-delay", "second", {"not-before": "{first-failed-at}"}),
    ("handled-early", "second", {"timestamp": 1}),
    ("handled-early", "dlq", {"timestamp": 1}),
]


@dataclass
class Scene:
    """A pipeline at rest, and the ids of its invoices by name; plants by their position."""

    pipeline: Pipeline
    superuser_dsn: str
    ids: dict[str, int]

    def check(self, **arguments: Any) -> Verdict:
        dsn = self.pipeline.invoices.dsn
        return check(self.pipeline.settings, invoice_dsn=dsn, cfo_dsn=dsn, **arguments)

    def kinds(self, about: str, **arguments: Any) -> set[str]:
        """The kinds of violation whose detail names this."""
        return {each.kind for each in self.check(**arguments).violations if about in each.detail}

    def audit(self) -> set[str]:
        return {each.kind for each in audit_offsets(self.pipeline.settings, invoice_dsn=self.pipeline.invoices.dsn)}

    def execute(self, statements: str) -> None:
        """Another hand's transaction."""
        self.pipeline.invoices.connection.execute(statements.encode())

    def restore(self) -> None:
        """The databases as they were after the clean run."""
        with psycopg.connect(self.superuser_dsn) as connection:
            connection.execute("SET session_replication_role = replica")  # no triggers
            for table, saved in _tables():
                connection.execute(sql.SQL("DELETE FROM {}").format(table))
                connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(table, saved))

    # -- topics --------------------------------------------------------------------------------------------------------

    @cached_property
    def producer(self) -> Producer:
        return Producer({"bootstrap.servers": self.pipeline.settings.kafka_bootstrap_servers})

    def produce(self, topic: str, value: Any, key: Any, headers: Any = (), timestamp: int = 0) -> str:
        """Gives the place where the record stands now."""
        places: list[str] = []
        self.producer.produce(
            topic, value=value, key=key, headers=list(headers), timestamp=timestamp,
            on_delivery=lambda error, message: places.append(where(place_of(message))),
        )  # fmt: skip
        assert self.producer.flush(10) == 0
        return places[0]

    def ring(self, invoice_id: int, topic: str | None = None, xid: int = 7) -> None:
        """An event: this invoice is paid."""
        value = f'{{"op":"u","after":{{"id":{invoice_id},"status":"paid"}},"source":{{"txId":{xid}}}}}'
        self.produce(topic or self.pipeline.settings.source_topic, value.encode(), f'{{"id":{invoice_id}}}'.encode())

    def letter(self, topic: str, name: str) -> Any:
        """The record of this invoice on one of our topics."""
        return next(each for each in self.pipeline.records(topic) if invoice_id_of_key(each.key()) == self.ids[name])

    def copy(self, message: Any, changes: dict[str, Any]) -> str:
        """Produce a changed copy of a record on its own topic; gives its place."""
        changes = dict(changes)
        value = message.value() + changes.pop("value", b"")
        key = message.key() + changes.pop("key", b"")
        timestamp = changes.pop("timestamp", 0)
        twice = changes.pop("twice", None)
        names = {name if name == "foreign" else PREFIX + name: text for name, text in changes.items()}
        headers = [(name, text) for name, text in message.headers() if name not in names]
        headers += [(name, text) for name, text in names.items() if text is not None]
        headers += [(name, text) for name, text in headers if name == f"{PREFIX}{twice}"]
        return self.produce(message.topic(), value, key, headers, timestamp)

    def commit(self, topic: str, offset: Callable[[int, int], int] = lambda low, high: high) -> None:
        """As if consumers had committed; `offset` takes the first and the next offset of a partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.pipeline.settings.kafka_bootstrap_servers,
                "group.id": self.pipeline.settings.group_id,
                "enable.auto.commit": False,
            }
        )
        try:
            offsets = [
                TopicPartition(
                    topic, number, offset(*consumer.get_watermark_offsets(TopicPartition(topic, number), 10))
                )
                for number in consumer.list_topics(topic, 10).topics[topic].partitions
            ]
            consumer.commit(offsets=offsets, asynchronous=False)
        finally:
            consumer.close()


def _tables() -> Iterator[tuple[sql.Composable, sql.Composable]]:
    """Each table, and the copy that is kept of it."""
    for name in _TABLES:
        yield sql.SQL(".").join(map(sql.Identifier, name.split("."))), sql.Identifier("saved", name)


@pytest.fixture(scope="module")
def clean(running_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """After a clean run with a few faults that have a reason."""
    pipeline = Pipeline(running_stack, tmp_path_factory.mktemp("checker"), CFO_SYNC_RETRY_DELAYS="200ms,300ms,1500ms")
    try:
        pipeline.invoices.connection.execute(_HISTORY.read_bytes())
        ids = _play(pipeline)
        delete_connector(running_stack.connect.url, pipeline.connector)  # the plants shall ring no doorbell
        scene = Scene(pipeline, running_stack.postgres.superuser_dsn(pipeline.dbname), ids)
        with psycopg.connect(scene.superuser_dsn) as connection:
            connection.execute("CREATE SCHEMA saved")
            for table, saved in _tables():
                connection.execute(sql.SQL("CREATE TABLE {} AS TABLE {}").format(saved, table))
        yield scene
        del scene.producer
    finally:
        pipeline.close()


@pytest.fixture
def scene(clean: Scene) -> Iterator[Scene]:
    """The clean run; what is changed in its databases is undone."""
    yield clean
    clean.restore()


def _play(pipeline: Pipeline) -> dict[str, int]:
    """Invoices of all kinds, most of them there before the consumer is; gives their ids by name."""
    invoices = pipeline.invoices
    ids: dict[str, int] = {}
    subjects: dict[str, list[int]] = {}

    def paid(name: str, subject: str = "ordinary", **columns: Any) -> None:
        with invoices.connection.transaction():
            ids[name] = invoices.create_test_invoice(**columns, amount=None if subject == "bad" else Decimal("100.00"))
            if subject in ("bad", "foreign", "late-client"):
                invoices.connection.execute("INSERT INTO campaign.expected VALUES (%s, %s)", (ids[name], subject))
            if subject == "foreign":
                number = columns["invoice_number"]
                pipeline.ledger.insert(["date", "amount", "identifier"], datetime.now(UTC), "100.00", number)
            invoices.mark_invoice_as_paid(ids[name])
        subjects.setdefault(subject, []).append(ids[name])

    for number, (_, subject, _) in enumerate(_PLANTS):
        if subject is not None:
            paid(str(number), subject, invoice_number=_number(number))
    for number in range(10):
        paid(f"further-{number}")
    paid("gone", "gone")
    invoices.delete(ids["gone"])
    paid("again")
    invoices.update(ids["again"], status="sent")
    invoices.update(ids["again"], status="paid")
    paid("late", "late-client", client_id=_NEVER - 1)
    paid("never", "late-client", client_id=_NEVER)
    consumer = pipeline.start_consumer(wait=False)
    wait_until(lambda: (invoices.sync_row(ids["late"]) or {}).get("sync_status") == "retry", "a retry")
    invoices.connection.execute("INSERT INTO crypto_clients (id, name) VALUES (%s, 'Latecomer')", (_NEVER - 1,))
    # All but those that are bad, and the two whose row or client is not there.
    complete = len(ids) - len(subjects["bad"]) - 2
    pipeline.wait_complete(complete)
    for invoice_id in subjects["deleted"]:
        invoices.delete(invoice_id)
    for invoice_id in subjects["unpaid"]:
        invoices.update(invoice_id, status="cancelled")
    for invoice_id in subjects["reopened"]:
        invoices.update(invoice_id, status="paid", amount_usd="120.00")
    pipeline.wait_complete(complete - len(subjects["deleted"]) - len(subjects["unpaid"]))
    failed = "SELECT count(*) FROM crypto_invoice_cfo_sync WHERE sync_status = 'failed'"
    wait_until(lambda: invoices.value(failed) == len(subjects["bad"]) + 2, "the failures")
    pipeline.wait_quiet()
    assert consumer.stop() == 0
    return ids


def _number(plant: int) -> str:
    return f"PLANT-{plant:03}"


# -- a clean run -------------------------------------------------------------------------------------------------------


def test_a_clean_run_has_no_violation(scene: Scene) -> None:
    verdict = scene.check()
    assert verdict.violations == []
    assert scene.audit() == set()
    settings = scene.pipeline.settings
    made, counts = len(scene.ids), verdict.counts
    assert counts["invoices"] == made - 2
    assert counts["complete"] == made - 8
    assert counts["failed"] == 4
    assert counts["adopted"] == 2
    assert counts["deleted"] == 2
    assert counts["ever-paid"] == made
    assert counts["transactions"] == made - 5
    assert counts[f"records {settings.retry_topics[0]}"] >= 3
    assert counts[f"records {settings.dlq_topic}"] >= 5
    assert counts["doorbells"] >= made


def test_the_history_tells_each_commit_and_who_made_it(scene: Scene) -> None:
    [reopened] = (number for number, (_, subject, _) in enumerate(_PLANTS) if subject == "reopened")
    rows = scene.pipeline.invoices.rows(
        "SELECT op::text, status, application, xid FROM campaign.history WHERE invoice_id = %s ORDER BY seq",
        scene.ids[str(reopened)],
    )
    assert [(row["op"], row["status"], row["application"]) for row in rows] == [
        ("I", "sent", ""), ("U", "paid", ""), ("U", "complete", "cfo-sync"), ("U", "paid", ""),
        ("U", "complete", "cfo-sync"),
    ]  # fmt: skip
    assert len({row["xid"] for row in rows}) == 4  # inserted and paid in one transaction


def test_a_ledger_in_another_database_is_checked_too(scene: Scene, running_stack: Stack) -> None:
    running_stack.postgres.create_database("checker_cfo")
    cfo_dsn = running_stack.postgres.dsn("checker_cfo")
    with psycopg.connect(cfo_dsn) as connection:
        connection.execute(Path("schemas/reference/cfo_ledger.sql").read_bytes())
        source = scene.pipeline.ledger.connection.cursor()
        with (
            source.copy("COPY transactions TO STDOUT") as rows,
            connection.cursor().copy("COPY transactions FROM STDIN") as target,
        ):
            for chunk in rows:
                target.write(chunk)
    two = scene.pipeline.settings.model_copy(update={"cfo_dsn": SecretStr(cfo_dsn)})
    ids = {subject: scene.ids[str(number)] for number, (_, subject, _) in enumerate(_PLANTS) if subject}
    scene.execute("DELETE FROM transactions")

    def kinds() -> list[str]:
        return [each.kind for each in check(two, invoice_dsn=scene.pipeline.invoices.dsn, cfo_dsn=cfo_dsn).violations]

    # What a kill between the two commits leaves: linked by the next attempt, which inserts nothing …
    scene.execute(f"UPDATE crypto_cfo_sync_log SET response_data = NULL WHERE invoice_id = {ids['ordinary']}")
    # … or never linked, for the invoice was gone by then.
    scene.execute(
        "UPDATE crypto_invoice_cfo_sync SET cfo_transaction_id = NULL, sync_status = 'pending'"
        f" WHERE invoice_id = {ids['deleted']};"
        f"UPDATE crypto_cfo_sync_log SET response_data = NULL WHERE invoice_id = {ids['deleted']}"
    )
    assert kinds() == []
    scene.execute(f"UPDATE crypto_invoice_cfo_sync SET cfo_identifier = NULL WHERE invoice_id = {ids['deleted']}")
    assert kinds() == ["orphan"]


# -- planted in the databases ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(clean: Scene) -> list[tuple[str, str]]:
    """What is found when all is planted at once: kind and detail."""
    for number, (_, _, statements) in enumerate(_PLANTS):
        clean.execute(statements.format(id=clean.ids.get(str(number), 900 + number), number=_number(number)))
    found = [(each.kind, each.detail) for each in clean.check().violations]
    clean.restore()
    return found


@pytest.mark.parametrize("number", range(len(_PLANTS)), ids=[kind for kind, _, _ in _PLANTS])
def test_what_is_planted_in_the_databases_is_found(planted: list[tuple[str, str]], number: int) -> None:
    assert {kind for kind, detail in planted if _number(number) in detail} == {_PLANTS[number][0]}


def test_nothing_is_found_that_was_not_planted(planted: list[tuple[str, str]]) -> None:
    assert len(planted) == len(_PLANTS)


def test_disturbances_explain_failures(scene: Scene) -> None:
    scene.execute(_NEW_FAILURE.format(id=901, number="DISTURBED"))
    assert scene.kinds("invoice 901 ") == {"failed-without-reason"}
    assert scene.kinds("invoice 901 ", disturbed=["amount-missing"]) == set()


def test_many_violations_of_one_kind_are_shortened(scene: Scene) -> None:
    scene.execute("UPDATE crypto_invoice_cfo_sync SET sync_status = 'retry'")
    found = [each.detail for each in scene.check().violations if each.kind == "mapping-disagrees"]
    assert len(found) == 21
    assert found[-1] == f"… and {len(scene.ids) - 8 - 20} more"


# -- offsets -----------------------------------------------------------------------------------------------------------


def test_records_that_were_not_handled_are_found(scene: Scene) -> None:
    topic = scene.pipeline.settings.retry_topics[0]
    scene.commit(topic, lambda low, high: max(low, high - 1))
    assert scene.kinds("") == {"behind"}
    scene.commit(topic)


def test_an_offset_beyond_the_end_is_found(scene: Scene) -> None:
    topic = scene.pipeline.settings.replay_topic
    scene.commit(topic, lambda low, high: high + 1)
    assert scene.kinds("") == {"offset-beyond-end"}
    assert scene.audit() == {"offset-beyond-end"}
    scene.commit(topic)


def test_a_doorbell_that_led_nowhere_is_found(scene: Scene) -> None:
    settings = scene.pipeline.settings
    scene.execute(_NEW_INVOICE.format(id=910, number="P-910"))
    scene.ring(910)
    assert scene.audit() == set()  # it is not handled yet
    scene.commit(settings.source_topic)
    assert scene.audit() == {"doorbell-lost"}
    assert scene.kinds("") == {"doorbell-lost", "still-open"}
    scene.ring(910, settings.retry_topics[1])
    assert scene.audit() == set()  # it waits there
    scene.commit(settings.retry_topics[1])
    assert scene.audit() == {"doorbell-lost"}


def test_a_doorbell_of_an_earlier_life_is_not_missed(scene: Scene) -> None:
    scene.execute(_NEW_INVOICE.format(id=911, number="P-911"))
    scene.execute("UPDATE crypto_invoices SET status = 'sent' WHERE id = 911")
    scene.execute("UPDATE crypto_invoices SET status = 'paid' WHERE id = 911")
    xids = scene.pipeline.invoices.rows("SELECT xid FROM campaign.history WHERE invoice_id = 911 ORDER BY seq")
    scene.ring(911, xid=xids[0]["xid"])
    scene.commit(scene.pipeline.settings.source_topic)
    assert scene.audit() == set()  # it was found unpaid
    scene.ring(911, xid=xids[2]["xid"])
    scene.commit(scene.pipeline.settings.source_topic)
    assert scene.audit() == {"doorbell-lost"}


def test_a_failure_without_a_dead_letter_is_found(scene: Scene) -> None:
    scene.execute(_NEW_FAILURE.format(id=912, number="P-912") + "; INSERT INTO campaign.expected VALUES (912, 'bad')")
    assert scene.kinds("invoice 912 ") == set()  # found by the sweep
    scene.ring(912)
    scene.commit(scene.pipeline.settings.source_topic)
    now = datetime.now(UTC)
    assert scene.kinds("invoice 912 ", lost=[(now - timedelta(minutes=1), now)]) == set()
    assert scene.kinds("invoice 912 ") == {"failed-not-in-dlq"}
    assert scene.audit() == set()


# -- planted on topics, where it stays ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copies(clean: Scene) -> list[set[str]]:
    """Kinds of what is found about each copy, when all are planted at once."""
    settings = clean.pipeline.settings
    topics = {"retry": settings.retry_topics[0], "second": settings.retry_topics[1], "dlq": settings.dlq_topic}
    letters = {name: clean.letter(topic, "never") for name, topic in topics.items()}
    known = {
        "{late}": str(clean.ids["late"]),
        "{first-failed-at}": dict(letters["retry"].headers())[f"{PREFIX}first-failed-at"],
    }
    places = [
        clean.copy(letters[topic], {name: known.get(text, text) for name, text in changes.items()})
        for _, topic, changes in _COPIES
    ]
    for topic in settings.retry_topics:
        clean.commit(topic)
    found = clean.check().violations
    return [{each.kind for each in found if each.detail.startswith(f"{place} ")} for place in places]


@pytest.mark.parametrize("number", range(len(_COPIES)), ids=[kind for kind, _, _ in _COPIES])
def test_what_is_planted_on_topics_is_found(copies: list[set[str]], number: int) -> None:
    assert copies[number] == {_COPIES[number][0]}


def test_skewed_clocks_explain_what_looks_early(scene: Scene) -> None:
    letter = scene.letter(scene.pipeline.settings.dlq_topic, "never")
    place = scene.copy(letter, {"timestamp": letter.timestamp()[1] - 60_000})
    assert scene.kinds(place, max_skew=61) == set()
    assert scene.kinds(place) == {"handled-early"}


@pytest.mark.parametrize("offset", ["200000", "1"], ids=["gone", "another record has its offset"])
def test_what_the_broker_lost_is_not_missed(scene: Scene, offset: str) -> None:
    settings = scene.pipeline.settings
    lost = datetime.now(UTC) + timedelta(hours=1)
    changes = {"origin-offset": offset, "origin-timestamp": str(round(lost.timestamp() * 1000))}
    place = scene.copy(scene.letter(settings.retry_topics[0], "never"), changes)
    assert scene.kinds(place, lost=[(lost - timedelta(minutes=1), lost + timedelta(minutes=1))]) == set()
    assert scene.kinds(place) == {"bytes-differ"}
