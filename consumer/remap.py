"""The guide's "Wrong entity mapped": a person corrects what an invoice was booked under.

The transaction and the mapping row change together, in the order in which a booking locks them: invoice, transaction,
mapping. With two databases the CFO's side commits first; a crash in between is mended by the same call again.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from psycopg import Connection

from consumer import remap_store, store
from consumer.databases import Databases
from consumer.faults import RecordFault
from consumer.ledger import Ledger
from consumer.mapping import Target
from consumer.plan import LedgerRow
from consumer.store import LogRow

_LONGEST: Final = 255  # of entity_mapped


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person decided about one invoice. A business unit of None stays as it is."""

    invoice_id: int
    entity: str
    business_unit: str | None
    by: str


def apply(databases: Databases, target: Target, invoices: Connection, wanted: Correction) -> dict[str, Any]:
    """Change the transaction, the mapping row and the log; gives the transaction's key, and the old and new values.

    Changes nothing, and logs nothing, where the ledger and the mapping say so already. Raises `RecordFault` for what
    cannot be remapped, naming what to do instead, and the errors of `Databases`.
    """
    columns = _columns(target, wanted)
    _, entity = columns["entity"]
    is_there = remap_store.lock_invoice(invoices, wanted.invoice_id)
    mapping = remap_store.read_booking(invoices, wanted.invoice_id)
    if mapping is None and not is_there:
        raise RecordFault("invoice-unknown", f"there is no invoice {wanted.invoice_id}")
    if mapping is None:
        raise RecordFault("not-booked", f"invoice {wanted.invoice_id} is not booked: there is nothing to remap")
    if mapping.adopted:
        raise RecordFault(
            "adopted", "its transaction was made by another hand and is never changed from here: correct it there"
        )
    with databases.cfo(invoices) as cfo:
        ledger = databases.ledger(cfo)
        row = _transaction(ledger, target, cfo, mapping)
        before = ledger.judge(cfo, row.key, dict(columns.values()))
    old = {name: before[column] for name, (column, _) in columns.items()}
    new = {name: value for name, (_, value) in columns.items()}
    if old != new or mapping.entity != entity:
        # After a crash between the two commits only the mapping row still knows the old entity.
        told = old if old != new else old | {"entity": mapping.entity}
        change = {"action": "remap", "by": wanted.by, "old": told, "new": new}
        remap_store.remap(invoices, wanted.invoice_id, entity)
        payload, done = msgspec.json.encode(change).decode(), msgspec.json.encode({"old": told, "new": new}).decode()
        store.append_log(
            invoices, [LogRow(wanted.invoice_id, "synced", mapping.cfo_transaction_id, None, payload, None)]
        )
        remap_store.append_action(invoices, "remap", by=wanted.by, invoice_id=wanted.invoice_id, details=done)
        old = told
    return {"cfo_transaction_id": mapping.cfo_transaction_id, "old": old, "new": new}


def show(databases: Databases, target: Target, invoices: Connection, invoice_id: int) -> dict[str, str | None] | None:
    """The transaction that an invoice is booked as, by column; None for one that is not booked or whose transaction is
    gone or not the only one. Raises the errors of `Databases`."""
    mapping = remap_store.read_booking(invoices, invoice_id, lock=False)
    if mapping is None:
        return None
    roles = (target.id, target.identifier, target.source, *target.facts, target.entity, target.business_unit)
    columns = list(dict.fromkeys(name for name in roles if name is not None))
    with databases.cfo(invoices) as cfo:
        ledger = databases.ledger(cfo)
        try:
            row = _transaction(ledger, target, cfo, mapping)
        except RecordFault:
            return None
        return ledger.read(cfo, row.key, columns)


def _columns(target: Target, wanted: Correction) -> dict[str, tuple[str, str]]:
    """The ledger's columns that change, and their new values, by the name that people know them by."""
    asked = {"entity": (target.entity, wanted.entity)}
    if wanted.business_unit is not None:
        asked["business_unit"] = (target.business_unit, wanted.business_unit)
    columns: dict[str, tuple[str, str]] = {}
    for name, (column, value) in asked.items():
        label = name.replace("_", " ")
        if column is None:
            raise RecordFault(f"no-{name.replace('_', '-')}-column", f"the mapping file's [target] names no {name}")
        if not value.strip():
            raise RecordFault("value-empty", f"the {label} is empty")
        if len(value) > _LONGEST:
            raise RecordFault("value-too-long", f"the {label} has {len(value)} characters, {_LONGEST} are allowed")
        if any(unicodedata.category(each) in ("Cc", "Cs") for each in value):
            raise RecordFault("value-invalid", f"the {label} has control characters")
        columns[name] = (column, value.strip())
    return columns


def _transaction(ledger: Ledger, target: Target, cfo: Connection, mapping: remap_store.Booking) -> LedgerRow:
    rows = ledger.find_booked(cfo, mapping.cfo_transaction_id, mapping.cfo_identifier)
    if mapping.cfo_transaction_id is not None:
        rows = [row for row in rows if row.key == str(mapping.cfo_transaction_id)]
    elif target.source:
        marker = target.columns[target.source].render({"identifier": mapping.cfo_identifier})
        rows = [row for row in rows if row.source == marker]
    if not rows:
        raise RecordFault("transaction-missing", "its transaction is gone from the ledger: run `cfo-sync reconcile`")
    if len(rows) > 1:
        raise RecordFault(
            "identifier-ambiguous",
            f"{len(rows)} transactions bear Identifier {mapping.cfo_identifier!r}: remove all but one",
        )
    return rows[0]
