"""What the monitor sees in the databases, beside what the guide's own queries say."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumer import lags, monitor_store, reconcile
from consumer.dlq import DeadLetterQueue
from consumer.faults import Outage, Transient
from consumer.health import Health
from consumer.metrics import SOURCES, Metrics, StateMetrics
from consumer.monitor import Monitor
from consumer.outcomes import Faulted
from consumer.running import Stop, _wait_for_dependencies
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.conftest import make_settings
from tests.roles import API
from tests.support import InvoiceSystem, LedgerView

KAFKA = {"consumer-lag", "consumer-group", "dead-letters"}
DATABASE = set(SOURCES) - KAFKA

# Word for word from the guide, "Key Metrics".
AVERAGE_LAG = """
   SELECT AVG(EXTRACT(EPOCH FROM (sync_timestamp - paid_at)))
   FROM crypto_invoice_cfo_sync s
   JOIN crypto_invoices i ON s.invoice_id = i.id
   WHERE sync_timestamp > NOW() - INTERVAL '24 hours';
"""
SUCCESS_RATE = """
   SELECT
       COUNT(*) FILTER (WHERE sync_status = 'synced') * 100.0 / COUNT(*) as success_rate
   FROM crypto_invoice_cfo_sync
   WHERE created_at > NOW() - INTERVAL '7 days';
"""
PENDING = """
   SELECT COUNT(*) FROM v_crypto_invoices_pending_sync;
