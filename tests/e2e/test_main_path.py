"""PostgreSQL → Debezium → Kafka → `cfo-sync run` → PostgreSQL, nothing replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal

import psycopg
import pytest

from tests.e2e.harness import Pipeline, wait_until


def test_paid_invoices_are_booked_by_themselves(pipeline: Pipeline) -> None:
    pipeline.start_consumer()
    ids = [pipeline.invoices.paid_invoice(client=name) for name in ("Alps Blockchain", "Exos Capital", "Somebody else")]
    pipeline.wait_complete(3)
    pipeline.assert_booked_exactly_once(3)
    units = [row["business_unit"] for row in pipeline.ledger.rows("SELECT business_unit FROM transactions ORDER BY id")]
    assert sorted(units) == ["Paraguay Hosting", "Paraguay Mining", "Paraguay Operations"]
    assert pipeline.invoices.invoice(ids[0])["amount_usd"] == Decimal("100.00")


def test_the_event_carries_only_the_columns_that_we_use(pipeline: Pipeline) -> None:
    pipeline.invoices.create_test_invoice(deposit_address="0xwallet", notes="confidential")
    [message] = wait_until(lambda: pipeline.records(pipeline.source_topic), "the event")
    after = json.loads(message.value())["after"]
    assert sorted(after) == ["id", "invoice_number", "paid_at", "status", "updated_at"]


def test_invoices_paid_before_the_connector_came_are_booked_from_its_snapshot(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = make_pipeline()
    pipeline.invoices.paid_invoices(10)
    pipeline.start_consumer()
    pipeline.wait_complete(10)
    pipeline.assert_booked_exactly_once(10)


@pytest.mark.parametrize(
    "connector",
    [
        pytest.param(
            {"value.converter.schemas.enable": "true", "key.converter.schemas.enable": "true"}, id="schema-wrapper"
        ),
        pytest.param(
            {
                "transforms": "unwrap",
                "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
                "transforms.unwrap.delete.tombstone.handling.mode": "rewrite",
            },
            id="flattened",
        ),
    ],
)
def test_other_shapes_of_the_event_are_understood(
    make_pipeline: Callable[..., Pipeline], connector: dict[str, str]
) -> None:
    pipeline = make_pipeline(connector=connector)
    pipeline.start_consumer()
    pipeline.invoices.delete(pipeline.invoices.create_test_invoice())
    pipeline.invoices.paid_invoice()
    pipeline.wait_complete(1)
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(1)
    assert pipeline.dead_letters() == []


def test_a_thousand_invoices_paid_by_one_statement_are_all_booked(pipeline: Pipeline) -> None:
    pipeline.start_consumer()
    client = pipeline.invoices.client("Exos Capital")
    pipeline.invoices.rows(
        "INSERT INTO crypto_invoices (invoice_number, client_id, status, amount_usd)"
        " SELECT 'K-' || n, %s, 'sent', n FROM generate_series(1, 1000) n RETURNING id",
        client,
    )
    pipeline.invoices.connection.execute("UPDATE crypto_invoices SET status = 'paid', paid_at = now()")
    pipeline.wait_complete(1000)
    pipeline.assert_booked_exactly_once(1000)


def test_interleaved_long_transactions_committed_in_the_other_order_are_all_booked(pipeline: Pipeline) -> None:
    pipeline.start_consumer()
    first, second = pipeline.invoices.create_test_invoice(), pipeline.invoices.create_test_invoice()
    with psycopg.connect(pipeline.invoices.dsn) as early, psycopg.connect(pipeline.invoices.dsn) as late:
        early.execute("UPDATE crypto_invoices SET status = 'paid', paid_at = now() WHERE id = %s", (first,))
        late.execute("UPDATE crypto_invoices SET status = 'paid', paid_at = now() WHERE id = %s", (second,))
        late.commit()
        pipeline.wait_complete(1)
        early.commit()
    pipeline.wait_complete(2)
    pipeline.assert_booked_exactly_once(2)


def test_offsets_reset_to_the_beginning_change_nothing(pipeline: Pipeline) -> None:
    first = pipeline.start_consumer()
    pipeline.invoices.paid_invoices(200)
    pipeline.wait_complete(200)
    pipeline.wait_quiet()
    before = pipeline.invoices.rows("SELECT * FROM crypto_invoice_cfo_sync ORDER BY id")
    assert first.stop() == 0
    admin, group = pipeline.admin(), pipeline.settings.group_id
    admin.delete_consumer_groups([group])[group].result(30)
    pipeline.start_consumer()
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(200)
    assert pipeline.invoices.rows("SELECT * FROM crypto_invoice_cfo_sync ORDER BY id") == before


def test_consumers_share_every_topic_evenly(pipeline: Pipeline) -> None:
    consumers = [pipeline.start_consumer() for _ in range(2)]

    admin, group = pipeline.admin(), pipeline.settings.group_id

    def shares() -> list[int]:
        found = admin.describe_consumer_groups([group])[group].result(10)
        assigned = [member.assignment.topic_partitions for member in found.members if member.assignment is not None]
        return [sum(each.topic == pipeline.source_topic for each in mine) for mine in assigned]

    partitions = len(pipeline.end_offsets(pipeline.source_topic))
    wait_until(lambda: shares() == [partitions // 2] * 2, "each to have half of the source topic")
    pipeline.invoices.paid_invoices(400)
    pipeline.wait_complete(400)
    pipeline.assert_booked_exactly_once(400)
    assert all(consumer.stop() == 0 for consumer in consumers)
