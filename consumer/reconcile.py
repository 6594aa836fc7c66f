"""Reconciliation: proves that every paid invoice stands in the ledger once, and nothing else of ours stands there.

Both sides are streamed in the order of their key and merged, in constant memory. The streams only find suspects: each
is looked at again, as it stands then, before it is called a difference, because traffic goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from psycopg import Connection

from consumer import reconcile_store
from consumer.comparison import Comparison
from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.differences import KINDS, NO_CLIENT, NO_INVOICE, Difference, Kind, Sides, Summary
from consumer.facts import moment_of, month_of
from consumer.mapping import Mapping
from consumer.reconcile_looks import CHUNK, Looker, Suspects
from consumer.reconcile_places import APPLICATION, guard, open_places
from consumer.reconcile_repair import Repaired, repair
from consumer.service import CFOSyncService
from consumer.sessions import Session
from consumer.settings import Settings

__all__ = [
    "KINDS", "Difference", "Kind", "Repaired", "Summary", "acknowledge", "last_run", "look", "reconcile",
    "record_run", "repair", "run_now", "run_scheduled",
]  # fmt: skip

_WIDEST: Final = 100  # rows of one key that are held in memory
_STEP: Final = 10_000  # invoices between two calls of `progress`

OnDifference = Callable[[Difference], None]
Progress = Callable[[int, int | None], None]


def reconcile(
    settings: Settings,
    rules: Mapping,
    *,
    since: datetime | None = None,
    on_difference: OnDifference = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Summary:
    """Compare all invoices with the whole ledger, or what either side dates `since` then.

    `on_difference` gets each difference once, acknowledged ones excepted; `progress` the invoices done and roughly how
    many there are, from time to time. Memory does not grow with either side. Raises `Outage`.
    """
    summary = Summary(datetime.now(UTC), since=since)
    with open_places(settings, rules) as places, places.snapshots() as (invoices, ledger):
        comparison = places.queries.comparison
        summary.not_compared = comparison.not_compared
        with guard(places.invoices_name):
            total = reconcile_store.estimate_invoices(invoices)
        progress(0, total)
        suspects = Suspects(Looker(settings, places), summary, on_difference)
        tally = _Tally(summary, comparison, since)
        done = 0
        with places.streams(invoices, ledger, since) as streams:
            for owed, standing in _merge(*streams):
                tally.add(owed, standing)
                if not _is_plain(comparison, owed, standing):
                    suspects.add(owed, standing)
                before, done = done, done + len(owed)
                if before // _STEP != done // _STEP:
                    progress(done, total)
        suspects.flush()
        progress(done, done)
    summary.finished_at = datetime.now(UTC)
    return summary


def look(settings: Settings, rules: Mapping, invoice_ids: Collection[int]) -> list[Difference]:
    """What differs about these invoices now, acknowledged or not. Raises `Outage`."""
    found: list[Difference] = []
    with open_places(settings, rules) as places:
        looker = Looker(settings, places)
        ids = [str(each) for each in invoice_ids]
        for start in range(0, len(ids), CHUNK):
            for verdict in looker.judge(set(ids[start : start + CHUNK]), set(), set()):
                found += verdict.differences
    return found


def acknowledge(settings: Settings, rules: Mapping, invoice_id: int, *, reason: str, by: str) -> list[Difference]:
    """Accept, exactly as it is now, what differs about an invoice and no repair can mend; gives what was accepted.

    When one of the values changes, it is a difference again. Raises `Outage`.
    """
    accepted = [each for each in look(settings, rules, [invoice_id]) if each.fingerprint is not None]
    if accepted:
        with CFOSyncService(settings, rules=rules) as service:
            service.read(lambda connection: reconcile_store.acknowledge(connection, accepted, reason=reason, by=by))
    return accepted


# -- runs on record ----------------------------------------------------------------------------------------------------


def record_run(
    connection: Connection, summary: Summary, differences: Sequence[Difference], *, requested_by: str
) -> None:
    """Keep a finished run with its first 1,000 differences; the last 100 runs stay. Raises psycopg's errors."""
    reconcile_store.insert_run(connection, summary, differences, requested_by)


def last_run(connection: Connection) -> dict[str, Any] | None:
    """The last run over the whole ledger, JSON-ready; None when there was none. Raises psycopg's errors.

    Has started_at, finished_at, requested_by, since, summary (`Summary.as_dict`) and the first differences.
    """
    return reconcile_store.read_last_run(connection)


def run_scheduled(settings: Settings, rules: Mapping) -> Summary | None:
    """Reconcile and keep the run, unless somebody else does this moment or one younger than `reconcile_interval` is on
    record: then None. Raises `Outage`."""
    return _run_alone(settings, rules, by="schedule", only_when_due=True)


