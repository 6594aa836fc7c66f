"""What breaks in production, broken on the real parts: nothing lost, nothing twice, nothing moved by an outage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime

import psycopg
import pytest

from consumer import headers
from tests.e2e.harness import Pipeline, wait_until


def test_a_drain_survives_kill_9_three_times(pipeline: Pipeline) -> None:
    count = 20_000
    pipeline.invoices.paid_invoices(count)
    wait_until(
        lambda: sum(high for _, high in pipeline.end_offsets(pipeline.source_topic).values()) >= count, "the events"
    )
    session = pipeline.short_session()
    for share in (0.1, 0.3, 0.6):
        consumer = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="500", CFO_SYNC_KAFKA_CONFIG_FILE=session)
        pipeline.wait_complete(int(count * share))
        consumer.kill()
    pipeline.start_consumer()
    pipeline.assert_drained(count)


def test_consumers_that_come_and_go_during_a_drain_book_each_invoice_once(pipeline: Pipeline) -> None:
    count = 20_000
    first = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="200")
    pipeline.invoices.paid_invoices(count)
    pipeline.wait_complete(1000)
    second = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="200")
    wait_until(lambda: second.ready().get("assigned_partitions"), "the second consumer to get partitions")
    third = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="200", wait=False)
    pipeline.wait_complete(5000)
    assert first.stop() == 0
    third.wait_ready()
    pipeline.wait_complete(count)
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(count)
    assert pipeline.retries() == []


def test_a_stopped_database_moves_nothing_and_the_drain_goes_on(pipeline: Pipeline) -> None:
    count = 10_000
    consumer = pipeline.start_drain(count)
    pipeline.stack.postgres.stop()
    wait_until(lambda: consumer.ready().get("hold") == "unreachable", "the hold")
    time.sleep(3)
    pipeline.stack.postgres.start()
    pipeline.stack.postgres.wait_ready(30)
    pipeline.invoices.reconnect()
    pipeline.assert_drained(count)
    assert consumer.ready()["ready"] is True


def test_killed_backends_and_a_crashed_server_send_nothing_to_retry(pipeline: Pipeline) -> None:
    count = 5_000
    pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="200")
    pipeline.invoices.paid_invoices(count)
    for share in (0.1, 0.3, 0.5):
        pipeline.wait_complete(int(count * share))
        pipeline.invoices.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'cfo-sync' AND datname = current_database()"
        )
    pipeline.stack.postgres.kill()
    time.sleep(1)
    pipeline.stack.postgres.start()
    pipeline.stack.postgres.wait_ready(30)
    pipeline.invoices.reconnect()
    pipeline.assert_drained(count)


def test_a_killed_consumers_statement_is_waited_for(pipeline: Pipeline) -> None:
    # A trigger makes the ledger's insert slow, so that the kill hits the middle of the statement.
    pipeline.ledger.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$"
    )
    pipeline.ledger.execute("CREATE TRIGGER slow BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION slow()")
    pipeline.invoices.paid_invoices(200)
    first = pipeline.start_consumer()
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO \"transactions\"%' AND state = 'active'"
    )
    wait_until(lambda: pipeline.invoices.value(running), "the insert to run")
    first.kill()
    assert pipeline.invoices.value(running) >= 1, "the orphan's statement goes on"
    pipeline.start_consumer()
    pipeline.wait_complete(200)
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(200)
    assert pipeline.retries() == []


def test_a_bad_invoice_goes_to_the_dead_letters_at_once_and_the_others_are_booked(pipeline: Pipeline) -> None:
    bad = pipeline.invoices.create_test_invoice(amount=None)
    pipeline.invoices.mark_invoice_as_paid(bad)
    pipeline.invoices.paid_invoices(20)
    pipeline.start_consumer()
    pipeline.wait_complete(20)
    [letter] = wait_until(pipeline.dead_letters, "the dead letter")
    found = {name: value.decode() for name, value in letter.headers()}
    assert found["cfo-sync.error-code"] == "amount-missing"
    assert found["cfo-sync.error-kind"] == "record"
    assert found["cfo-sync.invoice-id"] == str(bad)
    assert found["cfo-sync.origin-topic"] == pipeline.source_topic
    assert "cfo-sync.not-before" not in found
    [original] = [
        message for message in pipeline.records(pipeline.source_topic)
        if (message.partition(), message.offset())
        == (int(found["cfo-sync.origin-partition"]), int(found["cfo-sync.origin-offset"]))
    ]  # fmt: skip
    assert (letter.key(), letter.value()) == (original.key(), original.value())
    row = pipeline.invoices.sync_row(bad)
    assert row is not None
    assert (row["sync_status"], row["retry_count"]) == ("failed", 0)
    assert row["sync_error"].startswith("amount-missing")
    assert pipeline.retries() == []


def test_garbage_on_the_topic_goes_to_the_dead_letters_with_its_bytes(pipeline: Pipeline) -> None:
    pipeline.start_consumer()
    values = [b"\x00\xff garbage", b"[1, 2", b'{"op": "u", "after": {"id": "x", "status": "paid"}}', b'{"unknown": 1}']
    for value in values:
        pipeline.produce(pipeline.source_topic, value, key=b'{"id": 7}')
    pipeline.invoices.paid_invoice()
    pipeline.wait_complete(1)
    wait_until(lambda: len(pipeline.dead_letters()) == len(values), "the dead letters")
    letters = pipeline.dead_letters()
    assert sorted(letter.value() for letter in letters) == sorted(values)
    codes = sorted(dict(letter.headers())["cfo-sync.error-code"].decode() for letter in letters)
    assert codes == ["id-invalid", "not-an-event", "not-json", "not-json"]


def test_a_locked_row_is_retried_after_its_delay_and_booked(pipeline: Pipeline) -> None:
    invoice_id = pipeline.invoices.paid_invoice()
    with psycopg.connect(pipeline.invoices.dsn) as holder:
        holder.execute("SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE", (invoice_id,))
        pipeline.start_consumer()
        other = pipeline.invoices.paid_invoice()
        wait_until(lambda: pipeline.invoices.invoice(other)["status"] == "complete", "the other invoice")
        row = wait_until(lambda: pipeline.invoices.sync_row(invoice_id), "the retry")
        assert (row["sync_status"], row["retry_count"]) == ("retry", 1)
    pipeline.wait_complete(2)
    pipeline.wait_quiet()
    first, *_ = pipeline.records(pipeline.settings.retry_topics[0])
    due = datetime.fromisoformat(dict(first.headers())["cfo-sync.not-before"].decode())
    row = pipeline.invoices.sync_row(invoice_id)
    assert row is not None
    assert row["sync_status"] == "synced"
    assert row["sync_timestamp"] >= due.replace(tzinfo=None), "handled before its time"
    assert row["retry_count"] >= 1
    assert [entry["sync_status"] for entry in pipeline.invoices.log(invoice_id)][-1] == "synced"
    assert pipeline.dead_letters() == []


def test_three_retries_then_the_dead_letters(pipeline: Pipeline) -> None:
    # No client row ever comes: transient each time.
    invoice_id = pipeline.invoices.create_test_invoice(client_id=4711)
    pipeline.invoices.mark_invoice_as_paid(invoice_id)
    pipeline.start_consumer()
    [letter] = wait_until(pipeline.dead_letters, "the dead letter", 30)
    hops = [pipeline.records(topic) for topic in pipeline.settings.retry_topics]
    assert [len(records) for records in hops] == [1, 1, 1]
    for number, ([hop], delay) in enumerate(zip(hops, (1, 2, 3), strict=True), 1):
        found = {name: value.decode() for name, value in hop.headers()}
        assert len(hop.headers()) == len(found), "headers are replaced, not appended"
        assert found["cfo-sync.attempt"] == str(number)
        waited = datetime.fromisoformat(found["cfo-sync.not-before"]).timestamp() - hop.timestamp()[1] / 1000
        assert waited == pytest.approx(delay, abs=0.5)
        assert hop.value() == letter.value()
    found = {name: value.decode() for name, value in letter.headers()}
    assert (found["cfo-sync.attempt"], found["cfo-sync.error-code"]) == ("3", "client-not-there")
    row = pipeline.invoices.sync_row(invoice_id)
    assert row is not None
    assert (row["sync_status"], row["retry_count"]) == ("failed", 3)
    assert [entry["sync_status"] for entry in pipeline.invoices.log(invoice_id)] == [
        "retry",
        "retry",
        "retry",
        "failed",
    ]


def test_the_sweep_books_what_no_event_brought_in(make_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = make_pipeline(
        CFO_SYNC_SWEEP_INTERVAL="1s", CFO_SYNC_SWEEP_GRACE="1s", connector={"skipped.operations": "c,u,d,t"}
    )
    pipeline.start_consumer()
    pipeline.invoices.paid_invoices(50)
    pipeline.wait_complete(50)
    pipeline.assert_booked_exactly_once(50)
    assert pipeline.records(pipeline.source_topic) == []


def test_sigterm_finishes_the_batch_and_leaves_the_group(pipeline: Pipeline) -> None:
    consumer = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="100")
    pipeline.invoices.paid_invoices(3000)
    pipeline.wait_complete(300)
    assert consumer.stop() == 0
    booked = pipeline.invoices.value("SELECT count(*) FROM transactions")
    assert booked == pipeline.invoices.value("SELECT count(*) FROM crypto_invoices WHERE status = 'complete'")
    pipeline.start_consumer()
    pipeline.wait_complete(3000)
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(3000)


def test_a_damaged_header_is_no_obstacle(pipeline: Pipeline) -> None:
    invoice_id = pipeline.invoices.paid_invoice()
    event = json.dumps({"op": "u", "after": {"id": invoice_id, "status": "paid"}}).encode()
    pipeline.produce(
        pipeline.settings.retry_topics[1],
        event,
        headers=[(headers.PREFIX + "not-before", b"\xff"), ("foreign", b"kept")],
    )
    pipeline.start_consumer()
    pipeline.wait_complete(1)
    pipeline.wait_quiet()
    pipeline.assert_booked_exactly_once(1)


def refuse_in_ledger(pipeline: Pipeline, when: str) -> None:
    """An error that nobody foresaw, for each transaction with `when`."""
    pipeline.ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF {when} THEN RAISE EXCEPTION 'who knows'; END IF; RETURN NEW; END $$"
    )
    pipeline.ledger.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION refuse()"
    )


def test_an_unknown_error_of_every_record_is_held_and_ends_by_itself(pipeline: Pipeline) -> None:
    refuse_in_ledger(pipeline, "true")
    consumer = pipeline.start_consumer()
    pipeline.invoices.paid_invoices(60)
    wait_until(lambda: consumer.ready().get("hold") == "breaker", "the hold")
    time.sleep(2)
    assert len(pipeline.retries()) < 20, "no more records than the breaker needs to see"
    pipeline.ledger.execute("DROP TRIGGER refuse ON transactions")
    pipeline.wait_complete(60)
    pipeline.wait_quiet()
    assert pipeline.invoices.value("SELECT count(*) FROM transactions") == 60
    assert pipeline.dead_letters() == []
    assert consumer.ready()["ready"] is True


def test_many_poisonous_records_hold_the_others_for_a_while_only(pipeline: Pipeline) -> None:
    refuse_in_ledger(pipeline, "NEW.amount = 666.66")
    pipeline.invoices.paid_invoices(40, amount="666.66")
    pipeline.invoices.paid_invoices(40)
    pipeline.start_consumer(CFO_SYNC_RETRY_DELAYS="1h,1h,1h")
    pipeline.wait_complete(40)
    wait_until(lambda: len(pipeline.retries()) == 40, "the poisonous ones in the retry topic")
    assert pipeline.invoices.value("SELECT count(*) FROM transactions") == 40
    assert pipeline.dead_letters() == []
