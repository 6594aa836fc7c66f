"""Tools: reconciliation, dead letters, pending and metrics on a database of a million invoices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final

import psycopg

from consumer import monitor_store, status_store, store
from consumer.service import CFOSyncService
from deploy.local.ports import choose_port
from tests.bench.backlog import Backlog
from tests.bench.bed import PARTITIONS, Bed, Scene, merged, wait_until
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram, Program
from tests.bench.results import Figure, Item, Verdict, say

_PENDING: Final = 100

# Like the invoice that the product booked, for all others; 10,000 bookings a day.
_BOOK: Final = """
INSERT INTO transactions (date, description, amount, classified_entity, business_unit, source_file, transaction_type,
    confidence, classification_reason, origin, destination, identifier, currency)
SELECT i.paid_at, replace(t.description, 'BENCH-1', i.invoice_number), i.amount_usd, t.classified_entity,
    t.business_unit, 'crypto_invoice_' || i.invoice_number, t.transaction_type, t.confidence, t.classification_reason,
    t.origin, t.destination, i.invoice_number, t.currency
FROM crypto_invoices i, transactions t WHERE t.identifier = 'BENCH-1' AND i.id BETWEEN 2 AND {last} ORDER BY i.id;
INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, cfo_identifier, sync_status, sync_timestamp,
    entity_mapped, category_mapped, confidence_score, created_at)
SELECT i.id, t.id, t.identifier, 'synced', m.at, t.classified_entity, 'Revenue', 1.0, m.at
FROM crypto_invoices i JOIN transactions t ON t.identifier = i.invoice_number
CROSS JOIN LATERAL (SELECT now() AT TIME ZONE 'UTC' - i.id * interval '8.64 seconds' AS at) m WHERE i.id > 1;
INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status, cfo_transaction_id, sync_attempt_timestamp, request_payload)
SELECT s.invoice_id, 'synced', s.cfo_transaction_id, s.sync_timestamp, l.request_payload
FROM crypto_invoice_cfo_sync s, crypto_cfo_sync_log l WHERE l.invoice_id = 1 AND s.invoice_id > 1;
UPDATE crypto_invoices SET status = 'paid' WHERE id > {last};
"""
_LARGE: Final = {"crypto_invoices", "crypto_invoice_cfo_sync", "crypto_cfo_sync_log", "transactions"}


def run(plan: Plan) -> Item:
    """Each command as its user runs it; the monitor's queries alone too, and whether they read whole tables."""
    count, letters = plan.size(1_000_000, 20_000), plan.size(100_000, 2_000)
    item = Item("tools", "Operators' tools", {"invoices": count, "pending": _PENDING, "dead letters": letters})
    with plan.bed.scene(booked(plan.bed, count)) as scene:
        _time(item, "cfo-sync reconcile", plan.rounds, partial(_reconcile, scene, count))
        _time(item, "cfo-sync pending", plan.rounds, lambda: _command(scene, ["pending", "--json"], {1}))
        _queries(item, plan, scene)
        _metrics(item, plan, scene)
    with plan.bed.scene(plan.bed.template(letters, amount="NULL")) as scene:
        _dead_letters(item, plan, scene, letters)
    return item


def booked(bed: Bed, count: int) -> str:
    """A database in which all but a hundred invoices are booked."""
    name = f"template_booked_{count}"
    bed.copy(bed.template(count, status="complete"), name)
    dsn = bed.stack.postgres.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE crypto_invoices SET status = 'paid' WHERE id = 1")
        environment = bed.stack.environment(name) | {"CFO_SYNC_METRICS_PORT": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "consumer", "sync", "1"], env=merged(environment), capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        connection.execute(_BOOK.format(last=count - _PENDING).encode())
    with bed.superuser(name) as connection:
        connection.execute("VACUUM ANALYZE")
    return name


def _time(item: Item, name: str, rounds: int, action: Callable[[], float]) -> Figure:
    action()  # once for the caches
    figure = Figure(name, "s", tuple(action() for _ in range(rounds)))
    item.figures.append(figure)
    say(f"  {name:<44} {figure.median:>10.3f} s")
    return figure


def _command(scene: Scene, arguments: Sequence[str], codes: set[int], output: Path = Path(os.devnull)) -> float:
    began = time.monotonic()
    with output.open("wb") as stream:
        command = [sys.executable, "-m", "consumer", *arguments]
        done = subprocess.run(
            command, env=merged(scene.environment), stdout=stream, stderr=subprocess.PIPE, check=False
        )
    took = time.monotonic() - began
    if done.returncode not in codes:
        raise RuntimeError(f"cfo-sync {' '.join(arguments)} ended with {done.returncode}: {done.stderr.decode()}")
    return took


