"""Our own updates do not come back through Debezium when the consumer marks them and the connector passes them over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import psycopg

from consumer import origins
from tests.e2e.harness import ConsumerProcess, Pipeline, wait_until
from tests.roles import CONSUMER


def statuses(pipeline: Pipeline, last: str) -> Counter[str]:
    """How many events of the source topic bear which status, once there is one with the last."""

    def read() -> Counter[str]:
        events = pipeline.records(pipeline.source_topic)
        found = Counter(json.loads(each.value())["after"]["status"] for each in events)
        return found if found[last] else Counter()

    return wait_until(read, f"an event of an invoice that is {last}")  # type: ignore[no-any-return]


def warnings(consumer: ConsumerProcess) -> list[str]:
    return [each["reason"] for each in consumer.events("our updates are not marked, and the connector will see them")]


def test_only_our_own_updates_are_missing_on_the_topic(make_pipeline: Callable[..., Pipeline]) -> None:
    connector = {"slot.stream.params": "origin=none", "heartbeat.interval.ms": "200"}
    pipeline = make_pipeline(connector=connector, CFO_SYNC_SILENCE_ECHO="true")
    invoices = pipeline.invoices

    # Without the privilege it works as ever, echo included.
    unmarked = pipeline.start_consumer()
    first = invoices.paid_invoice()
    assert statuses(pipeline, "complete") == {"sent": 1, "paid": 1, "complete": 1}
    [reason] = warnings(unmarked)
    assert "may not execute" in reason
    assert unmarked.stop() == 0

    # Two consumers with two connections each, killed in the middle: their origins may be taken for a moment.
    with psycopg.connect(pipeline.stack.postgres.superuser_dsn(pipeline.dbname), autocommit=True) as superuser:
        superuser.execute(f"GRANT EXECUTE ON FUNCTION {', '.join(origins.FUNCTIONS)} TO {CONSUMER}".encode())
    killed = [pipeline.start_consumer(wait=False, CFO_SYNC_BATCH_SIZE="400") for _ in range(2)]
    for each in killed:
        wait_until(lambda each=each: each.ready().get("assigned_partitions"), "partitions for both")  # type: ignore[misc]
    invoices.paid_invoices(4000)
    pipeline.wait_complete(1000)
    for each in killed:
        each.kill()
    # A group of their own, because the old one waits for its dead members; what is booked already is read once more.
    marked = [pipeline.start_consumer(wait=False, CFO_SYNC_GROUP_ID="after-the-kill") for _ in range(2)]
    pipeline.wait_complete(4001)
    pipeline.assert_booked_exactly_once(4001)
    assert pipeline.retries() == []

    # A failure is written down by a marked session too.
    invoices.paid_invoice(amount=0)
    wait_until(pipeline.dead_letters, "the dead letter")

    # What people write, also to an invoice of ours, is sent; the next booking is not.
    invoices.update(first, updated_at="2025-10-22")
    invoices.update(first, status="paid")
    pipeline.wait_complete(4001)
    invoices.update(first, status="cancelled")
    assert statuses(pipeline, "cancelled") == {"sent": 2, "paid": 4003, "complete": 2, "cancelled": 1}
    assert [warnings(each) for each in killed + marked] == [[], [], [], []]

    # The slot goes on over what it passes over.
    end = invoices.value("SELECT pg_current_wal_lsn()")
    query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE database = current_database()"
    wait_until(lambda: invoices.value(query, end), "the slot to go on")
