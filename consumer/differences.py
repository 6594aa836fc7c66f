"""What a reconciliation finds: kinds of difference, one difference, and the summary of a run. Pure: no database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, get_args

from consumer.texts import utc_text

Kind: TypeAlias = Literal[
    "duplicate-transaction",
    "invoice-not-paid",
    "orphan-transaction",
    "synced-without-transaction",
    "missing-transaction",
    "mapped-elsewhere",
    "complete-without-mapping",
    "amount-differs",
    "date-differs",
    "currency-differs",
    "adopted-differs",
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
EXISTENCE: Final[tuple[Kind, ...]] = (
    "orphan-transaction",
    "invoice-not-paid",
    "synced-without-transaction",
    "missing-transaction",
    "duplicate-transaction",
    "mapped-elsewhere",
    "complete-without-mapping",
)
"""Whether there is one transaction for each invoice, and one invoice for each transaction; the first that fits."""

NO_CLIENT: Final = "(no client)"
NO_INVOICE: Final = "(no invoice)"
NO_MONTH: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree. `usd` is what is at stake: the amount that is missing, too much, or off by."""

    kind: Kind
    invoice_id: int | None
    invoice_number: str | None
    identifier: str | None
    client: str | None
    invoice_status: str | None
    sync_status: str | None
    transaction: str | None  # the ledger's key; several, comma separated
    usd: Decimal
    expected: str | None
    found: str | None
    detail: str
    is_repairable: bool  # `--repair` can mend it
    fingerprint: str | None = None  # of the exact values, where people may acknowledge them

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and CSV; the amount is text with two decimals."""
        return {
            "kind": self.kind,
            "invoice_id": self.invoice_id,
            "invoice_number": self.invoice_number,
            "identifier": self.identifier,
            "client": self.client,
            "invoice_status": self.invoice_status,
            "sync_status": self.sync_status,
            "transaction": self.transaction,
            "usd": cents(self.usd),
            "expected": self.expected,
            "found": self.found,
            "detail": self.detail,
            "repairable": self.is_repairable,
            "acknowledgeable": self.fingerprint is not None,
        }


@dataclass(slots=True)
class Sides:
    """The same sum on both sides, USD."""

    invoices: Decimal = Decimal(0)
    ledger: Decimal = Decimal(0)

    def as_dict(self) -> dict[str, str]:
        """Text with two decimals."""
        return {
            "invoices": cents(self.invoices),
            "ledger": cents(self.ledger),
            "difference": cents(self.ledger - self.invoices),
        }


def _zeros() -> dict[Kind, int]:
    return dict.fromkeys(KINDS, 0)


def _nothing() -> dict[Kind, Decimal]:
    return dict.fromkeys(KINDS, Decimal(0))


@dataclass(slots=True)
class Summary:
    """What one run found. `counts`, `usd` (at stake) and `repairable` hold all kinds, 0 where nothing differs."""

    started_at: datetime
    since: datetime | None = None
    finished_at: datetime | None = None
    invoices: int = 0  # paid or complete
    transactions: int = 0  # ours, and adopted ones
    in_flight: int = 0  # paid a moment ago, the sync is busy with them
    acknowledged: int = 0
    counts: dict[Kind, int] = field(default_factory=_zeros)
    usd: dict[Kind, Decimal] = field(default_factory=_nothing)
    repairable: dict[Kind, int] = field(default_factory=_zeros)
    months: dict[str, Sides] = field(default_factory=dict)  # "2025-10", UTC, of each side's own date
    clients: dict[str, Sides] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()  # facts that the mapping file gives no column

    @property
    def differences(self) -> int:
        """How many differences that nobody has acknowledged."""
        return sum(self.counts.values())

    @property
    def agrees(self) -> bool:
        """Whether invoices and ledger agree."""
        return self.differences == 0

    @property
    def totals(self) -> Sides:
        """The sums over all months."""
        return Sides(
            sum((each.invoices for each in self.months.values()), Decimal(0)),
            sum((each.ledger for each in self.months.values()), Decimal(0)),
        )

    def add(self, difference: Difference) -> None:
        """Count a difference."""
        self.counts[difference.kind] += 1
        self.usd[difference.kind] += abs(difference.usd)  # or a negative amount would hide another one
        self.repairable[difference.kind] += difference.is_repairable

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; amounts are text with two decimals, times ISO 8601 in UTC."""
        return {
            "agrees": self.agrees,
            "started_at": utc_text(self.started_at),
            "finished_at": utc_text(self.finished_at),
            "since": utc_text(self.since),
            "invoices": self.invoices,
            "transactions": self.transactions,
            "differences": self.differences,
            "in_flight": self.in_flight,
            "acknowledged": self.acknowledged,
            "counts": dict(self.counts),
            "usd": {kind: cents(amount) for kind, amount in self.usd.items()},
            "repairable": dict(self.repairable),
            "totals": self.totals.as_dict(),
            "months": {month: self.months[month].as_dict() for month in sorted(self.months)},
            "clients": {client: self.clients[client].as_dict() for client in sorted(self.clients)},
            "not_compared": list(self.not_compared),
        }


def cents(amount: Decimal) -> str:
    """An amount as text with two decimals."""
    return f"{amount:.2f}"
