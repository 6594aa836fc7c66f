"""An invoice beside its transactions: what differs, decided from rows as they stand, without a database.

`is_plain` passes over the pairs in order, which are nearly all, at the cost of a few comparisons; `judge` says of the
others what differs. For each invoice one kind of `EXISTENCE` at most, the first that fits in that order, and then the
facts that differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.differences import Difference, Kind
from consumer.facts import FIELDS, Fact, Role, number
from consumer.faults import Fault
from consumer.plan import Invoice, amount_of, currency_of, paid_at_of
from consumer.templates import Template


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one invoice, or one transaction without an invoice."""

    differences: tuple[Difference, ...] = ()
    is_in_flight: bool = False
    may_pass: bool = False  # looks like a booking between its two commits: look again before it is believed


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a ledger is compared: its facts, and the mark of our rows (None if it has no column for one)."""

    facts: tuple[Fact, ...]
    marker: Template | None

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Facts that no column holds."""
        return tuple(role for role in FIELDS if role not in {fact.role for fact in self.facts})

    def is_ours(self, row: TransactionRow) -> bool:
        """Whether the row bears our mark. Never, where the ledger has no column for it: then only the mapping tells."""
        if self.marker is None or row.source is None:
            return False
        if row.marked is not None:
            return True
        return row.identifier is not None and row.source == self.marker.render({"identifier": row.identifier})

    def counts(self, invoice: InvoiceRow | None, row: TransactionRow) -> bool:
        """Whether the row is revenue that we answer for: ours, or named by a mapping row."""
        if self.is_ours(row):
            return True
        if invoice is None or not invoice.is_booked:
            return False
        return invoice.transaction_id is None or invoice.transaction_id == row.key

    # -- the stream: what need not be looked at again ------------------------------------------------------------------

    def is_plain(self, invoice: InvoiceRow, row: TransactionRow) -> bool:
        """Whether the one invoice with this key and the one transaction with it agree in everything."""
        return (
            invoice.state == "complete"
            and invoice.sync_status == "synced"
            and (invoice.transaction_id == row.key or (invoice.transaction_id is None and invoice.is_booked))
            and self._is_same(invoice, row)
            and (invoice.adopted is not None or self.marker is None or self.is_ours(row))
        )

    def _is_same(self, invoice: InvoiceRow, row: TransactionRow) -> bool:
        for fact in self.facts:
            if fact.role == "amount":
                expected, found = invoice.amount, row.amount
            elif fact.role == "date":
                expected, found = invoice.paid_at, row.date
            else:
                expected, found = invoice.currency, row.currency
            if not (fact.is_plain and expected == found and expected):
                break
        else:
            return True
        return not self._differing(invoice, row, by_day=invoice.adopted is not None)

    @staticmethod
    def is_plain_alone(invoice: InvoiceRow) -> bool:
        """Whether it is in order that the ledger has nothing with the key of this invoice."""
        if invoice.is_live or invoice.is_booked or invoice.sync_status == "synced":
            return False
        return invoice.identifier is None or invoice.identifier == invoice.key

    # -- a fresh look --------------------------------------------------------------------------------------------------

    def judge(self, invoice: InvoiceRow, rows: Sequence[TransactionRow]) -> Verdict:
        """What differs between an invoice and `rows`: those that its mapping names, or that bear its Identifier and
        belong to no other invoice."""
        named = next((row for row in rows if row.key == invoice.transaction_id), None)
        ours = [row for row in rows if self.is_ours(row)]
        if named is None and not ours and invoice.is_booked and invoice.transaction_id is None:
            named = rows[0] if rows else None  # a ledger whose key is no number, or without a source column
        kept = named or next(iter(ours or rows), None)
        if not invoice.is_live:
            return self._judge_unpaid(invoice, rows, named, ours)
        is_paid = invoice.state == "paid"
        # The sync is not busy any more with one that it gave up.
        young = is_paid and invoice.young is not None and invoice.sync_status != "failed"
        if kept is None:
            if young and not invoice.is_booked:
                return Verdict(is_in_flight=True)
            return Verdict((self._gone(invoice),))
        found: list[Difference] = []
        is_foreign = (
            kept not in ours if self.marker is not None else invoice.adopted is not None or not invoice.is_booked
        )
        if len(rows) > 1:
            found.append(self._duplicate(invoice, rows, kept))
        elif not invoice.is_booked and is_foreign and is_paid:
            detail = f"not booked; transaction {kept.key} by another hand bears its Identifier and would be adopted"
            found.append(_difference("missing-transaction", invoice, detail, usd=invoice.usd, repairable=True))
        elif invoice.transaction_id is not None and named is None:
            detail = f"the mapping names transaction {invoice.transaction_id}, which is gone; {kept.key} stands there"
            found.append(_difference("mapped-elsewhere", invoice, detail, kept, usd=kept.usd, repairable=True))
        elif kept.identifier != (invoice.identifier or invoice.key):
            detail = f"the mapping names transaction {kept.key}, which bears Identifier {kept.identifier!r}"
            found.append(_difference("mapped-elsewhere", invoice, detail, kept, usd=kept.usd))
        elif not invoice.is_booked or (not is_paid and invoice.sync_status != "synced"):
            detail = f"{invoice.state}, transaction {kept.key} stands in the ledger, and the mapping " + (
                "has no row" if invoice.sync_status is None else f"says {invoice.sync_status!r}"
            )
            found.append(_difference("complete-without-mapping", invoice, detail, kept, usd=kept.usd, repairable=True))
        if invoice.is_booked or not is_foreign:
            is_mendable = named is not None or len(ours) == 1
            found += self._facts(invoice, kept, adopted=invoice.adopted is not None or is_foreign, mendable=is_mendable)
        if young and len(rows) == 1:
            return Verdict(is_in_flight=bool(found))
        return Verdict(tuple(found), may_pass=is_paid and not is_foreign and bool(found))

    def orphan(self, row: TransactionRow, why: str = "no invoice has this Identifier") -> Difference:
        """A transaction of ours without an invoice."""
        return Difference(
            "orphan-transaction", None, None, row.identifier, None, None, None, row.key, row.usd, None,
            _facts_text([("amount", row.amount), ("date", row.date), ("currency", row.currency)]), why, False,
        )  # fmt: skip

    def _judge_unpaid(
        self, invoice: InvoiceRow, rows: Sequence[TransactionRow], named: TransactionRow | None,
        ours: Sequence[TransactionRow],
    ) -> Verdict:  # fmt: skip
        is_gone = invoice.state is None
        standing = [row for row in rows if row in ours or row is named]
        if is_gone and invoice.adopted is not None:
            standing = list(ours)  # another hand's transaction belongs to nobody again
        if standing:
            usd = sum((row.usd for row in standing), Decimal(0))
            if is_gone:
                detail = f"invoice {invoice.id} does not exist any more"
                return Verdict((_difference("orphan-transaction", invoice, detail, *standing, usd=usd),))
            detail = f"the invoice is {invoice.state!r}"
            return Verdict((_difference("invoice-not-paid", invoice, detail, *standing, usd=usd),))
        if invoice.sync_status == "synced" and not (is_gone and invoice.adopted is not None):
            status = "deleted" if is_gone else repr(invoice.state)
            detail = f"the mapping says synced, the ledger has no transaction, and the invoice is {status}"
            return Verdict((_difference("synced-without-transaction", invoice, detail, usd=invoice.usd),))
        return Verdict()

    @staticmethod
    def _gone(invoice: InvoiceRow) -> Difference:
        if invoice.sync_status == "synced":
            what = invoice.transaction_id or invoice.identifier
            detail = f"the mapping says synced as {what}, and the ledger has no such transaction"
            return _difference("synced-without-transaction", invoice, detail, usd=invoice.usd, repairable=True)
        mapping = "no mapping row" if invoice.sync_status is None else f"the mapping says {invoice.sync_status!r}"
        detail = f"{invoice.state}, no transaction, {mapping}"
        return _difference("missing-transaction", invoice, detail, usd=invoice.usd, repairable=True)

    def _duplicate(self, invoice: InvoiceRow, rows: Sequence[TransactionRow], kept: TransactionRow) -> Difference:
        # Of very many only the first are known; the same ones whoever looks, so that they can be acknowledged.
        known = [row for row in rows if row.bearers is not None or row is kept or row.key == invoice.transaction_id]
        counted = max(known, key=lambda row: int(row.bearers or 0))
        count = max(len(known), int(counted.bearers or 0))
        usd = sum((row.usd for row in known if row is not kept), Decimal(0))
        if count > len(known) and (total := number(counted.borne)) is not None:
            usd = total - kept.usd
        detail = f"{count} transactions, {sum(map(self.is_ours, known))} of the first {len(known)} with our mark"
        return _difference("duplicate-transaction", invoice, detail, *known, usd=usd)

    def _differing(
        self, invoice: InvoiceRow, row: TransactionRow, *, by_day: bool
    ) -> list[tuple[Fact, str | None, str | None]]:
        """The facts that differ, with what is expected and what stands there.

        `by_day`: times of the same day, UTC, are the same: people write no microseconds into a ledger.
        """
        booking = _as_booked(invoice)
        fields: dict[str, Callable[[], str | None]] = {
            "amount": lambda: str(amount_of(booking)),
            "date": lambda: paid_at_of(booking).isoformat(sep=" "),
            "currency": lambda: currency_of(booking),
        }
        raw: dict[str, str | None] = {"amount": invoice.amount, "date": invoice.date, "currency": invoice.currency}
        there = {"amount": row.amount, "date": row.date, "currency": row.currency}
        found = []
        for fact in self.facts:
            try:
                value = fields[fact.role]()
            except Fault:
                value = raw[fact.role]  # can never be booked so; that it differs is to be said nevertheless
            expected = fact.template.render({FIELDS[fact.role]: value})
            if not fact.is_same(expected, there[fact.role], by_day=by_day):
                found.append((fact, expected, there[fact.role]))
        return found

    def _facts(self, invoice: InvoiceRow, row: TransactionRow, *, adopted: bool, mendable: bool) -> list[Difference]:
        differing = self._differing(invoice, row, by_day=adopted)
        if not differing:
            return []
        off = abs(invoice.usd - row.usd)
        if adopted:
            expected = [(fact.role, value) for fact, value, _ in differing]
            found = [(fact.role, value) for fact, _, value in differing]
            usd = off if any(fact.role == "amount" for fact, _, _ in differing) else row.usd
            detail = f"{', '.join(fact.role for fact, _, _ in differing)} of a transaction by another hand"
            return [
                _difference(
                    "adopted-differs", invoice, detail, row, usd=usd, expected=_facts_text(expected),
                    found=_facts_text(found),
                )
            ]  # fmt: skip
        kinds: Mapping[Role, Kind] = {
            "amount": "amount-differs", "date": "date-differs", "currency": "currency-differs"
        }  # fmt: skip
        return [
            _difference(
                kinds[fact.role], invoice, f"column {fact.column}", row, usd=off if fact.role == "amount" else row.usd,
                expected=expected, found=found, repairable=mendable and fact.is_refreshed,
            )
            for fact, expected, found in differing
        ]  # fmt: skip


