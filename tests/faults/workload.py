"""The invoice system under load: lives of invoices, at a steady rate, whatever breaks around it.

It writes to PostgreSQL directly. A transaction whose fate is unknown is tried again: every step may be repeated. What
was really committed, and when, stands in `campaign.history`.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, TypeVar

import psycopg

Life: TypeAlias = Literal[
    "ordinary", "paid at once", "touched", "corrected", "reopened", "unpaid", "cancelled", "deleted", "paid, deleted",
    "renumbered", "bad", "late-client", "late-payment", "locked", "foreign", "slow",
]  # fmt: skip
Step: TypeAlias = Literal[
    "pay", "pay without time", "touch", "correct", "reopen", "unpay", "cancel", "delete", "renumber", "late client",
    "late payment", "enter by hand",
]  # fmt: skip

_LIVES: Final[dict[Life, int]] = {
    "ordinary": 700, "paid at once": 60, "touched": 70, "corrected": 30, "reopened": 25, "unpaid": 12, "cancelled": 30,
    "deleted": 15, "paid, deleted": 8, "renumbered": 8, "bad": 4, "late-client": 3, "late-payment": 3, "locked": 3,
    "foreign": 8, "slow": 20,
}  # fmt: skip
_CLIENTS: Final = (
    "Alps Blockchain", "Paraguay Mining Co", "Brazil Digital", "O'Hara & \"Sons\"; --", "Bücher\u202e GmbH",
    "Exos Capital",
)  # fmt: skip
_PERIODS: Final = ("October 2025 mining", "hosting 2025-11", "", "Energy bill Q4", None)

_SQL: Final[dict[Step, str]] = {
    "pay": (
        "WITH due AS (SELECT id, amount_usd FROM crypto_invoices WHERE id = ANY(%(ids)s) AND status = 'sent'),"
        " paid AS (INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received,"
        " currency, status, confirmations, confirmed_at) SELECT id, 'hash-' || id || '-' || clock_timestamp(),"
        " amount_usd, 'USDT', 'confirmed', 20, now() AT TIME ZONE 'UTC' FROM due)"
        " UPDATE crypto_invoices i SET status = 'paid', paid_at = now() AT TIME ZONE 'UTC',"
        " updated_at = now() AT TIME ZONE 'UTC' FROM due WHERE i.id = due.id"
    ),
    "pay without time": "UPDATE crypto_invoices SET status = 'paid' WHERE id = ANY(%(ids)s) AND status = 'sent'",
    "touch": "UPDATE crypto_invoices SET updated_at = clock_timestamp() AT TIME ZONE 'UTC' WHERE id = ANY(%(ids)s)",
    "correct": "UPDATE crypto_invoices SET amount_usd = amount_usd + 0.01 WHERE id = ANY(%(ids)s) AND status = 'sent'",
    "reopen": (
        "UPDATE crypto_invoices SET status = 'paid', amount_usd = amount_usd + 1.11"
        " WHERE id = ANY(%(ids)s) AND status IN ('paid', 'complete')"
    ),
    "unpay": "UPDATE crypto_invoices SET status = 'sent' WHERE id = ANY(%(ids)s) AND status = 'paid'",
    "cancel": "UPDATE crypto_invoices SET status = 'cancelled' WHERE id = ANY(%(ids)s) AND status = 'sent'",
    "delete": "DELETE FROM crypto_invoices WHERE id = ANY(%(ids)s)",
    "renumber": (
        "UPDATE crypto_invoices SET invoice_number = 'R-' || invoice_number"
        " WHERE id = ANY(%(ids)s) AND invoice_number NOT LIKE 'R-%%'"
    ),
    "late client": (
        "INSERT INTO crypto_clients (id, name) SELECT client_id, 'Late client ' || client_id FROM crypto_invoices"
        " WHERE id = ANY(%(ids)s) ON CONFLICT DO NOTHING"
    ),
    "late payment": (
        "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency, status,"
        " confirmations, confirmed_at) SELECT id, 'late-' || id, amount_usd, 'USDT', 'confirmed', 20,"
        " now() AT TIME ZONE 'UTC' FROM crypto_invoices WHERE id = ANY(%(ids)s) ON CONFLICT DO NOTHING"
    ),
    "enter by hand": (
        "INSERT INTO transactions (date, description, amount, classified_entity, identifier, source_file, currency)"
        " SELECT now() AT TIME ZONE 'UTC', 'by hand', amount, 'By hand', number, 'statement.csv', 'USD'"
        " FROM unnest(%(numbers)s::text[], %(amounts)s::numeric[]) AS t (number, amount)"
        " WHERE NOT EXISTS (SELECT FROM transactions WHERE identifier = number)"
    ),
}  # fmt: skip


@dataclass(slots=True)
class Invoice:
    """A life that goes on. `plan` is what comes, each with the seconds to wait before."""

    number: str
    life: Life
    client_id: int
    amount: Decimal | None
    period: str | None
    plan: list[tuple[Step, float]]
    id: int = 0


class Workload:
    """Starts `rate` lives a second in a thread until told to stop; then all lives are lived to their end."""

    def __init__(self, invoice_dsn: str, cfo_dsn: str, seed: int, rate: float) -> None:
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._dsn, self._seed, self._rate = invoice_dsn, seed, rate
        self._stop = threading.Event()
        self._all_are_born = False
        self._threads: list[threading.Thread] = []
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._late_clients = itertools.count(10_000_000 + seed % 1000 * 100_000)
        self._due: list[tuple[float, int, Invoice]] = []
        self._order = itertools.count()
        self._slow: list[Invoice] = []
        self._to_lock: list[int] = []
        self._lock = threading.Lock()
        self._invoices, self._cfo = _Reconnecting(invoice_dsn), _Reconnecting(cfo_dsn)

    def start(self) -> None:
        """Begin."""
        for target in (self._live, self._be_slow, self._hold_locks):
            thread = threading.Thread(target=self._guarded, args=(target,), name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout: float = 120) -> None:
        """No new lives; wait until all are lived. Raises what went wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout)
            if thread.is_alive():
                raise TimeoutError(f"the workload's thread {thread.name} does not end")
        self._invoices.close()
        self._cfo.close()
        if self.error is not None:
            raise self.error

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # told by `stop`
            self.error = error

    # -- the lives -----------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        clients = self._make_clients()
        began = time.monotonic()
        started = 0
        while True:
            now = time.monotonic()
            if self._stop.is_set():
                self._all_are_born = True
            else:
                wanted = min(int((now - began) * self._rate) - started, 1000)
                if wanted > 0:
                    self._begin([self._draw(clients) for _ in range(wanted)])
                    started += wanted
            with self._lock:
                due = []
                while self._due and self._due[0][0] <= now:
                    due.append(heapq.heappop(self._due)[2])
                is_over = self._stop.is_set() and not self._due and not self._slow
            self._step(due)
            if is_over and not due:
                return
            time.sleep(max(0.0, 0.1 - (time.monotonic() - now)))

    def _make_clients(self) -> list[int]:
        def make(connection: psycopg.Connection) -> list[int]:
            query = (
                "INSERT INTO crypto_clients (name) VALUES (%s)"
                " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id"
            )
            return [connection.execute(query, [name]).fetchone()[0] for name in _CLIENTS]  # type: ignore[index]

        return self._invoices.retry(make)

    def _draw(self, clients: Sequence[int]) -> Invoice:
        chance = self._random
        [life] = chance.choices(list(_LIVES), list(_LIVES.values()))
        client_id = next(self._late_clients) if life == "late-client" else chance.choice(clients)
        amount: Decimal | None = Decimal(chance.randint(1, 9_999_999)) / 100
        if life == "bad":
            amount = chance.choice((None, Decimal(0), Decimal("-5.00")))
        soon, later = 0.2 + 1.5 * chance.random(), 2 + 4 * chance.random()
        plans: dict[Life, list[tuple[Step, float]]] = {
            "paid at once": [],
            "touched": [("touch", 0.3), ("pay", soon), ("touch", 0.1), ("touch", later)],
            "corrected": [("correct", 0.5), ("pay", soon)],
            "reopened": [("pay", soon), ("reopen", later)],
            "unpaid": [("pay", soon), ("unpay", 0.5 * chance.random())],
            "cancelled": [("cancel", soon)],
            "deleted": [("delete", soon)],
            "paid, deleted": [("pay", soon), ("delete", chance.random())],
            "renumbered": [("pay", soon), ("renumber", later * chance.random())],
            "late-client": [("pay", soon), ("late client", later)],
            "late-payment": [("pay without time", soon), ("late payment", later)],
            "foreign": [("enter by hand", 0.1), ("pay", soon)],
            "slow": [],
        }
        plan = plans.get(life, [("pay", soon)])
        return Invoice(
            f"F{self._seed}-{next(self._numbers):07}", life, client_id, amount, chance.choice(_PERIODS), plan
        )

    def _begin(self, invoices: Sequence[Invoice]) -> None:
        def insert(connection: psycopg.Connection) -> dict[str, int]:
            rows = [
                (
                    each.number,
                    each.client_id,
                    "paid" if each.life == "paid at once" else "sent",
                    each.amount,
                    each.period,
                )
                for each in invoices
            ]
            with connection.transaction():
                connection.execute(
                    "INSERT INTO crypto_invoices (invoice_number, client_id, status, amount_usd, crypto_currency,"
                    " billing_period, paid_at) SELECT number, client, status, amount, 'USDT', period,"
                    " CASE status WHEN 'paid' THEN now() AT TIME ZONE 'UTC' END"
                    " FROM unnest(%s::text[], %s::int[], %s::text[], %s::numeric[], %s::text[])"
                    " AS t (number, client, status, amount, period) ON CONFLICT DO NOTHING",
                    [list(column) for column in zip(*rows, strict=True)],
                )
                found: dict[str, int] = dict(
                    connection.execute(
                        "SELECT invoice_number, id FROM crypto_invoices WHERE invoice_number = ANY(%s)",
                        [[each.number for each in invoices]],
                    ).fetchall()
                )
                expected = [each for each in invoices if each.life in _EXPECTED]
                connection.execute(
                    "INSERT INTO campaign.expected (invoice_id, kind) SELECT * FROM unnest(%s::int[], %s::text[])"
                    " ON CONFLICT DO NOTHING",
                    [[found[each.number] for each in expected], [each.life for each in expected]],
                )
            return found

        ids = self._invoices.retry(insert)
        for each in invoices:
            each.id = ids[each.number]
            self.counts[each.life] += 1
            self.counts["invoices"] += 1
            if each.life == "slow":
                with self._lock:
                    self._slow.append(each)
            else:
                self._schedule(each)

    def _schedule(self, invoice: Invoice) -> None:
        if invoice.plan:
            with self._lock:
                heapq.heappush(self._due, (time.monotonic() + invoice.plan[0][1], next(self._order), invoice))

    def _step(self, due: Sequence[Invoice]) -> None:
        """What is due, in one transaction for each kind of step: several invoices at once."""
        by_step: dict[Step, list[Invoice]] = {}
        for invoice in due:
            by_step.setdefault(invoice.plan.pop(0)[0], []).append(invoice)
        for step, invoices in by_step.items():
            parameters: dict[str, Any] = {
                "ids": sorted(each.id for each in invoices),
                "numbers": [each.number for each in invoices],
                "amounts": [each.amount for each in invoices],
            }
            database = self._cfo if step == "enter by hand" else self._invoices
            database.execute(_SQL[step], parameters)
            self.counts[f"step: {step}"] += len(invoices)
            with self._lock:
                self._to_lock += [each.id for each in invoices if each.life == "locked"]
            for each in invoices:
                self._schedule(each)

    # -- long transactions and held rows -------------------------------------------------------------------------------

    def _be_slow(self) -> None:
        """Three transactions at a time that interleave: begun in one order, committed in another, seconds later."""
        chance = random.Random(self._seed + 1)
        while self._slow or not self._all_are_born:
            with self._lock:
                taken, self._slow = self._slow[:60], self._slow[60:]
            if not taken:
                time.sleep(0.2)
                continue
            parts = [taken[number::3] for number in range(3)]
            with suppress(psycopg.Error), ExitStack() as opened:
                connections = [opened.enter_context(closing(psycopg.connect(self._dsn))) for _ in parts]
                for part, connection in zip(parts, connections, strict=True):
                    connection.execute(_SQL["pay"], {"ids": sorted(each.id for each in part)})
                    self._stop.wait(0.2)
                for index in chance.sample(range(3), 3):
                    self._stop.wait(chance.uniform(0.1, 3))
                    if chance.random() < 0.2:
                        connections[index].rollback()
                        self.counts["rolled back transactions"] += 1
                    else:
                        connections[index].commit()
                        self.counts["long transactions"] += 1
                        parts[index] = []
            with self._lock:
                self._slow += [each for part in parts for each in part]

    def _hold_locks(self) -> None:
        """Hold the rows of paid invoices for some seconds, as a person with an open form does."""
        chance = random.Random(self._seed + 2)
        while not self._stop.is_set():
            with self._lock:
                taken, self._to_lock = self._to_lock, []
            if taken:
                with suppress(psycopg.Error), psycopg.connect(self._dsn) as connection:
                    connection.execute("SELECT FROM crypto_invoices WHERE id = ANY(%s) FOR UPDATE", [taken])
                    self.counts["held rows"] += len(taken)
                    self._stop.wait(chance.uniform(0.5, 4))
            self._stop.wait(0.02)


_EXPECTED: Final = ("bad", "late-client", "late-payment", "locked", "foreign")


_T = TypeVar("_T")
# Servers that go and come, and columns that do: also a prepared statement that does not know the new one.
_PASSING: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.FeatureNotSupported,
)


class _Reconnecting:
    """A connection that is opened again for as long as it takes."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection | None = None

    def retry(self, work: Callable[[psycopg.Connection], _T]) -> _T:
        """Do it, on a new connection again when the old one broke. It may have been done already."""
        while True:
            try:
                if self._connection is None:
                    options = "-c TimeZone=UTC -c statement_timeout=60s"
                    self._connection = psycopg.connect(
                        self._dsn, autocommit=True, application_name="invoices", options=options, connect_timeout=10
                    )
                return work(self._connection)
            except _PASSING:
                self.close()
                time.sleep(0.2)

    def execute(self, query: str, parameters: dict[str, Any]) -> None:
        """Run a statement of this module, as `retry` does."""
        self.retry(lambda connection: connection.execute(query.encode(), parameters))

    def close(self) -> None:
        """Close it; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
