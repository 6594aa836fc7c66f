"""What the tests of the reconciliation share: a ledger in order, and one run over it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from consumer import mapping, reconcile
from consumer.differences import Difference, Summary
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import invoice_dsn, ledger_dsn
from tests.roles import API, settings_as
from tests.support import InvoiceSystem, LedgerView

PAID: Final = datetime(2025, 10, 22, 23, 30)  # noqa: DTZ001 - as the invoice system holds it, UTC without a zone
OURS: Final = ("date", "amount", "currency", "identifier", "source_file")
THEIRS: Final = ("date", "amount", "currency", "identifier")


class Books:
    """An invoice database and a ledger, with two invoices that are booked as they should be."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings = settings_as(API, settings)
        self.rules = mapping.load(settings.mapping_file)
        self.invoices = InvoiceSystem(invoice_dsn(settings))
        self.ledger = LedgerView(ledger_dsn(settings))
        self.service = CFOSyncService(settings, rules=self.rules)
        self.kept: list[Difference] = []

    def close(self) -> None:
        self.service.close()
        self.invoices.close()
        self.ledger.close()

    def paid(self, number: str, amount: str = "100.00", **columns: Any) -> int:
        """An invoice paid long ago, not booked."""
        invoice_id = self.invoices.create_test_invoice(amount=amount, invoice_number=number, **columns)  # type: ignore[arg-type]
        self.invoices.mark_invoice_as_paid(invoice_id, paid_at=PAID)
        return invoice_id

    def booked(self, number: str, amount: str = "100.00", **columns: Any) -> int:
        """An invoice paid long ago, and booked."""
        invoice_id = self.paid(number, amount, **columns)
        assert self.service.sync_invoice_to_cfo(invoice_id)["success"]
        return invoice_id

    def ours(self, identifier: str | None, amount: str = "100.00", *, mark: str | None = None) -> int:
        """A transaction with our mark; gives its id."""
        return self.ledger.insert(
            OURS, PAID, amount, "USDT", identifier, f"crypto_invoice_{identifier if mark is None else mark}"
        )

    def theirs(self, identifier: str | None, amount: str = "100.00") -> int:
        """A transaction by another hand; gives its id."""
        return self.ledger.insert(THEIRS, PAID, amount, "USDT", identifier)

    def mapping_row(self, invoice_id: int, **columns: Any) -> None:
        """Change a mapping row."""
        sets = ", ".join(f"{name} = %s" for name in columns)
        self.invoices.connection.execute(
            f"UPDATE crypto_invoice_cfo_sync SET {sets} WHERE invoice_id = %s".encode(),
            (*columns.values(), invoice_id),
        )

    def forget(self, invoice_id: int) -> None:
        """Delete a mapping row."""
        self.invoices.connection.execute("DELETE FROM crypto_invoice_cfo_sync WHERE invoice_id = %s", (invoice_id,))

    def run(self, **arguments: Any) -> Summary:
        """One run; what it found is in `kept`."""
        self.kept = []
        summary = reconcile.reconcile(self.settings, self.rules, on_difference=self.kept.append, **arguments)
        assert sum(summary.counts.values()) == len(self.kept)
        return summary

    def found(self) -> list[tuple[str, int | None, str | None]]:
        """Kind, invoice and Identifier of each difference of one run."""
        self.run()
        return [(each.kind, each.invoice_id, each.identifier) for each in self.kept]

    def one(self) -> Difference:
        """The only difference of one run."""
        self.run()
        [difference] = self.kept
        return difference

    def repair(self, ids: Collection[int] | None = None) -> reconcile.Repaired:
        """Repair what the last run found."""
        wanted = ids or dict.fromkeys(each.invoice_id or 0 for each in self.kept if each.is_repairable)
        return reconcile.repair(self.settings, self.service, list(wanted), by="clerk")
