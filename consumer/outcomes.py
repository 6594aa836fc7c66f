"""What became of an invoice: a closed union, matched with `assert_never`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from msgspec import Struct

from consumer.faults import Fault

BookingResult: TypeAlias = Literal["inserted", "refreshed", "unchanged", "adopted"]


class Booked(Struct, frozen=True, gc=False):
    """The invoice stands in the ledger now, and is complete; `result` says how it came there.

    `amount` is in USD, exact to the cent; `paid_at` is UTC.
    """

    invoice_id: int
    cfo_transaction_id: int | None
    identifier: str
    result: BookingResult
    amount: Decimal
    paid_at: datetime


class Settled(Struct, frozen=True, gc=False):
    """Complete and booked already. `needs_repair` when the mapping row says otherwise."""

    invoice_id: int
    needs_repair: bool


class NotPaid(Struct, frozen=True, gc=False):
    """The invoice is not paid now, whatever the event said when it was written."""

    invoice_id: int
    status: str


@dataclass(frozen=True, slots=True)
class Faulted:
    """The invoice was not booked. `seen` is the version of its mapping row at that moment; None if it had none."""

    invoice_id: int
    fault: Fault
    seen: str | None = None


Outcome: TypeAlias = Booked | Settled | NotPaid | Faulted