def _reconcile(scene: Scene, count: int) -> float:
    """All of it must have been compared, and only what is pending differ."""
    report = scene.folder / "reconciliation.json"
    took = _command(scene, ["reconcile", "--json"], {0, 1}, report)
    found = json.loads(report.read_text())["summary"]
    if (found["invoices"], found["differences"] + found["in_flight"]) != (count, _PENDING):
        raise RuntimeError(f"the reconciliation found {found['counts']} among {found['invoices']} invoices")
    return took


def _queries(item: Item, plan: Plan, scene: Scene) -> None:
    queries: dict[str, Callable[[psycopg.Connection], Any]] = {
        "pending list": lambda c: status_store.read_pending(c, after=0, limit=100),
        "pending count": status_store.count_pending,
        "monitor, waiting": monitor_store.read_waiting,
        "monitor, history": monitor_store.read_history,
        "sweep": lambda c: store.find_unbooked(c, after=0, grace=timedelta(0), delays=[timedelta(1)] * 3, limit=1000),
    }
    with CFOSyncService(scene.settings) as service:
        for name, query in queries.items():

            def once(query: Callable[[psycopg.Connection], Any] = query) -> float:
                began = time.monotonic()
                service.read(query)
                return time.monotonic() - began

            figure = _time(item, f"query: {name}", max(5, plan.rounds), once)
            item.verdicts.append(Verdict(f"query: {name}", figure.median * 1000, 50, "at most", "ms"))
    pending = (
        b"SELECT invoice_id FROM v_crypto_invoices_pending_sync WHERE invoice_id > 0 ORDER BY invoice_id LIMIT 100"
    )
    waiting = resources.files("consumer.sql").joinpath("monitor_pending.sql").read_bytes()
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        for name, statement in {"pending list": pending, "monitor, waiting": waiting}.items():
            [(plans,)] = connection.execute(b"EXPLAIN (FORMAT JSON) " + statement).fetchall()
            whole = sorted(_read_whole(plans[0]["Plan"]) & _LARGE)
            item.verdicts.append(Verdict(f"large tables read whole: {name}", len(whole), 0, "at most", ""))


def _read_whole(node: dict[str, Any]) -> set[str]:
    found = {node["Relation Name"]} if node["Node Type"] == "Seq Scan" else set()
    return found.union(*(_read_whole(each) for each in node.get("Plans", ())))


def _metrics(item: Item, plan: Plan, scene: Scene) -> None:
    port = choose_port()
    variables = {"CFO_SYNC_API_PORT": str(port), "CFO_SYNC_RECONCILE_INTERVAL": "1d"}
    program = Program(scene, ["-m", "consumer", "api"], {**scene.environment, **variables}, "api")

    def ask() -> float:
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            answer.read()
        return time.monotonic() - began

    def answers() -> bool:
        program.check()
        try:
            ask()
        except OSError:
            return False
        return True

    wait_until(answers, "the API")
    time.sleep(3)  # its first look at everything, the reconciliation of the start aside
    figure = _time(item, "GET /metrics", max(5, plan.rounds), ask)
    item.verdicts.append(Verdict("GET /metrics", figure.median * 1000, 50, "at most", "ms"))
    program.stop()


def _dead_letters(item: Item, plan: Plan, scene: Scene, count: int) -> None:
    """Invoices without an amount become dead letters by way of the product itself."""
    backlog = Backlog(scene)
    backlog.write(plan.events.paid.records(range(1, count + 1)))
    program = ConsumerProgram(scene, {"CFO_SYNC_LOG_LEVEL": "ERROR"})
    program.wait_ready()
    scene.wait_assigned(1, PARTITIONS)
    began = backlog.release()
    took = scene.wait_committed(backlog.ends, 1200) - began
    program.stop()
    item.figures.append(Figure("dead-lettered", "records/s", (count / took,)))
    say(f"  {'dead-lettered':<44} {count / took:>10,.0f} records/s")
    _time(item, "cfo-sync dlq list", min(plan.rounds, 3), lambda: _command(scene, ["dlq", "list"], {1}))
    took = _command(scene, ["dlq", "replay", "--yes", "--reason", "benchmark"], {0})
    item.figures.append(Figure("cfo-sync dlq replay --yes", "s", (took,)))
    say(f"  {'cfo-sync dlq replay --yes':<44} {took:>10.3f} s")
