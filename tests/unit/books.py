"""A ledger, a mapping and an invoice table in memory, booked as `bookkeeper` does, with their constraints asserted.

The rules are the real ones (`plan.draft`, `plan.decide`); only the SQL is replaced. What must never happen is an
assertion where it would happen: a second booking, a changed row of another hand, a row refreshed with the facts of
another invoice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from consumer import mapping, plan
from consumer.faults import Fault, Transient
from consumer.outcomes import NotPaid, Settled
from consumer.plan import Adopt, Draft, Insert, Invoice, LedgerRow, Refresh, SyncRow

RULES = mapping.load()


@dataclass(slots=True)
class Row:
    """A row of the ledger. `owner` is the invoice that it was inserted for; None for another hand's."""

    key: int
    owner: int | None
    values: dict[str, str | None]


@dataclass(slots=True)
class Books:
    """The three tables. Invoice numbers of living invoices are unique, as the invoice system's are."""

    invoices: dict[int, Invoice] = field(default_factory=dict)
    syncs: dict[int, SyncRow] = field(default_factory=dict)
    ledger: dict[int, Row] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)

    # -- what others do ------------------------------------------------------------------------------------------------

    def create(self, invoice_id: int, number: str, amount: int = 100, status: str = "sent") -> None:
        """The invoice system writes an invoice."""
        assert number not in self.numbers()
        self.invoices[invoice_id] = Invoice(
            id=invoice_id,
            status=status,
            invoice_number=number,
            client_id="7",
            client_name="Exos Capital",
            amount_usd=f"{amount}.00",
            paid_at="2025-10-22 14:30:00",
            billing_period=None,
            description=None,
            crypto_currency="USDT",
            crypto_amount=None,
            crypto_network=None,
            last_confirmed_at=None,
            transaction_hash=None,
            payment_currency=None,
            amount_received=None,
        )

    def update(self, invoice_id: int, **columns: Any) -> None:
        """The invoice system changes columns of an invoice."""
        self.invoices[invoice_id] = replace(self.invoices[invoice_id], **columns)

    def numbers(self) -> set[str | None]:
        """The numbers of living invoices."""
        return {invoice.invoice_number for invoice in self.invoices.values()}

    def insert_foreign(self, identifier: str) -> None:
        """Another hand writes a transaction."""
        key = len(self.ledger) + 1
        values = dict.fromkeys(RULES.target.columns, None) | {
            "identifier": identifier,
            "source_file": "bank.csv",
            "amount": "7.77",
        }
        self.ledger[key] = Row(key, None, values)

    # -- what we do ----------------------------------------------------------------------------------------------------

    def book(self, ids: Iterable[int], *, crash: bool = False) -> dict[int, str]:
        """One transaction over a set of invoices; gives each outcome's name, or its fault's code.

        `crash` ends it between the two commits of the two-database layout: the ledger keeps what was written.
        """
        outcomes: dict[int, str] = {}
        drafts: list[Draft] = []
        repairs: list[int] = []
        for invoice_id in sorted(set(ids)):
            invoice, sync = self.invoices.get(invoice_id), self.syncs.get(invoice_id)
            try:
                if invoice is None:
                    raise Transient("invoice-missing", "no such row")
                verdict = plan.draft(invoice, sync, RULES)
            except Fault as fault:
                outcomes[invoice_id] = fault.code
                continue
            if isinstance(verdict, Draft):
                drafts.append(verdict)
            elif isinstance(verdict, Settled):
                outcomes[invoice_id] = "settled"
                repairs += [invoice_id] if verdict.needs_repair else []
            else:
                assert isinstance(verdict, NotPaid)
                outcomes[invoice_id] = "not-paid"
        entries = self._write_ledger(drafts, outcomes)
        if crash:
            return {}
        for each, key, result in entries:
            self._write_invoice(each, key, result)
            outcomes[each.invoice_id] = result
        for invoice_id in repairs:
            self.syncs[invoice_id] = replace(self.syncs[invoice_id], sync_status="synced")
        return outcomes

    def mirror(self, invoice_id: int, sync_status: str) -> None:
        """A failed attempt of the past is recorded now: never over a booking made meanwhile."""
        sync = self.syncs.get(invoice_id) or SyncRow("pending", None, None, False, 0, "0")
        if sync.sync_status != "synced":
            self.syncs[invoice_id] = replace(sync, sync_status=sync_status)

    def _write_ledger(self, drafts: list[Draft], outcomes: dict[int, str]) -> list[tuple[Draft, int, str]]:
        taken = {sync.cfo_identifier: number for number, sync in self.syncs.items() if sync.cfo_identifier is not None}
        mapped = {sync.cfo_transaction_id: number for number, sync in self.syncs.items() if sync.cfo_transaction_id}
        identifiers = {each.identifier for each in drafts}
        keys = {each.sync.cfo_transaction_id for each in drafts if each.sync is not None}
        rows = [
            LedgerRow(str(row.key), row.values["identifier"], row.values["source_file"], None, mapped.get(row.key))
            for row in self.ledger.values()
            if row.values["identifier"] in identifiers or row.key in keys
        ]
        entries: list[tuple[Draft, int, str]] = []
        for invoice_id, step in plan.decide(drafts, rows, taken).items():
            match step:
                case Insert(draft):
                    marks = {row.values["source_file"] for row in self.ledger.values()}
                    assert draft.source not in marks, "the partial unique index refuses it"
                    assert all(row.owner != invoice_id for row in self.ledger.values()), "booked twice"
                    key = len(self.ledger) + 1
                    self.ledger[key] = Row(key, invoice_id, dict(draft.values))
                    entries.append((draft, key, "inserted"))
                case Refresh(draft, LedgerRow(key=text)):
                    row = self.ledger[int(text)]
                    assert row.owner == invoice_id, "another's revenue overwritten"
                    facts = {name: draft.values[name] for name in RULES.target.facts}
                    changed = row.values | facts != row.values
                    row.values.update(facts)
                    entries.append((draft, row.key, "refreshed" if changed else "unchanged"))
                case Adopt(draft, LedgerRow(key=text)):
                    assert self.ledger[int(text)].owner in (None, invoice_id), "another invoice's row adopted"
                    entries.append((draft, int(text), "adopted"))
                case Fault(code=code):
                    outcomes[invoice_id] = code
        return entries

    def _write_invoice(self, each: Draft, key: int, result: str) -> None:
        before = self.syncs.get(each.invoice_id)
        if before is not None and before.cfo_identifier is not None:
            assert before.cfo_identifier == each.identifier, "an identifier changed"
        if before is None or not before.is_booked or result != "unchanged":
            self.log.append((each.invoice_id, result))
        self.syncs[each.invoice_id] = SyncRow("synced", key, each.identifier, result == "adopted", 0, str(key))
        self.update(each.invoice_id, status="complete")
        for names in ("cfo_identifier", "cfo_transaction_id"):
            held = [getattr(sync, names) for sync in self.syncs.values() if getattr(sync, names) is not None]
            assert len(held) == len(set(held)), f"two mapping rows with one {names}"

    # -- what stands there ---------------------------------------------------------------------------------------------

    def bookings(self) -> dict[int, dict[str, str | None]]:
        """The transactions that we inserted, by invoice."""
        return {row.owner: row.values for row in self.ledger.values() if row.owner is not None}

    def state(self) -> object:
        """Everything but the ledger's keys, which depend on the order of inserts."""
        return (
            sorted((repr(row.owner), repr(row.values)) for row in self.ledger.values()),
            {
                number: replace(sync, cfo_transaction_id=None, version="")
                for number, sync in self.syncs.items()
                if sync.is_booked
            },
            {number: invoice.status for number, invoice in self.invoices.items()},
            sorted(self.log),
        )
