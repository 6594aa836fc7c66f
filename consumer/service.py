"""`CFOSyncService`: the only way an invoice is ever synced, alone or in a set.

Used by the worker, the sweep, the API and the command line, so that they all meet on the same row locks and follow the
same rules. Here is decided what an error means for a set: try again, bisect, or hold.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, assert_never

from psycopg import Connection

from consumer import ledger, mapping, sessions, settings, store
from consumer.bookkeeper import Bookkeeper, Bookkeeping
from consumer.databases import Broken, Databases
from consumer.faults import Fault, Outage, RecordFault, Transient
from consumer.outcomes import Booked, Faulted, NotPaid, Outcome, Settled
from consumer.retry import MAX_RETRIES, Breaker
from consumer.sessions import Verdict
from consumer.store import FaultRow, Partition

T = TypeVar("T")

_TRIES: Final = 3  # of a set that met somebody else (deadlock, unique key); then it is bisected
_LOSSES: Final = 3  # of the connection under the same set; then the set is suspect
_LOCK_PATIENCE: Final = 1.0  # seconds in which rows locked by others are asked for again


class _ConnectionBreaks(Transient):
    """The connection broke again and again under this set, and could be opened again each time."""


@dataclass(slots=True)
class _Run:
    """One call of `sync`: what is asked, and what is known so far."""

    attempts: Mapping[int, int]
    partitions: Sequence[Partition]
    keepalive: Callable[[], None]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    seen: dict[int, str] = field(default_factory=dict)
    suspects: dict[int, Fault] = field(default_factory=dict)
    has_booked: bool = False  # so the database works, and faults are their records' own


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
        self._bookkeeper = Bookkeeper(self._databases, self.rules)
        self._breaker = Breaker(configured.breaker_consecutive_faults)
        self._uniform, self._sleep, self._monotonic = uniform, sleep, monotonic
        self.transactions = 0
        """Transactions tried so far to book something."""

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._databases.forget()

    def __enter__(self) -> CFOSyncService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- sets ----------------------------------------------------------------------------------------------------------

    def sync(
        self,
        attempts: Mapping[int, int],
        *,
        partitions: Sequence[Partition] = (),
        keepalive: Callable[[], None] = lambda: None,
    ) -> dict[int, Outcome]:
        """Sync a set of invoices; `attempts` gives, by id, the retry count that each is recorded with once booked.

        Gives an outcome for every invoice. What is `Booked` or `Settled` is committed; a fault is not recorded
        anywhere, that is the caller's (`record_faults`). `partitions` are those that the records came from;
        `keepalive` is called between transactions. Raises `Outage` when nothing can be synced now: what committed
        before stays so, and the same set can be given again.
        """
        run = _Run(attempts, partitions, keepalive)
        waiting = sorted(attempts)
        if self._breaker.is_open:
            self._ask_single_records(run, waiting)
            waiting = [each for each in waiting if each not in run.outcomes]
        held = self._bisect(run, waiting)
        deadline = self._monotonic() + _LOCK_PATIENCE
        while held and self._monotonic() < deadline:
            self._sleep(0.05 + 0.1 * self._uniform())
            held = self._bisect(run, held)
        for invoice_id in held:
            locked = Transient("row-locked", f"the row of invoice {invoice_id} is locked by another session")
            run.outcomes[invoice_id] = Faulted(invoice_id, locked)
        return {
            invoice_id: replace(each, seen=run.seen.get(invoice_id)) if isinstance(each, Faulted) else each
            for invoice_id, each in run.outcomes.items()
        }

    def _bisect(self, run: _Run, ids: Sequence[int]) -> list[int]:
        """Try a set; when it fails, its halves, until each bad record stands alone. Gives the ids locked by others."""
        held: list[int] = []
        parts = [(list(ids), _TRIES)] if ids else []
        while parts:
            part, tries = parts.pop()
            run.keepalive()
            try:
                done = self._attempt(run, part, tries)
            except Fault as fault:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [(part[middle:], 1), (part[:middle], 1)]
                    continue
                self._blame(run, part[0], fault)
                if self._breaker.is_open and not run.has_booked:
                    self._ask_single_records(run, [each for rest, _ in parts for each in rest])
                    parts = [([each for each in rest if each not in run.outcomes], tries) for rest, tries in parts]
                    parts = [(rest, tries) for rest, tries in parts if rest]
            else:
                held += done.held
                self._take(run, done)
        self._judge_suspects(run)
        return held

    def _take(self, run: _Run, done: Bookkeeping) -> None:
        run.outcomes.update(done.outcomes)
        if any(isinstance(outcome, Booked) for outcome in done.outcomes.values()):
            run.has_booked = True
            self._breaker.succeeded()

    def _blame(self, run: _Run, invoice_id: int, fault: Fault) -> None:
        if isinstance(fault, _ConnectionBreaks):
            run.suspects[invoice_id] = fault
            if len(run.suspects) > 1:
                self._judge_suspects(run)
            return
        run.outcomes[invoice_id] = Faulted(invoice_id, fault)
        if fault.counts and not run.has_booked:
            self._breaker.failed()

    def _judge_suspects(self, run: _Run) -> None:
        """A record under which the connection breaks is to blame only if others get through."""
        if not run.suspects:
            return
        fault = next(iter(run.suspects.values()))
        if not run.has_booked:
            raise Outage("connection", f"the connection keeps breaking: {fault.message}", wants_another=True)
        for invoice_id, each in run.suspects.items():
            run.outcomes[invoice_id] = Faulted(invoice_id, each)
        run.suspects.clear()

    def _ask_single_records(self, run: _Run, ids: Sequence[int]) -> None:
        """The breaker is open: try records alone until one is booked, which closes it, or two have failed.

        In random order, so that a few poisonous records cannot hold the others for ever. Once one is booked, the
        others of this call are judged as records. Raises `Outage` while nothing in hand works.
        """
        failed: list[Fault] = []
        for invoice_id in sorted(ids, key=lambda _: self._uniform()):
            run.keepalive()
            try:
                self._take(run, self._attempt(run, [invoice_id], 1))
            except Fault as fault:
                run.outcomes[invoice_id] = Faulted(invoice_id, fault)
                if fault.counts:
                    failed.append(fault)
            if run.has_booked:
                return
            if len(failed) == 2:
                break
        faults = failed or [each.fault for each in run.outcomes.values() if isinstance(each, Faulted)]
        if faults:
            raise Outage("breaker", f"database faults in a row, the last one: {faults[-1]}", wants_another=True)

    def _attempt(self, run: _Run, ids: Sequence[int], tries: int) -> Bookkeeping:
        """One transaction, tried again where others were in the way or the connection broke."""
        losses = 0
        while True:
            self.transactions += 1
            try:
                return self._bookkeeper.book(run.attempts, ids, run.partitions, run.seen)
            except ledger.Raced as error:
                tries -= 1
                if tries <= 0:
                    raise ledger.refused() from error
            except Broken as broken:
                meaning = sessions.meaning_of(broken.error)
                if meaning.verdict is Verdict.OUTAGE:
                    self._databases.forget()
                    raise sessions.outage_of(broken.error, broken.database) from broken.error
                if meaning.verdict is Verdict.LOST:
                    self._databases.forget()
                    losses += 1
                    if losses >= _LOSSES:
                        message = sessions.fault_of(broken.error).message
                        raise _ConnectionBreaks("connection-breaks", message, counts=True) from broken.error
                elif meaning.again and tries > 1:
                    tries -= 1
                else:
                    raise sessions.fault_of(broken.error) from broken.error
            self._sleep(0.02 + 0.2 * self._uniform())

    def record_faults(self, rows: Sequence[FaultRow]) -> None:
        """Mirror failed attempts in the mapping, and log them. Raises `Outage` when that cannot be done now."""
        if rows:
            self._statement(lambda connection: store.record_faults(connection, rows))

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query of `store` on the invoice database. Raises `Outage`."""
        return self._statement(query)

    def verify(self) -> None:
        """Touch every table that a sync needs. Raises `Outage`, saying what is missing, when one cannot be used."""
        self.read(store.touch)
        with self._databases.invoices() as invoices, self._databases.cfo(invoices) as cfo:
            self._databases.ledger(cfo)

    # -- one invoice, for people ---------------------------------------------------------------------------------------

    def sync_invoice_to_cfo(self, invoice_id: int, force_retry: bool = False) -> dict[str, Any]:
        """The guide's manual sync. Idempotent: a second call gives the same transaction.

        Gives the guide's fields (`success`, `invoice_id`, `cfo_transaction_id`, `sync_status`, `sync_timestamp`), and
        `error` and `error_code` when `success` is false. `force_retry` tries again an invoice whose retries are used
        up, and starts its count anew. Raises `Outage` when a database cannot be used.
        """
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
        return self._statement(lambda connection: store.read_status(connection, invoice_id))

    def pending(self, *, after: int = 0, limit: int = 100) -> tuple[int, list[dict[str, Any]]]:
        """How many invoices wait in all, and those with an id above `after`, in id order. Raises `Outage`."""
        return self._statement(
            lambda connection: (
                store.count_pending(connection),
                store.read_pending(connection, after=after, limit=limit),
            )
        )

    def _statement(self, run: Callable[[Connection], T]) -> T:
        """Run something in a transaction of its own, again when others were in the way or the connection broke."""
        tries = _TRIES
        while True:
            try:
                with self._databases.invoices() as connection:
                    return run(connection)
            except Broken as broken:
                tries -= 1
                meaning = sessions.meaning_of(broken.error)
                if meaning.verdict is Verdict.LOST:
                    self._databases.forget()
                if tries <= 0 or not (meaning.verdict is Verdict.LOST or meaning.again):
                    raise sessions.outage_of(broken.error, broken.database) from broken.error
            self._sleep(0.02 + 0.2 * self._uniform())


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


def utc_text(moment: datetime | None) -> str | None:
    """A time as the guide prints it: ISO 8601, UTC, whole seconds, `Z`."""
    if moment is None:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
