"""Kafka breaks, the real one: nothing lost, nothing twice, nothing moved by an outage."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.local.preparation import run_command
from tests.e2e.harness import Pipeline, wait_until


def test_a_topic_that_is_lost_is_a_hold_until_it_is_made_again(pipeline: Pipeline) -> None:
    consumer = pipeline.start_consumer()
    # Once a client has read a topic it says nothing when that goes: an earlier version stayed ready.
    booked = pipeline.invoices.paid_invoice()
    wait_until(lambda: pipeline.invoices.invoice(booked)["status"] == "complete", "the booking")
    pipeline.wait_quiet()
    admin, lost = pipeline.admin(), pipeline.settings.retry_topics[0]
    admin.delete_topics([lost])[lost].result(10)
    held = wait_until(lambda: consumer.ready().get("hold") and consumer.ready(), "the hold")
    assert (held["ready"], held["hold"]) == (False, "topics")
    assert lost in held["detail"]

    booked = pipeline.invoices.paid_invoice()  # what does not need that topic goes on
    wait_until(lambda: pipeline.invoices.invoice(booked)["status"] == "complete", "the booking")

    create_topics(pipeline)
    wait_until(lambda: consumer.ready()["ready"], "the end of the hold")
    pipeline.produce(lost, b"{", key=b"1")
    wait_until(pipeline.dead_letters, "the record of the new topic to be read")


def test_a_killed_broker_moves_nothing_and_the_drain_goes_on(pipeline: Pipeline) -> None:
    count = 10_000
    consumer = pipeline.start_drain(count)
    pipeline.stack.kafka.kill()
    wait_until(lambda: consumer.ready().get("hold") == "broker", "the consumer to miss the broker")
    pipeline.stack.kafka.start()
    pipeline.stack.kafka.wait_ready(60)
    pipeline.assert_drained(count)
    wait_until(lambda: consumer.ready()["ready"], "the consumer to be ready again")


def test_partitions_that_were_lost_during_a_hold_are_read_again(pipeline: Pipeline) -> None:
    # librdkafka keeps the pause of a partition that it lost: the fault campaign found consumers that owned partitions
    # and read nothing of them until they were restarted.
    consumer = pipeline.start_consumer(CFO_SYNC_KAFKA_CONFIG_FILE=pipeline.short_session())
    pipeline.ledger.execute("ALTER TABLE transactions RENAME currency TO gone")
    pipeline.invoices.paid_invoices(10)
    wait_until(lambda: consumer.ready().get("hold") == "schema", "the hold")
    pipeline.stack.kafka.pause()
    wait_until(lambda: consumer.events("partitions revoked"), "the partitions to be lost")
    pipeline.ledger.execute("ALTER TABLE transactions RENAME gone TO currency")
    wait_until(lambda: consumer.events("hold ended"), "the end of the hold")
    pipeline.stack.kafka.resume()
    pipeline.invoices.paid_invoices(90)
    pipeline.assert_drained(100)


def test_a_rebalance_waits_for_no_broker(pipeline: Pipeline) -> None:
    # librdkafka may never answer a commit made in the callback of a rebalance that its session did not outlive: the
    # fault campaign found a consumer that waited for that answer for ever.
    pipeline.ledger.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(6); RETURN NULL; END $$"
    )
    first = pipeline.start_consumer(CFO_SYNC_KAFKA_CONFIG_FILE=pipeline.short_session())
    pipeline.ledger.execute("CREATE TRIGGER slow AFTER INSERT ON transactions EXECUTE FUNCTION slow()")
    pipeline.invoices.paid_invoices(10)
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: pipeline.invoices.value(sleeping), "the batch that takes long")
    pipeline.start_consumer(wait=False, CFO_SYNC_KAFKA_CONFIG_FILE=pipeline.short_session())
    time.sleep(3)  # the first is told that it must give partitions away, and is busy
    pipeline.stack.kafka.pause()
    wait_until(lambda: not pipeline.invoices.value(sleeping), "the batch to end")
    wait_until(lambda: first.events("partitions revoked"), "the partitions to be given away", 15)
    pipeline.stack.kafka.resume()
    pipeline.ledger.execute("DROP TRIGGER slow ON transactions")
    pipeline.invoices.paid_invoices(30)
    pipeline.assert_drained(40)


def test_dead_letters_that_cannot_be_written_stop_their_partition_and_nothing_is_dropped(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = make_pipeline()
    admin, topic = pipeline.admin(), pipeline.settings.dlq_topic
    consumer = pipeline.start_consumer()
    admin.delete_topics([topic])[topic].result(30)
    bad = pipeline.invoices.create_test_invoice(amount=None)
    pipeline.invoices.mark_invoice_as_paid(bad)
    wait_until(lambda: consumer.events("cannot publish"), "the failed publish", 90)
    good = pipeline.invoices.paid_invoices(20)
    pipeline.wait_complete(len(good))
    assert pipeline.lag() > 0, "the bad invoice's offset is not committed"
    create_topics(pipeline)
    [letter] = wait_until(pipeline.dead_letters, "the dead letter", 90)
    assert dict(letter.headers())["cfo-sync.error-code"] == b"amount-missing"
    pipeline.wait_quiet()


def create_topics(pipeline: Pipeline) -> None:
    run_command(["topics", "create"], pipeline.environment)


def test_sigterm_is_obeyed_while_no_broker_answers(pipeline: Pipeline) -> None:
    consumer = pipeline.start_consumer(CFO_SYNC_BATCH_SIZE="100")
    pipeline.invoices.paid_invoices(3000)
    pipeline.wait_complete(300)
    pipeline.stack.kafka.kill()
    assert consumer.stop() == 0
