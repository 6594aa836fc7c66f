"""Latency: from the commit in the invoice database to the transaction in the ledger, beside Debezium's part of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.bench.bed import PARTITIONS, Bed, Scene, wait_until
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram
from tests.bench.results import Figure, Item, Verdict, percentile, say

_RATE = 50
_PAYMENT = """INSERT INTO crypto_payment_transactions
    (invoice_id, transaction_hash, amount_received, status, confirmed_at)
SELECT id, 'bench-' || id, amount_usd, 'confirmed', now() AT TIME ZONE 'UTC' FROM crypto_invoices
WHERE id BETWEEN %s AND %s"""
_PAID = """UPDATE crypto_invoices SET status = 'paid', paid_at = now() AT TIME ZONE 'UTC',
updated_at = now() AT TIME ZONE 'UTC' WHERE id BETWEEN %s AND %s"""

# A payment is written in the transaction that pays its invoice, and never changed: its xmin is that transaction.
_BOOKED = """SELECT i.id, extract(epoch FROM pg_xact_commit_timestamp(p.xmin))::float8,
    extract(epoch FROM pg_xact_commit_timestamp(t.xmin))::float8
FROM crypto_invoices i
JOIN crypto_payment_transactions p ON p.invoice_id = i.id
JOIN transactions t ON t.identifier = i.invoice_number"""


def run(plan: Plan) -> Item:
    """50 invoices a second are paid, each in a transaction of its own; then 5,000 at once on top of them.

    PostgreSQL's own commit timestamps are taken on both ends. When an event can be read from the topic is seen by one
    more consumer, which reads committed records only, as ours does.
    """
    steady, burst = plan.size(60, 6) * _RATE, plan.size(5_000, 300)
    item = Item(
        "latency", "Latency at 50 invoices/s", {"invoices": steady, "burst": burst, "invoices after it": steady}
    )
    _keep_commit_timestamps(plan.bed, "on")
    try:
        rounds = [_round(plan, steady, burst) for _ in range(1 if plan.is_small else min(plan.rounds, 3))]
    finally:
        _keep_commit_timestamps(plan.bed, "off")
    for name in rounds[0]:
        item.figures.append(Figure(name, "ms", tuple(each[name] for each in rounds)))
    for part in ("median", "p99"):
        value = item.figure(f"commit to ledger, {part}").median / item.figure(f"commit to topic, {part}").median
        item.verdicts.append(Verdict(f"{part} beside Debezium's commit to topic", value, 1.5, "at most"))
    after = item.figure("commit to ledger after the burst, p99").median / item.figure("commit to ledger, p99").median
    item.verdicts.append(Verdict("p99 after the burst beside before", after, 1.2, "at most"))
    return item


def _keep_commit_timestamps(bed: Bed, state: str) -> None:
    with bed.superuser() as connection:
        connection.execute(f"ALTER SYSTEM SET track_commit_timestamp = {state}".encode())
    bed.stack.postgres.stop()
    bed.stack.postgres.start()
    bed.stack.postgres.wait_ready()


def _round(plan: Plan, steady: int, burst: int) -> dict[str, float]:
    count = 2 * steady + burst
    with plan.bed.scene(plan.bed.template(count, status="sent", is_paid=False)) as scene:
        scene.start_connector()
        program = ConsumerProgram(scene)
        program.wait_ready()
        scene.wait_assigned(1, PARTITIONS)
        observer = _Observer(scene)
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            _pay(connection, 1, 20)  # everything is warm then
            _wait_booked(connection, 20)
            _pay_steadily(connection, 21, steady)
            _wait_booked(connection, steady)
            _pay(connection, steady + 1, steady + burst)
            began = time.monotonic()
            _wait_booked(connection, steady + burst)
            drained = time.monotonic() - began
            _pay_steadily(connection, steady + burst + 1, count)
            _wait_booked(connection, count)
            moments = {row[0]: row[1:] for row in connection.execute(_BOOKED.encode()).fetchall()}
        seen = observer.stop(count)
        program.check()
    before, after = range(21, steady + 1), range(steady + burst + 1, count + 1)
    booked = [(moments[each][1] - moments[each][0]) * 1000 for each in before]
    later = [(moments[each][1] - moments[each][0]) * 1000 for each in after]
    captured = [(seen[each] - moments[each][0]) * 1000 for each in before]
    found = {
        **_parts("commit to topic", captured),
        **_parts("commit to ledger", booked),
        **_parts("commit to ledger after the burst", later),
        f"burst of {burst:,}, until it is booked": drained * 1000,
    }
    for name, value in found.items():
        say(f"  {name:<44} {value:>10,.1f} ms")
    return found


def _parts(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}, median": percentile(values, 0.5), f"{name}, p99": percentile(values, 0.99)}


def _pay(connection: psycopg.Connection, first: int, last: int) -> None:
    with connection.transaction():
        connection.execute(_PAYMENT, (first, last))
        connection.execute(_PAID, (first, last))


def _pay_steadily(connection: psycopg.Connection, first: int, last: int) -> None:
    began = time.monotonic()
    for number, invoice_id in enumerate(range(first, last + 1)):
        time.sleep(max(0.0, began + number / _RATE - time.monotonic()))
        _pay(connection, invoice_id, invoice_id)


def _wait_booked(connection: psycopg.Connection, count: int) -> None:
    query = "SELECT count(*) FROM crypto_invoice_cfo_sync WHERE sync_status = 'synced'"
    wait_until(lambda: connection.execute(query).fetchone() == (count,), f"{count} bookings", every=0.02)


class _Observer:
    """When each invoice's paid event could first be read from the topic (seconds since the epoch)."""

    def __init__(self, scene: Scene) -> None:
        self._seen: dict[int, float] = {}
        self._is_over = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": scene.settings.kafka_bootstrap_servers,
                "group.id": "bench-observer",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(scene.topic, number, 0) for number in range(PARTITIONS)])
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            moment = time.time()
            row = json.loads(message.value() or b"{}").get("after") or {}
            if row.get("status") == "paid":
                self._seen.setdefault(row["id"], moment)

    def stop(self, count: int) -> dict[int, float]:
        """Once so many were seen."""
        wait_until(lambda: len(self._seen) >= count, "the events to be seen")
        self._is_over.set()
        self._thread.join()
        self._consumer.close()
        return self._seen
