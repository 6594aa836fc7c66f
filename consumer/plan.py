"""What is to be done about one invoice: decided from rows as they stand, without a database.

`draft` decides from the invoice's side, `decide` from the ledger's. Both are functions of current rows only, so
duplicates, reorderings and replays of events cannot change what is booked (DESIGN, decision 1).
"""

from __future__ import annotations

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Final, TypeAlias

from msgspec import Struct

from consumer.faults import Fault, RecordFault, Transient
from consumer.mapping import Classification, Mapping
from consumer.outcomes import NotPaid, Settled

_MAX_BIGINT: Final = 2**63 - 1
CENT: Final = Decimal("0.01")
_EXACT: Final = Context(prec=60)


class Invoice(Struct, frozen=True, gc=False):
    """An invoice with its client and its confirmed payments. Numbers and times are PostgreSQL's text, so that a value
    Python cannot hold (an infinite date) is one invoice's fault and not the batch's."""

    id: int
    status: str | None
    invoice_number: str | None
    client_id: str | None
    client_name: str | None
    amount_usd: str | None
    paid_at: str | None
    billing_period: str | None
    description: str | None
    crypto_currency: str | None
    crypto_amount: str | None
    crypto_network: str | None
    last_confirmed_at: str | None  # of its confirmed payments
    transaction_hash: str | None  # of the latest one
    payment_currency: str | None
    amount_received: str | None  # sum over them

    @property
    def state(self) -> str:
        """The status as it is compared: casefolded."""
        return (self.status or "").casefold()


class SyncRow(Struct, frozen=True, gc=False):
    """Our mapping row of an invoice (`crypto_invoice_cfo_sync`)."""

    sync_status: str
    cfo_transaction_id: int | None
    cfo_identifier: str | None
    adopted: bool
    retry_count: int
    version: str  # its updated_at, to notice that somebody else wrote it meanwhile
    reserved: str | None = None  # the Identifier under which a booking was begun and perhaps not recorded

    @property
    def is_booked(self) -> bool:
        """Whether it names a transaction."""
        return self.cfo_transaction_id is not None or self.cfo_identifier is not None


class LedgerRow(Struct, frozen=True, gc=False):
    """A row of the CFO's table. `key` is its primary key as text; `source` and `entity` what its columns of
    that role say, if it has them."""

    key: str
    identifier: str | None
    source: str | None
    entity: str | None
    mapped_to: int | None  # the invoice whose mapping row names it


class Draft(Struct, frozen=True, gc=False):
    """What an invoice would be booked as. `values` holds a text or NULL for each target column."""

    invoice_id: int
    identifier: str
    classification: Classification
    amount: Decimal
    paid_at: datetime
    values: Dict[str, str | None]
    source: str | None
    sync: SyncRow | None


class Insert(Struct, frozen=True, gc=False):
    """No such transaction stands in the ledger."""

    draft: Draft


class Refresh(Struct, frozen=True, gc=False):
    """Our own transaction stands there: its facts follow the source, its judgements stay."""

    draft: Draft
    row: LedgerRow


class Adopt(Struct, frozen=True, gc=False):
    """Another hand's transaction stands there: point to it and leave it alone."""

    draft: Draft
    row: LedgerRow


Step: TypeAlias = Insert | Refresh | Adopt


def draft(
    invoice: Invoice, sync: SyncRow | None, rules: Mapping, identifier: str | None = None, *, repair: bool = False
) -> Draft | Settled | NotPaid:
    """What to book for this invoice: under `identifier`, else the one it was booked under, else its number.

    With `repair`, a complete invoice is booked like a paid one: its transaction may be gone, or be out of date.
    Raises `RecordFault` when its data can never be booked, `Transient` when a row is missing whose insert would ring
    no doorbell: the client, or the payment that dates it.
    """
    state = invoice.state
    if state == "complete" and not repair and sync is not None and sync.is_booked:
        return Settled(invoice.id, needs_repair=sync.sync_status != "synced")
    if state != "paid" and not (repair and state == "complete"):
        return NotPaid(invoice.id, invoice.status or "")
    number = invoice.invoice_number or ""
    if not number.strip():
        raise RecordFault("invoice-number-missing", "invoice_number is empty: it is the key of the booking")
    if invoice.client_id is None:
        raise RecordFault("client-missing", "client_id is empty")
    if invoice.client_name is None:
        raise Transient("client-not-there", f"no row in crypto_clients with id {invoice.client_id} yet")
    amount = amount_of(invoice)
    paid_at = paid_at_of(invoice)
    classification = rules.classify(invoice.client_name, invoice.billing_period, invoice.description)
    identifier = identifier or (sync.cfo_identifier if sync else None) or number
    fields = {
        "invoice_id": str(invoice.id),
        "invoice_number": number,
        "identifier": identifier,
        "client_name": invoice.client_name,
        "billing_period": invoice.billing_period,
        "description": invoice.description,
        "amount_usd": str(amount),
        "crypto_currency": currency_of(invoice),
        "crypto_amount": invoice.crypto_amount,
        "crypto_network": invoice.crypto_network,
        "transaction_hash": invoice.transaction_hash,
        "amount_received": invoice.amount_received,
        "paid_at": paid_at.isoformat(sep=" "),
        "entity": classification.entity,
        "business_unit": classification.business_unit,
        "category": classification.category,
        "subcategory": classification.subcategory,
    }
    target = rules.target
    values = target.constants | {column: template.render(fields) for column, template in target.varying.items()}
    source = values[target.source] if target.source else None
    return Draft(invoice.id, identifier, classification, amount, paid_at, values, source, sync)