def assign(
    comparison: Comparison, invoices: Sequence[InvoiceRow], rows: Sequence[TransactionRow]
) -> tuple[dict[str, list[TransactionRow]], dict[str, InvoiceRow]]:
    """Whose each transaction is: the rows of each invoice, by its id, and the invoice of each row, by its key.

    The mapping row that names it by its key comes first, then the invoice whose Identifier it bears: of several, the
    one that is booked under it, then one that is owed a transaction, then the oldest.
    """
    by_transaction = {each.transaction_id: each for each in invoices if each.transaction_id is not None}
    holders: dict[str, InvoiceRow] = {}
    reserved: dict[str, InvoiceRow] = {}
    for each in sorted(invoices, key=lambda each: (not _holds(each), not each.is_live, int(each.id))):
        if each.key is not None:
            holders.setdefault(each.key, each)
        if each.identifier is not None:
            reserved.setdefault(each.identifier, each)
    rows_of: dict[str, list[TransactionRow]] = {each.id: [] for each in invoices}
    owners: dict[str, InvoiceRow] = {}
    for row in rows:
        owner = by_transaction.get(row.key)
        if owner is None and row.identifier is not None:
            owner = holders.get(row.identifier)
            if owner is None and comparison.is_ours(row):
                owner = reserved.get(row.identifier)
        if owner is not None:
            rows_of[owner.id].append(row)
            owners[row.key] = owner
    return rows_of, owners


