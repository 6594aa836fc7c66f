"""`CFOSyncService`: the only way an invoice is ever synced, alone or in a set.

Used by the worker, the sweep, the API and the command line, so that they all meet on the same row locks and follow the
same rules.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, assert_never

from psycopg import Connection

from consumer import mapping, remap, sessions, settings, status_store, store
from consumer.bookkeeper import Bookkeeper
from consumer.databases import Broken, Databases
from consumer.faults import Fault, RecordFault
from consumer.halves import Halves
from consumer.outcomes import Booked, Faulted, NotPaid, Outcome, Settled
from consumer.retry import MAX_RETRIES, Breaker
from consumer.sessions import Verdict
from consumer.set_booking import TRIES, Chance, SetBooking
from consumer.store import FaultRow, Partition
from consumer.texts import utc_text

T = TypeVar("T")


class CFOSyncService:
    """Syncs invoices to the CFO's ledger. One per thread: it holds a connection to each database.

    Without arguments it reads its settings from the environment (`CFO_SYNC_*`) and raises `settings.SettingsError` or
    `mapping.MappingError` when they are wrong. Opens connections when it needs them.
    """

    def __init__(
        self,
        configured: settings.Settings | None = None,
        *,
        rules: mapping.Mapping | None = None,
        uniform: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        configured = configured or settings.load()
        self.rules = rules or mapping.load(configured.mapping_file)
        self._databases = Databases(configured, self.rules.target)
        self._chance = Chance(uniform, sleep, monotonic)
        first = Bookkeeper(self._databases, self.rules)
        self._halves = None
        if configured.apply_connections > 1:
            self._halves = Halves(first, Bookkeeper(Databases(configured, self.rules.target), self.rules))
        self._sets = SetBooking(
            first,
            self._halves,
            Breaker(configured.breaker_consecutive_faults),
            self._chance,
        )

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._databases.forget()
        if self._halves is not None:
            self._halves.close()

    def __enter__(self) -> CFOSyncService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def transactions(self) -> int:
        """Transactions tried so far to book something."""
        return self._sets.transactions

    # -- sets ----------------------------------------------------------------------------------------------------------

    def sync(
        self,
        attempts: Mapping[int, int],
        *,
        partitions: Sequence[Partition] = (),
        keepalive: Callable[[], None] = lambda: None,
        repair: bool = False,
    ) -> dict[int, Outcome]:
        """Sync a set of invoices; `attempts` gives, by id, the retry count that each is recorded with once booked.

        With `repair`, complete invoices too: a transaction that is gone is booked again, and the facts of one that is
        there are brought up to date.

        Gives an outcome for every invoice. What is `Booked` or `Settled` is committed; a fault is not recorded
        anywhere, that is the caller's (`record_faults`). `partitions` are those that the records came from;
        `keepalive` is called between transactions. Raises `Outage` when nothing can be synced now: what committed
        before stays so, and the same set can be given again.
        """
        return self._sets.book(attempts, partitions, keepalive, repair)

    def record_faults(self, rows: Sequence[FaultRow]) -> None:
        """Mirror failed attempts in the mapping, and log them. Raises `Outage` when that cannot be done now."""
        if rows:
            self._statement(lambda connection: store.record_faults(connection, rows))

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query of `store` on the invoice database. Raises `Outage`."""
        return self._statement(query)

    def verify(self) -> None:
        """Touch every table that a sync needs. Raises `Outage`, saying what is missing, when one cannot be used."""

        def touch(connection: Connection) -> None:
            store.touch(connection)
            with self._databases.cfo(connection) as cfo:
                self._databases.ledger(cfo)

        self.read(touch)

    # -- one invoice, for people ---------------------------------------------------------------------------------------

    def sync_invoice_to_cfo(self, invoice_id: int, force_retry: bool = False) -> dict[str, Any]:
        """The guide's manual sync. Idempotent: a second call gives the same transaction.

        Gives the guide's fields (`success`, `invoice_id`, `cfo_transaction_id`, `sync_status`, `sync_timestamp`), and
        `error` and `error_code` when `success` is false. `force_retry` tries again an invoice whose retries are used
        up, and starts its count anew. Raises `Outage` when a database cannot be used, `TypeError` for an id that is no
        number.
        """
        if not isinstance(invoice_id, int):
            raise TypeError(f"invoice_id is {invoice_id!r}, must be a whole number: crypto_invoices.id")
        before = self.status(invoice_id)
        if before is None:
            return _refusal(invoice_id, None, RecordFault("invoice-unknown", f"there is no invoice {invoice_id}"))
        failed = before["sync_status"] == "failed"
        retries = 0 if force_retry else int(before["retry_count"] or 0)
        if failed and retries >= MAX_RETRIES and str(before["invoice_status"]).casefold() == "paid":
            used_up = RecordFault("retries-used-up", f"{retries} retries failed; force it to try again")
            return _refusal(invoice_id, before, used_up)
        outcome = self.sync({invoice_id: retries})[invoice_id]
        match outcome:
            case Booked() | Settled():
                return _answer(invoice_id, self.status(invoice_id), success=True)
            case NotPaid(status=status):
                not_paid = RecordFault("not-paid", f"invoice {invoice_id} is {status!r}; only paid ones are booked")
                return _refusal(invoice_id, self.status(invoice_id), not_paid)
            case Faulted(fault=fault):
                # Nothing waits in a retry topic for this attempt, so the mapping never says `retry` for it.
                gives_up = isinstance(fault, RecordFault) or (failed and force_retry)
                self.record_faults([fault_row(outcome, "failed" if gives_up else None, retries)])
                return _refusal(invoice_id, self.status(invoice_id), fault)
            case _:
                assert_never(outcome)

    def status(self, invoice_id: int) -> dict[str, Any] | None:
        """The sync status of an invoice; None when there is no such invoice. Raises `Outage`."""
        return self._statement(lambda connection: status_store.read_status(connection, invoice_id))

    def remap(self, invoice_id: int, *, entity: str, business_unit: str | None = None, by: str) -> dict[str, Any]:
        """The guide's "Wrong entity mapped": correct the transaction and the mapping row together, and log who did.

        Gives `success`, `invoice_id`, `cfo_transaction_id` and what was `old` and is `new`; when `success` is false,
        `error` and `error_code` instead. Idempotent. Raises `Outage`.
        """
        wanted = remap.Correction(invoice_id, entity, business_unit, by)
        try:
            done = self._statement(
                lambda connection: remap.apply(self._databases, self.rules.target, connection, wanted), refuses=True
            )
        except RecordFault as fault:
            return {"success": False, "invoice_id": invoice_id, "error": fault.message, "error_code": fault.code}
        return {"success": True, "invoice_id": invoice_id, **done}

    def booked_transaction(self, invoice_id: int) -> dict[str, str | None] | None:
        """The transaction of a booked invoice as the ledger has it, by column; None when there is none, or no one.

        Raises `Outage`.
        """
        return self._statement(
            lambda connection: remap.show(self._databases, self.rules.target, connection, invoice_id)
        )

    def pending(self, *, after: int = 0, limit: int = 100) -> tuple[int, list[dict[str, Any]]]:
        """How many invoices wait in all, and those with an id above `after`, in id order. Raises `Outage`."""
        return self._statement(
            lambda connection: (
                status_store.count_pending(connection),
                status_store.read_pending(connection, after=after, limit=limit),
            )
        )

    def _statement(self, run: Callable[[Connection], T], *, refuses: bool = False) -> T:
        """Run something in a transaction of its own, again when others were in the way or the connection broke.

        With `refuses`, values that the database does not take are a `RecordFault`, and not an outage.
        """
        tries = TRIES
        while True:
            try:
                with self._databases.invoices() as connection:
                    return run(connection)
            except Broken as broken:
                tries -= 1
                meaning = sessions.meaning_of(broken.error)
                if meaning.verdict in (Verdict.LOST, Verdict.OUTAGE):
                    self._databases.forget()
                if refuses and meaning.verdict is Verdict.RECORD and not meaning.again:
                    raise sessions.fault_of(broken.error) from broken.error
                if tries <= 0 or not (meaning.verdict is Verdict.LOST or meaning.again):
                    raise sessions.outage_of(broken.error, broken.database) from broken.error
            self._chance.pause()


def fault_row(outcome: Faulted, sync_status: str | None, retry_count: int) -> FaultRow:
    """What to record of a failed attempt; a NULL byte in a message would be PostgreSQL's next error."""
    error = str(outcome.fault).replace("\0", "\N{REPLACEMENT CHARACTER}")[:1000]
    return FaultRow(outcome.invoice_id, sync_status, retry_count, error, outcome.seen)


def _answer(invoice_id: int, row: dict[str, Any] | None, *, success: bool) -> dict[str, Any]:
    row = row or {}
    return {
        "success": success,
        "invoice_id": invoice_id,
        "cfo_transaction_id": row.get("cfo_transaction_id"),
        "sync_status": row.get("sync_status"),
        "sync_timestamp": utc_text(row.get("sync_timestamp")),
    }


def _refusal(invoice_id: int, row: dict[str, Any] | None, fault: Fault) -> dict[str, Any]:
    return _answer(invoice_id, row, success=False) | {"error": fault.message, "error_code": fault.code}
