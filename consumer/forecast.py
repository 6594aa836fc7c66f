"""What a replay of a record would do now, found out without locking or changing anything."""

from __future__ import annotations

from typing import assert_never

from psycopg import Connection

from consumer import bookkeeper, dlq_store, envelope, plan, sessions
from consumer.databases import Broken, Databases
from consumer.deadletters import Forecast
from consumer.envelope import Ignored
from consumer.faults import Fault, RecordFault, Transient
from consumer.mapping import Mapping
from consumer.outcomes import NotPaid, Settled
from consumer.plan import Adopt, Draft, Insert, LedgerRow, Refresh
from consumer.sessions import Verdict
from consumer.settings import Settings


class Forecaster:
    """Reads both databases on connections of its own. Not thread-safe."""

    def __init__(self, settings: Settings, rules: Mapping) -> None:
        self._databases = Databases(settings, rules.target)
        self._rules = rules

    def close(self) -> None:
        """Close the connections."""
        self._databases.forget()

    def of_record(self, value: bytes | None) -> Forecast:
        """What handling a record with this value would do now. Raises `Outage`."""
        try:
            event = envelope.decode(value)
        except RecordFault as fault:
            return _failure(fault)
        if isinstance(event, Ignored):
            return Forecast("ignored", f"would be ignored: {event.reason}")
        return self.of_invoice(event.invoice_id)

    def of_invoice(self, invoice_id: int) -> Forecast:
        """What syncing this invoice would do now. Raises `Outage`."""
        try:
            return self._read(invoice_id)
        except Broken as first:
            # A connection that broke while it was idle, perhaps.
            self._databases.forget()
            if sessions.meaning_of(first.error).verdict is not Verdict.LOST:
                raise sessions.outage_of(first.error, first.database) from first.error
        try:
            return self._read(invoice_id)
        except Broken as broken:
            self._databases.forget()
            raise sessions.outage_of(broken.error, broken.database) from broken.error

    def _read(self, invoice_id: int) -> Forecast:
        try:
            with self._databases.invoices() as invoices:
                found = dlq_store.read_invoice(invoices, invoice_id)
                if found is None:
                    raise Transient("invoice-missing", f"no row in crypto_invoices with id {invoice_id}")
                invoice, sync = found
                drafted = plan.draft(invoice, sync, self._rules)
                match drafted:
                    case Settled():
                        key = sync and (sync.cfo_transaction_id or sync.cfo_identifier)
                        return Forecast("booked", f"is booked already as transaction {key}")
                    case NotPaid(status=status):
                        return Forecast("not-paid", f"is not paid: {status or 'no status'}")
                    case Draft():
                        with self._databases.cfo(invoices) as cfo:
                            return self._place(cfo, invoices, drafted)
                    case _:
                        assert_never(drafted)
        except Fault as fault:
            return _failure(fault)

    def _place(self, cfo: Connection, invoices: Connection, draft: Draft) -> Forecast:
        step = bookkeeper.decide(cfo, invoices, self._databases.ledger(cfo), [draft])[draft.invoice_id]
        if isinstance(step, Insert):
            draft = step.draft
        classified = draft.classification
        facts = f"{draft.identifier}, {draft.amount} USD, entity {classified.entity}"
        match step:
            case Insert():
                return Forecast("books", f"would be booked as {facts}, category {classified.category}")
            case Refresh(_, LedgerRow(key=key)):
                return Forecast("refreshes", f"would bring transaction {key} up to date: {facts}")
            case Adopt(_, LedgerRow(key=key)):
                return Forecast("adopts", f"would point to transaction {key}, which is another hand's: {facts}")
            case Fault():
                return _failure(step)
            case _:
                assert_never(step)


def _failure(fault: Fault) -> Forecast:
    return Forecast("fails", f"would fail again: {fault}")
