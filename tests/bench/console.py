"""Console: how long each page takes, with a million invoices, ten thousand dead letters and a reconciliation."""

from __future__ import annotations

import time
import urllib.request
from http.cookiejar import CookieJar
from typing import Final
from urllib.parse import quote

import psycopg

from deploy.local.ports import choose_port
from tests.bench.backlog import Backlog
from tests.bench.bed import PARTITIONS, Scene, wait_until
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram, Program
from tests.bench.results import Figure, Item, Verdict, say
from tests.bench.tools import booked

_GOAL: Final = 200  # ms

# The last ones are not booked, and never can be.
_SPOIL: Final = """
WITH spoilt AS (
    UPDATE crypto_invoices SET status = 'paid', amount_usd = NULL WHERE id > {last} RETURNING id, invoice_number
),
gone AS (DELETE FROM crypto_invoice_cfo_sync s USING spoilt WHERE s.invoice_id = spoilt.id)
DELETE FROM transactions t USING spoilt WHERE t.identifier = spoilt.invoice_number
"""


def run(plan: Plan) -> Item:
    """Every page that only reads, as a browser asks for it, one after the other; the first overview is told alone."""
    count, letters = plan.size(1_000_000, 20_000), plan.size(10_000, 200)
    item = Item("console", "Pages of the console", {"invoices": count, "dead letters": letters})
    with plan.bed.scene(booked(plan.bed, count)) as scene:
        _fail(plan, scene, count, letters)
        browser = _Browser(scene)
        first = browser.ask("/")
        item.figures.append(Figure("the first overview after a start", "ms", (first,)))
        say(f"  {'the first overview after a start':<44} {first:>10.0f} ms")
        for name, path in _pages(count).items():
            browser.ask(path)
            figure = Figure(name, "ms", tuple(browser.ask(path) for _ in range(max(7, plan.rounds))))
            say(f"  {name:<44} {figure.median:>10.0f} ms")
            item.figures.append(figure)
            item.verdicts.append(Verdict(name, figure.median, _GOAL, "at most", "ms"))
    return item


def _fail(plan: Plan, scene: Scene, count: int, letters: int) -> None:
    """So many of the invoices become dead letters, by way of the product itself."""
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        connection.execute(_SPOIL.format(last=count - letters).encode())
        connection.execute("VACUUM ANALYZE crypto_invoices, crypto_invoice_cfo_sync, transactions")
    backlog = Backlog(scene)
    backlog.write(plan.events.paid.records(range(count - letters + 1, count + 1)))
    program = ConsumerProgram(scene, {"CFO_SYNC_LOG_LEVEL": "ERROR"})
    program.wait_ready()
    scene.wait_assigned(1, PARTITIONS)
    backlog.release()
    scene.wait_committed(backlog.ends)
    program.stop()


def _pages(count: int) -> dict[str, str]:
    page_on = quote(f'["{count // 2}",{count // 2}]')
    return {
        "overview": "/",
        "invoices, all": "/invoices",
        "invoices, in the middle of them": f"/invoices?after={page_on}",
        "invoices, all by number": "/invoices?order=number&descending=0",
        "invoices, synced": "/invoices?state=synced",
        "invoices, failed, by amount": "/invoices?state=failed&order=amount",
        "invoices, search by number": f"/invoices?search=BENCH-{count // 2}",
        "invoices, search that finds nothing": "/invoices?search=nobody",
        "one invoice, booked": "/invoices/2",
        "one invoice, failed": f"/invoices/{count}",
        "dead letters": "/dead-letters",
        "dead letters, by message": "/dead-letters?text=amount",
        "one dead letter": "/dead-letters/0/1",
        "preview of a replay of all": "/dead-letters/preview?act=replay&force=1",
        "reconciliation": "/reconciliation",
        "preview of a repair": "/reconciliation/repair",
        "mapping, with a try": "/mapping?client=Exos+Capital&period=October+2025",
    }


class _Browser:
    """`cfo-sync api` without tokens, and somebody who asks it."""

    def __init__(self, scene: Scene) -> None:
        port = choose_port()
        self._url = f"http://127.0.0.1:{port}"
        variables = {"CFO_SYNC_API_PORT": str(port), "CFO_SYNC_RECONCILE_INTERVAL": "1d"}
        program = Program(scene, ["-m", "consumer", "api"], {**scene.environment, **variables}, "api")
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._opener.addheaders = [("Accept", "text/html")]

        def is_ready() -> bool:
            program.check()
            try:
                self.ask("/healthz")
            except OSError:
                return False
            return bool(scene.value("SELECT count(*) FROM cfo_sync_reconciliations"))

        wait_until(is_ready, "the API and its first reconciliation", 300)

    def ask(self, path: str) -> float:
        """Milliseconds until the whole page is there. Raises OSError for a page that is an error."""
        began = time.monotonic()
        with self._opener.open(f"{self._url}{path}", timeout=30) as answer:
            answer.read()
        return (time.monotonic() - began) * 1000