def decide(drafts: Sequence[Draft], ledger: Sequence[LedgerRow], taken: Dict[str, int]) -> dict[int, Step | Fault]:
    """What to do in the ledger, by invoice id.

    `ledger` holds every row that bears one of the drafts' identifiers or that their mapping rows point to; `taken`
    says which invoice's mapping row holds an identifier. A fault is a value here: the others of the set go on.
    """
    by_identifier: dict[str, list[LedgerRow]] = {}
    by_key = {row.key: row for row in ledger}
    for row in ledger:
        if row.identifier is not None:
            by_identifier.setdefault(row.identifier, []).append(row)
    steps: dict[int, Step | Fault] = {}
    claimed = dict(taken)
    for each in sorted(drafts, key=lambda each: each.invoice_id):
        holder = claimed.setdefault(each.identifier, each.invoice_id)
        if holder != each.invoice_id:
            steps[each.invoice_id] = RecordFault(
                "identifier-taken",
                f"Identifier {each.identifier!r} belongs to invoice {holder}, whose revenue must not be overwritten",
            )
        else:
            steps[each.invoice_id] = _place(each, by_identifier.get(each.identifier, []), by_key)
    return steps


def _place(each: Draft, rows: list[LedgerRow], by_key: Dict[str, LedgerRow]) -> Step | Fault:
    if each.sync is not None and each.sync.cfo_transaction_id is not None:
        mapped = by_key.get(str(each.sync.cfo_transaction_id))
        if mapped is not None and mapped.mapped_to in (None, each.invoice_id):
            return Adopt(each, mapped) if each.sync.adopted or mapped.source != each.source else Refresh(each, mapped)
    ours = [row for row in rows if row.source == each.source and each.source is not None]
    if each.source is None and each.sync is not None and each.sync.is_booked and not each.sync.adopted:
        ours = rows  # a ledger without a source column: only the mapping row tells
    candidates = ours or rows
    if not candidates:
        return Insert(each)
    if len(candidates) > 1:
        return RecordFault(
            "identifier-ambiguous",
            f"{len(candidates)} transactions bear Identifier {each.identifier!r}, none of them mapped to this invoice",
        )
    [row] = candidates
    if row.mapped_to not in (None, each.invoice_id):
        return RecordFault(
            "transaction-taken",
            f"transaction {row.key} with Identifier {each.identifier!r} is mapped to invoice {row.mapped_to}",
        )
    return Refresh(each, row) if ours else Adopt(each, row)


def currency_of(invoice: Invoice) -> str | None:
    """The currency that a booking of this invoice bears."""
    return invoice.crypto_currency or invoice.payment_currency


def amount_of(invoice: Invoice) -> Decimal:
    """The amount that a booking of this invoice bears, USD, with two decimals. Raises `RecordFault`."""
    text = invoice.amount_usd
    if text is None:
        raise RecordFault("amount-missing", "amount_usd is empty")
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise RecordFault("amount-invalid", f"amount_usd is not a number: {text[:40]!r}") from error
    if not amount.is_finite():
        raise RecordFault("amount-invalid", f"amount_usd is {amount}")
    if amount <= 0:
        raise RecordFault("amount-not-positive", f"amount_usd is {text[:40]}, must be above 0")
    try:
        cents = amount.quantize(CENT, context=_EXACT)
    except InvalidOperation as error:
        raise RecordFault("amount-invalid", f"amount_usd has more than {_EXACT.prec} digits") from error
    if amount != cents:
        raise RecordFault("amount-not-cents", f"amount_usd is {text[:40]}, more exact than a cent")
    return cents


def paid_at_of(invoice: Invoice) -> datetime:
    """The time that its booking bears, UTC. Raises `RecordFault`, or `Transient` while nothing dates it."""
    text = invoice.paid_at or invoice.last_confirmed_at
    if text is None:
        raise Transient("paid-at-not-there", "paid_at is empty and no confirmed payment dates the invoice yet")
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RecordFault("paid-at-invalid", f"paid_at is {text[:40]!r}") from error


def whole_number(key: str) -> int | None:
    """The key as cfo_transaction_id holds it; None for a key that is not a number (a hash, a UUID)."""
    if len(key) > 20 or not key.removeprefix("-").isdecimal():
        return None
    number = int(key)
    return number if abs(number) <= _MAX_BIGINT else None