def _holds(invoice: InvoiceRow) -> bool:
    return invoice.is_booked and invoice.identifier is not None and invoice.identifier == invoice.key


def _as_booked(invoice: InvoiceRow) -> Invoice:
    """As a booking reads it, in so far as it is compared."""
    return Invoice(
        0, None, None, None, None, invoice.amount, invoice.paid_at, None, None, invoice.currency, None, None,
        invoice.last_confirmed_at, None, invoice.payment_currency, None,
    )  # fmt: skip


def _why_not_booked(invoice: InvoiceRow) -> Fault | None:
    """What would make every booking of it fail, a repair too."""
    booking = _as_booked(invoice)
    try:
        amount_of(booking)
        paid_at_of(booking)
    except Fault as fault:
        return fault
    return None


def _difference(
    kind: Kind, invoice: InvoiceRow, detail: str, *rows: TransactionRow, usd: Decimal, repairable: bool = False,
    expected: str | None = None, found: str | None = None,
) -> Difference:  # fmt: skip
    identifier = invoice.identifier or invoice.key
    if repairable and (fault := _why_not_booked(invoice)) is not None:
        repairable = False
        detail += f"; it cannot be booked as it stands: {fault}"
        expected = expected or _facts_text([("amount", invoice.amount), ("date", invoice.date)])
    fingerprint = None
    if not repairable and identifier is not None:  # for people to decide, so they may also decide to leave it
        values = [
            # How many bear another Identifier, and what they amount to, is known only if that was asked for.
            (
                row.key,
                row.identifier,
                row.amount,
                row.date,
                row.currency,
                (row.bearers, row.borne) if row.identifier == identifier else "",
            )
            for row in sorted(rows, key=lambda row: row.key)
        ]
        state = None if invoice.is_live else str(invoice.state)
        exact = json.dumps([kind, state, invoice.transaction_id, expected, found, values])
        fingerprint = hashlib.sha256(exact.encode()).hexdigest()
    keys = ", ".join(row.key for row in rows[:20]) or None
    return Difference(
        kind, int(invoice.id), invoice.number, identifier, invoice.client, invoice.state, invoice.sync_status, keys,
        usd, expected, found, detail, repairable, fingerprint,
    )  # fmt: skip


def _facts_text(facts: Sequence[tuple[str, str | None]]) -> str:
    return ", ".join(f"{role} {value if value is not None else 'none'}" for role, value in facts)
