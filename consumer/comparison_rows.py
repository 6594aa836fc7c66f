"""What a reconciliation compares: an invoice with its mapping row, and a row of the ledger, as text."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple

from consumer.facts import number

_LIVE: Final = ("paid", "complete")


class InvoiceRow(NamedTuple):
    """An invoice with its mapping row, or a mapping row whose invoice is gone. All text, as PostgreSQL writes it; a
    flag is "y" or None. A tuple, because a million of them are made in a row."""

    key: str | None  # the Identifier that its transaction bears, or will bear
    id: str
    state: str | None  # the status in lower case; None: there is no such invoice any more
    number: str | None
    client: str | None
    amount: str | None
    paid_at: str | None
    currency: str | None
    last_confirmed_at: str | None  # of its confirmed payments; read only where paid_at or currency is missing
    payment_currency: str | None
    young: str | None  # paid so recently that the sync may be busy with it
    sync_status: str | None  # None: no mapping row
    transaction_id: str | None
    identifier: str | None  # the mapping's: booked or only reserved
    recorded: str | None  # whether a booking is recorded under it
    adopted: str | None
    version: str | None  # the mapping's updated_at

    @property
    def is_live(self) -> bool:
        """Whether a transaction is owed for it."""
        return self.state in _LIVE

    @property
    def is_booked(self) -> bool:
        """Whether its mapping row names a transaction."""
        return self.transaction_id is not None or (self.recorded is not None and self.identifier is not None)

    @property
    def date(self) -> str | None:
        """When it was paid, as text."""
        return self.paid_at or self.last_confirmed_at

    @property
    def usd(self) -> Decimal:
        """Its amount; 0 when that is no number."""
        return number(self.amount) or Decimal(0)


class TransactionRow(NamedTuple):
    """A row of the ledger, as text; a flag is "y" or None."""

    key: str
    identifier: str | None
    source: str | None
    marked: str | None  # bears our mark, though perhaps that of another Identifier
    amount: str | None
    date: str | None
    currency: str | None
    bearers: str | None = None  # how many rows bear this Identifier; None for a row that was found by its key alone
    borne: str | None = None  # what they all amount to, where the column holds numbers

    @property
    def usd(self) -> Decimal:
        """Its amount; 0 when that is no number."""
        return number(self.amount) or Decimal(0)