def run_now(settings: Settings, rules: Mapping, *, by: str) -> Summary | None:
    """Reconcile and keep the run, unless somebody else does this moment: then None. Raises `Outage`."""
    return _run_alone(settings, rules, by=by, only_when_due=False)


def _run_alone(settings: Settings, rules: Mapping, *, by: str, only_when_due: bool) -> Summary | None:
    dsn = settings.invoice_dsn.get_secret_value()
    session = Session(dsn, settings.invoice_database, application=APPLICATION)
    try:
        with guard(session.database), session.connection() as connection:
            if not (
                reconcile_store.try_lock_run(connection)
                and (not only_when_due or reconcile_store.is_run_due(connection, settings.reconcile_interval))
            ):
                return None
            first: list[Difference] = []
            summary = reconcile(settings, rules, on_difference=keep_first(first))
            with connection.transaction():
                record_run(connection, summary, first, requested_by=by)
        return summary
    finally:
        session.close()  # and with it the lock


def keep_first(kept: list[Difference], limit: int = 1000) -> OnDifference:
    """Put the first differences into a list, so that memory does not grow with them."""

    def on_difference(difference: Difference) -> None:
        if len(kept) < limit:
            kept.append(difference)

    return on_difference


# -- the streams -------------------------------------------------------------------------------------------------------

_Group = tuple[list[InvoiceRow], list[TransactionRow]]


def _merge(invoices: Iterator[InvoiceRow], rows: Iterator[TransactionRow]) -> Iterator[_Group]:
    """Both sides of each key; those without a key come last, each alone. A key that very many share comes in parts, and
    of the transactions of one invoice no more than the first."""
    invoice, row = next(invoices, None), next(rows, None)
    while invoice is not None or row is not None:
        left = None if invoice is None else invoice.key
        right = None if row is None else row.identifier
        if left is None and right is None:
            if invoice is not None:
                yield [invoice], []
                invoice = next(invoices, None)
            if row is not None:
                yield [], [row]
                row = next(rows, None)
            continue
        key = right if left is None else left if right is None or left < right else right
        owed: list[InvoiceRow] = []
        standing: list[TransactionRow] = []
        while invoice is not None and invoice.key == key:
            if len(owed) == _WIDEST:
                yield owed, []
                owed = []
            owed.append(invoice)
            invoice = next(invoices, None)
        while row is not None and row.identifier == key:
            if len(standing) < _WIDEST:
                standing.append(row)
            elif not owed:
                yield [], standing
                standing = [row]
            row = next(rows, None)
        yield owed, standing


def _is_plain(comparison: Comparison, owed: list[InvoiceRow], standing: list[TransactionRow]) -> bool:
    """Whether nothing about this key needs a second look."""
    if not owed:
        return not any(map(comparison.is_ours, standing))
    if len(owed) > 1:
        return False
    if not standing:
        return comparison.is_plain_alone(owed[0])
    return len(standing) == 1 and comparison.is_plain(owed[0], standing[0])


class _Tally:
    """Adds up what the streams bring."""

    def __init__(self, summary: Summary, comparison: Comparison, since: datetime | None) -> None:
        self._summary = summary
        self._comparison = comparison
        self._since = since

    def add(self, owed: list[InvoiceRow], standing: list[TransactionRow]) -> None:
        summary = self._summary
        for invoice in owed:
            if invoice.is_live:
                summary.invoices += 1
                usd = invoice.usd
                _side(summary.months, month_of(invoice.date)).invoices += usd
                _side(summary.clients, invoice.client or NO_CLIENT).invoices += usd
        for row in standing:
            owner = _owner(owed, row)
            if self._comparison.counts(owner, row) and self._is_since(row):
                summary.transactions += 1
                usd = row.usd
                client = NO_INVOICE if owner is None or owner.state is None else owner.client or NO_CLIENT
                _side(summary.months, month_of(row.date)).ledger += usd
                _side(summary.clients, client).ledger += usd

    def _is_since(self, row: TransactionRow) -> bool:
        if self._since is None:
            return True
        moment = moment_of(row.date)
        if moment is None or moment >= self._since:
            return True
        return row.date is not None and len(row.date) == len("2025-10-22") and moment.date() == self._since.date()


def _owner(owed: list[InvoiceRow], row: TransactionRow) -> InvoiceRow | None:
    if len(owed) <= 1:
        return owed[0] if owed else None
    return next((each for each in owed if each.transaction_id == row.key), owed[0])


def _side(sides: dict[str, Sides], name: str) -> Sides:
    found = sides.get(name)
    if found is None:
        found = sides[name] = Sides()
    return found