"""


class Watch:
    """A monitor and what it shows."""

    def __init__(self, settings: Settings, service: CFOSyncService) -> None:
        self.metrics = StateMetrics(settings)
        self.queue = DeadLetterQueue(settings, service)
        self.monitor = Monitor(settings, service, self.queue, self.metrics)

    def look(self) -> Watch:
        self.monitor.refresh()
        return self

    def value(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"no series {name} {labels}"
        return value

    def seen(self) -> set[str]:
        return {source for source in SOURCES if self.value("cfo_sync_monitor_up", source=source) == 1}


@pytest.fixture
def settings(dsn: str) -> Settings:
    """One layout: everything that the monitor reads itself stands in the invoice database."""
    return make_settings(dsn, role=API)


@pytest.fixture
def make_watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Settings, CFOSyncService], Watch]]:
    """No broker answers in these tests, and waiting for it must not take long."""
    monkeypatch.setattr(lags, "_TIMEOUT", 0.05)
    made: list[Watch] = []

    def make(settings: Settings, service: CFOSyncService) -> Watch:
        nobody = settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:9"})
        made.append(Watch(nobody, service))
        return made[-1]

    yield make
    for watch in made:
        watch.monitor.close()
        watch.queue.close()


@pytest.fixture
def watch(
    make_watch: Callable[[Settings, CFOSyncService], Watch], settings: Settings, service: CFOSyncService
) -> Watch:
    return make_watch(settings, service)


def fail(service: CFOSyncService, invoice_id: int, status: str, retries: int) -> None:
    """Record a failed attempt as the worker would."""
    outcome = Faulted(invoice_id, Transient("client-not-there", "no row in crypto_clients yet"))
    service.record_faults([fault_row(outcome, status, retries)])


def test_the_three_metrics_agree_with_the_guides_queries(
    watch: Watch, service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    old = datetime.now(UTC).replace(tzinfo=None)
    for hours in (0, 1, 5):
        invoice_id = invoices.create_test_invoice()
        invoices.mark_invoice_as_paid(invoice_id, paid_at=old - timedelta(hours=hours, seconds=7))
        assert service.sync_invoice_to_cfo(invoice_id)["success"]
    # Outside of both windows.
    past = invoices.paid_invoice()
    assert service.sync_invoice_to_cfo(past)["success"]
    invoices.connection.execute(
        "UPDATE crypto_invoice_cfo_sync SET sync_timestamp = sync_timestamp - interval '25 hours',"
        " created_at = created_at - interval '8 days' WHERE invoice_id = %s",
        (past,),
    )
    for status, retries in (("failed", 3), ("failed", 0), ("retry", 2)):
        fail(service, invoices.paid_invoice(), status, retries)
    invoices.paid_invoice()

    watch.look()

    assert watch.seen() == DATABASE
    assert watch.value("cfo_sync_average_lag_seconds") == pytest.approx(float(invoices.value(AVERAGE_LAG)))
    assert watch.value("cfo_sync_average_lag_seconds") == pytest.approx(2 * 3600 + 7, abs=30)
    # All three were booked just now, the slowest five hours after its payment.
    assert 4 * 3600 < watch.value("cfo_sync_recent_lag_seconds") <= 5 * 3600 + 60
    assert watch.value("cfo_sync_success_ratio") == pytest.approx(float(invoices.value(SUCCESS_RATE)) / 100)
    assert watch.value("cfo_sync_success_ratio") == pytest.approx(3 / 6)
    assert watch.value("cfo_sync_pending_invoices") == invoices.value(PENDING) == 4


def test_failed_invoices_are_told_apart_by_the_retries_they_have_left(
    watch: Watch, service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    for retries in (0, 2, 3):
        fail(service, invoices.paid_invoice(), "failed", retries)
    watch.look()
    assert watch.value("cfo_sync_failed_invoices", retries="used-up") == 1
    assert watch.value("cfo_sync_failed_invoices", retries="left") == 2


def test_the_oldest_unbooked_invoice_is_aged_by_status(
    watch: Watch, service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    def paid(minutes: int) -> int:
        invoice_id = invoices.create_test_invoice()
        at = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=minutes)
        invoices.mark_invoice_as_paid(invoice_id, paid_at=at)
        return invoice_id

    paid(1)
    paid(3)
    fail(service, paid(10), "retry", 1)
    # Given up, and cancelled since: no revenue is missing.
    cancelled = paid(1000)
    fail(service, cancelled, "failed", 0)
    invoices.update(cancelled, status="cancelled")
    # Cannot be dated, and must not hide the others.
    invoices.update(invoices.paid_invoice(), paid_at="infinity")

    watch.look()

    ages = {each: watch.value("cfo_sync_oldest_pending_age_seconds", status=each) for each in
            ("pending", "retry", "failed")}  # fmt: skip
    assert ages == {
        "pending": pytest.approx(180, abs=30),
        "retry": pytest.approx(600, abs=30),
        "failed": 0,
    }
    assert watch.value("cfo_sync_pending_invoices") == 5


def test_an_infinite_date_of_one_invoice_hides_no_lag(
    watch: Watch, service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    strange, plain = invoices.paid_invoice(), invoices.paid_invoice()
    service.sync(dict.fromkeys((strange, plain), 0))
    invoices.update(strange, paid_at="-infinity")
    watch.look()
    assert 0 <= watch.value("cfo_sync_average_lag_seconds") < 3600
    assert 0 <= watch.value("cfo_sync_recent_lag_seconds") < 3600


def test_nothing_to_take_a_rate_of_is_not_a_number(watch: Watch) -> None:
    watch.look()
    assert math.isnan(watch.value("cfo_sync_average_lag_seconds"))
    assert math.isnan(watch.value("cfo_sync_recent_lag_seconds"))
    assert math.isnan(watch.value("cfo_sync_success_ratio"))
    assert watch.value("cfo_sync_pending_invoices") == 0


def test_without_a_broker_the_databases_are_still_seen_and_nothing_old_is_shown(
    watch: Watch, settings: Settings
) -> None:
    watch.metrics.consumer_lag.put({settings.source_topic: 5})
    watch.metrics.dlq_age.put(5)
    watch.look()
    assert watch.seen() == DATABASE
    assert math.isnan(watch.value("cfo_sync_consumer_lag_records", topic=settings.source_topic))
    assert math.isnan(watch.value("cfo_sync_dlq_oldest_open_age_seconds"))
    assert math.isnan(watch.value("cfo_sync_consumer_group_members"))


def test_a_database_that_goes_away_is_not_seen_and_later_is_again(
    postgres: Stack, dsn: str, make_watch: Callable[[Settings, CFOSyncService], Watch]
) -> None:
    settings = make_settings(dsn, role=API)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with CFOSyncService(settings) as service:
        watch = make_watch(settings, service).look()
        assert watch.seen() == DATABASE
        with psycopg.connect(postgres.postgres.superuser_dsn(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            watch.look()
            assert watch.seen() == set()
            assert math.isnan(watch.value("cfo_sync_pending_invoices"))
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        assert watch.look().seen() == DATABASE
        assert watch.value("cfo_sync_pending_invoices") == 0


def test_what_one_look_may_not_read_does_not_hide_the_others(watch: Watch, invoices: InvoiceSystem) -> None:
    invoices.connection.execute("ALTER TABLE cfo_sync_reconciliations RENAME TO elsewhere")
    watch.look()
    assert watch.seen() == DATABASE - {"reconciliation"}
    assert math.isnan(watch.value("cfo_sync_reconciliation_differences", kind="amount-differs"))


def test_a_statement_that_takes_long_is_given_up(
    watch: Watch, invoices: InvoiceSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_store, "_PATIENCE", "200ms")
    with psycopg.connect(invoices.dsn) as other:
        other.execute("LOCK TABLE crypto_invoice_cfo_sync IN ACCESS EXCLUSIVE MODE")
        watch.look()
        assert watch.seen() == {"replication-slots", "reconciliation"}


def test_replication_slots_of_this_database_are_seen_and_forgotten_when_dropped(
    postgres: Stack, watch: Watch, settings: Settings
) -> None:
    slot = "seen_by_the_monitor"
    with psycopg.connect(
        make_conninfo(postgres.postgres.superuser_dsn(), dbname=_name(settings)), autocommit=True
    ) as connection:
        watch.look()
        assert watch.value("cfo_sync_replication_slots") == 0
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        try:
            connection.execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 100000))")
            watch.look()
            assert watch.value("cfo_sync_replication_slots") == 1
            assert watch.value("cfo_sync_replication_slot_active", slot=slot) == 0
            retained = watch.value("cfo_sync_replication_slot_retained_bytes", slot=slot)
            assert retained >= watch.value("cfo_sync_replication_slot_lag_bytes", slot=slot) >= 100_000
        finally:
            connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        watch.look()
        assert watch.metrics.registry.get_sample_value("cfo_sync_replication_slot_active", {"slot": slot}) is None


def test_the_last_reconciliation_is_shown(
    watch: Watch, service: CFOSyncService, settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    watch.look()
    assert watch.value("cfo_sync_reconciliation_last_run_timestamp_seconds") == 0
    assert math.isnan(watch.value("cfo_sync_reconciliation_differences", kind="amount-differs"))
    invoice_id = invoices.paid_invoice()
    assert service.sync_invoice_to_cfo(invoice_id)["success"]
    ledger.execute("UPDATE transactions SET amount = 90.50")

    assert reconcile.run_scheduled(settings, service.rules) is not None
    watch.look()

    assert watch.value("cfo_sync_reconciliation_differences", kind="amount-differs") == 1
    assert watch.value("cfo_sync_reconciliation_differences", kind="missing-transaction") == 0
    assert watch.value("cfo_sync_reconciliation_difference_usd", kind="amount-differs") == 9.5
    assert watch.value("cfo_sync_reconciliation_usd", side="invoices") == 100
    assert watch.value("cfo_sync_reconciliation_usd", side="ledger") == 90.5
    age = datetime.now(UTC).timestamp() - watch.value("cfo_sync_reconciliation_last_run_timestamp_seconds")
    assert 0 <= age < 60


def test_running_looks_and_reconciles_until_stopped(watch: Watch, invoices: InvoiceSystem) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=watch.monitor.run, args=(stop,))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while watch.seen() != DATABASE or invoices.value("SELECT count(*) FROM cfo_sync_reconciliations") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def test_a_consumer_that_waits_for_its_database_says_so(settings: Settings) -> None:
    metrics, stop = Metrics(settings.consumed_topics), Stop()
    nowhere = make_settings(make_conninfo(settings.invoice_dsn.get_secret_value(), dbname="nowhere"))
    threading.Timer(0.3, stop.event.set).start()
    with CFOSyncService(nowhere) as service:
        assert not _wait_for_dependencies(nowhere, service, Health(), metrics, stop, logging.getLogger("kafka"))
    held = {
        sample.labels["reason"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "cfo_sync_hold" and sample.value == 1
    }
    assert held == {"unreachable"}


def test_a_privilege_that_lacks_is_an_outage_and_no_crash(service: CFOSyncService) -> None:
    def forbidden(connection: Any) -> None:
        connection.execute("SET LOCAL ROLE pg_monitor")
        monitor_store.read_waiting(connection)

    with pytest.raises(Outage):
        service.read(forbidden)


def _name(settings: Settings) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(settings.invoice_dsn.get_secret_value())["dbname"])
