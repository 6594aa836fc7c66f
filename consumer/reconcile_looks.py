"""The second look: what the streams found is looked at again, as it stands then, before it is called a difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from psycopg import Connection

from consumer import reconcile_store
from consumer.comparison import Verdict, assign
from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.differences import Difference, Summary
from consumer.reconcile_places import Places
from consumer.settings import Settings

CHUNK: Final = 1000
"""Suspects that are looked at together."""

_LOOKS: Final = 4
_PAUSE: Final = 0.5  # seconds between two looks at what seems to be changing


class Suspects:
    """Collects what the streams found, and has it looked at again in chunks."""

    def __init__(self, looker: Looker, summary: Summary, on_difference: Callable[[Difference], None]) -> None:
        self._looker = looker
        self._summary = summary
        self._on_difference = on_difference
        self._ids: set[str] = set()
        self._keys: set[str] = set()
        self._row_keys: set[str] = set()

    def add(self, owed: Iterable[InvoiceRow], standing: Iterable[TransactionRow]) -> None:
        """A group of one key stays together."""
        self._ids.update(each.id for each in owed)
        for row in standing:
            self._row_keys.add(row.key)
            if row.identifier is not None:
                self._keys.add(row.identifier)
        if len(self._ids) + len(self._row_keys) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Look at what is there, and report what still differs."""
        if not self._ids and not self._row_keys:
            return
        verdicts = self._looker.judge(self._ids, self._keys, self._row_keys)
        self._ids, self._keys, self._row_keys = set(), set(), set()
        accepted = self._looker.acknowledged(verdicts)
        self._summary.in_flight += sum(verdict.is_in_flight for verdict in verdicts)
        found = [each for verdict in verdicts for each in verdict.differences]
        for each in sorted(found, key=lambda each: (each.identifier is None, each.identifier or "")):
            if (each.identifier, each.fingerprint) in accepted:
                self._summary.acknowledged += 1
            else:
                self._summary.add(each)
                self._on_difference(each)


class Looker:
    """Looks at invoices and transactions as they stand now."""

    def __init__(self, settings: Settings, places: Places) -> None:
        self._grace = settings.sweep_grace
        self._places = places
        self._queries = places.queries
        self._comparison = places.queries.comparison

    def judge(self, ids: set[str], keys: set[str], row_keys: set[str]) -> list[Verdict]:
        """A verdict for each of these invoices, each transaction with one of `row_keys` that is ours and has no
        invoice, and each invoice that such a transaction belongs to.

        A booking into another database commits there first and is recorded then; and an invoice may change while we
        look. So what changed between two readings, or looks like the moment between the two commits, is looked at
        again after a while, up to four times. What never holds still is in flight.
        """
        verdicts: list[Verdict] = []
        for turn in range(_LOOKS):
            last = turn == _LOOKS - 1
            again: set[str] = set()
            for invoice_id, verdict in self._look(ids, keys, row_keys):
                if verdict is None or (verdict.may_pass and not last):
                    if not last:
                        again.add(invoice_id)
                    else:
                        verdicts.append(Verdict(is_in_flight=True))
                else:
                    verdicts.append(verdict)
            if not again:
                break
            ids, keys, row_keys = again, set(), set()
            time.sleep(_PAUSE)
        return verdicts

    def acknowledged(self, verdicts: Iterable[Verdict]) -> set[tuple[str, str]]:
        """What of this somebody has accepted."""
        identifiers = {
            each.identifier
            for verdict in verdicts
            for each in verdict.differences
            if each.fingerprint is not None and each.identifier is not None
        }
        if not identifiers:
            return set()
        with self._places.fresh() as (invoices, _):
            return reconcile_store.read_acknowledged(invoices, identifiers)

    def _look(self, ids: set[str], keys: set[str], row_keys: set[str]) -> Iterator[tuple[str, Verdict | None]]:
        """Verdicts with the id of their invoice ("" without one); None for an invoice that changed meanwhile."""
        before, rows, after = self._read(ids, keys, row_keys)
        rows_of, owners = assign(self._comparison, list(after.values()), rows)
        wanted = set(ids)
        for row in rows:
            if row.key in row_keys:
                owner = owners.get(row.key)
                if owner is None:
                    if self._comparison.is_ours(row):
                        yield "", Verdict((self._comparison.orphan(row),))
                elif owner.key == row.identifier:  # else it is a suspect of its own
                    wanted.add(owner.id)
        for invoice_id in sorted(wanted, key=int):
            invoice = after.get(invoice_id)
            if before.get(invoice_id) != invoice:
                yield invoice_id, None
            elif invoice is not None:
                yield invoice_id, self._comparison.judge(invoice, rows_of[invoice_id])

    def _read(
        self, ids: set[str], keys: set[str], row_keys: set[str]
    ) -> tuple[dict[str, InvoiceRow], list[TransactionRow], dict[str, InvoiceRow]]:
        """The invoices, then the transactions, then the invoices again with those that the transactions lead to.

        In two databases the order matters: a transaction that is missing, but whose booking was recorded before we
        looked, is really missing.
        """
        with self._places.fresh() as (invoices, ledger):
            before = self._invoices(invoices, ids, keys, row_keys)
            bearing = keys | {each.key for each in before if each.key is not None}
            bearing |= {each.identifier for each in before if each.identifier is not None}
            named = row_keys | {each.transaction_id for each in before if each.transaction_id is not None}
            rows = self._queries.look(ledger, bearing, named)
        with self._places.fresh() as (invoices, _):
            after = self._invoices(
                invoices,
                {each.id for each in before},
                {row.identifier for row in rows if row.identifier is not None},
                {row.key for row in rows},
            )
        return {each.id: each for each in before}, rows, {each.id: each for each in after}

    def _invoices(self, connection: Connection, ids: set[str], keys: set[str], rows: set[str]) -> list[InvoiceRow]:
        return reconcile_store.look_at_invoices(connection, self._grace, ids=ids, keys=keys, transactions=rows)
