"""What is to be done about one invoice: every rule of the drafts, and of placing them in the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from consumer import mapping, templates
from consumer.faults import Fault, RecordFault, Transient
from consumer.mapping import DEFAULT_FILE, Mapping
from consumer.outcomes import NotPaid, Settled
from consumer.plan import Adopt, Draft, Insert, Invoice, LedgerRow, Refresh, SyncRow, decide, draft

GUIDE = mapping.load()
NUMBER = "DPY-2025-10-0001"
MARK = f"crypto_invoice_{NUMBER}"

PAID = Invoice(
    id=1,
    status="paid",
    invoice_number=NUMBER,
    client_id="7",
    client_name="Alps Blockchain",
    amount_usd="5000.00",
    paid_at="2025-10-22 14:30:00.5",
    billing_period="October 2025",
    description="Hosting of 3 racks",
    crypto_currency="USDT",
    crypto_amount="5001.25",
    crypto_network="TRC20",
    last_confirmed_at="2025-10-22 14:29:00",
    transaction_hash="0xabc",
    payment_currency="USDC",
    amount_received="5001.25",
)
BOOKED = SyncRow("synced", 10, NUMBER, adopted=False, retry_count=0, version="1")


def drafted(invoice: Invoice = PAID, sync: SyncRow | None = None, rules: Mapping = GUIDE, **columns: Any) -> Draft:
    found = draft(replace(invoice, **columns), sync, rules)
    assert isinstance(found, Draft)
    return found


def fault_of(kind: type[Fault], **columns: Any) -> str:
    with pytest.raises(kind) as caught:
        draft(replace(PAID, **columns), None, GUIDE)
    assert type(caught.value) is kind
    return caught.value.code


# -- drafts: which invoices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["paid", "PAID", "Paid"])
def test_a_paid_invoice_is_drafted_whatever_the_case_of_its_status(status: str) -> None:
    assert drafted(status=status).invoice_id == 1


@pytest.mark.parametrize(
    "status", ["draft", "sent", "partially_paid", "expired", "partial", "overpaid", "overdue", "cancelled", "", None]
)
@pytest.mark.parametrize("sync", [None, BOOKED], ids=["new", "booked"])
def test_an_invoice_that_is_not_paid_now_asks_nothing(status: str | None, sync: SyncRow | None) -> None:
    assert draft(replace(PAID, status=status), sync, GUIDE) == NotPaid(1, status or "")


@pytest.mark.parametrize("status", ["complete", "COMPLETE"])
@pytest.mark.parametrize(
    ("sync_status", "needs_repair"), [("synced", False), ("retry", True), ("failed", True), ("pending", True)]
)
def test_a_complete_and_booked_invoice_is_settled_and_repaired_if_its_mapping_says_otherwise(
    status: str, sync_status: str, needs_repair: bool
) -> None:
    sync = replace(BOOKED, sync_status=sync_status)
    assert draft(replace(PAID, status=status), sync, GUIDE) == Settled(1, needs_repair)


def test_a_complete_invoice_with_a_text_key_in_the_ledger_is_settled_by_its_identifier() -> None:
    sync = replace(BOOKED, cfo_transaction_id=None)
    assert draft(replace(PAID, status="complete"), sync, GUIDE) == Settled(1, needs_repair=False)


@pytest.mark.parametrize(
    "sync", [None, SyncRow("retry", None, None, adopted=False, retry_count=1, version="1")], ids=["none", "retry"]
)
def test_an_invoice_that_others_completed_is_not_booked(sync: SyncRow | None) -> None:
    assert draft(replace(PAID, status="complete"), sync, GUIDE) == NotPaid(1, "complete")


@pytest.mark.parametrize("sync_status", ["synced", "retry", "failed", "pending"])
def test_an_invoice_set_back_to_paid_is_drafted_again_whatever_its_mapping_says(sync_status: str) -> None:
    sync = replace(BOOKED, sync_status=sync_status)
    assert drafted(sync=sync).sync == sync


# -- drafts: what an invoice must have ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [None, "", "  ", "\t\n"], ids=repr)
def test_an_invoice_without_a_number_is_a_record_fault(number: str | None) -> None:
    assert fault_of(RecordFault, invoice_number=number) == "invoice-number-missing"


def test_an_invoice_without_a_client_is_a_record_fault() -> None:
    assert fault_of(RecordFault, client_id=None, client_name=None) == "client-missing"


def test_a_client_row_that_is_not_there_yet_is_transient() -> None:
    assert fault_of(Transient, client_name=None) == "client-not-there"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("100", "100.00"),
        ("100.5", "100.50"),
        ("100.00", "100.00"),
        ("100.10000000", "100.10"),
        ("0.01", "0.01"),
        ("1234567890123456.78", "1234567890123456.78"),
        ("9" * 40 + ".99", "9" * 40 + ".99"),
        ("1e3", "1000.00"),
        ("1.5e+05", "150000.00"),
    ],
)
def test_amounts_are_exact_to_the_cent(text: str, amount: str) -> None:
    found = drafted(amount_usd=text)
    assert str(found.amount) == found.values["amount"] == amount


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "amount-missing"),
        ("", "amount-invalid"),
        ("abc", "amount-invalid"),
        ("1,000.00", "amount-invalid"),
        ("$5", "amount-invalid"),
        ("NaN", "amount-invalid"),
        ("sNaN", "amount-invalid"),
        ("Infinity", "amount-invalid"),
        ("-Infinity", "amount-invalid"),
        ("9" * 100, "amount-invalid"),
        ("9" * 100_000, "amount-invalid"),
        ("1e+100", "amount-invalid"),
        ("1e999999", "amount-invalid"),
        ("0", "amount-not-positive"),
        ("0.00", "amount-not-positive"),
        ("-0", "amount-not-positive"),
        ("-0.01", "amount-not-positive"),
        ("-5000.00", "amount-not-positive"),
        ("0.001", "amount-not-cents"),
        ("100.005", "amount-not-cents"),
        ("99.999999999999999999", "amount-not-cents"),
        ("1e-100", "amount-not-cents"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_amount_that_is_not_positive_and_exact_to_the_cent_is_a_record_fault(text: str | None, code: str) -> None:
    assert fault_of(RecordFault, amount_usd=text) == code


@given(st.decimals(allow_nan=True, allow_infinity=True) | st.floats().map(Decimal))
@example(Decimal("1E+100"))
def test_every_amount_is_booked_exactly_or_is_a_record_fault(amount: Decimal) -> None:
    try:
        found = drafted(amount_usd=str(amount))
    except RecordFault:
        return
    assert found.amount == amount
    assert found.amount.as_tuple().exponent == -2
    assert found.values["amount"] == f"{amount:.2f}"


@given(st.integers(1, 10**18 - 1), st.integers(0, 6))
def test_no_cent_is_ever_lost(cents: int, zeros: int) -> None:
    text = f"{cents // 100}.{cents % 100:02}" + "0" * zeros
    assert drafted(amount_usd=text).amount * 100 == cents


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-10-22 14:30:00", datetime(2025, 10, 22, 14, 30, tzinfo=UTC)),
        ("2025-10-22 14:30:00.5", datetime(2025, 10, 22, 14, 30, 0, 500_000, tzinfo=UTC)),
        ("2025-10-22 14:30:00.123456", datetime(2025, 10, 22, 14, 30, 0, 123_456, tzinfo=UTC)),
        ("2025-10-22 14:30:00+00", datetime(2025, 10, 22, 14, 30, tzinfo=UTC)),
        ("2025-10-22 11:30:00-03", datetime(2025, 10, 22, 14, 30, tzinfo=UTC)),
        ("2025-10-22 20:00:00+05:30", datetime(2025, 10, 22, 14, 30, tzinfo=UTC)),
        ("2025-10-22", datetime(2025, 10, 22, tzinfo=UTC)),
    ],
)
def test_paid_at_is_read_as_utc(text: str, moment: datetime) -> None:
    found = drafted(paid_at=text)
    assert found.paid_at == moment
    assert found.paid_at.tzinfo == UTC
    assert found.values["date"] == moment.isoformat(sep=" ")


def test_a_missing_paid_at_is_the_latest_confirmed_payment_s_time() -> None:
    assert drafted(paid_at=None).paid_at == datetime(2025, 10, 22, 14, 29, tzinfo=UTC)


def test_an_invoice_that_nothing_dates_yet_is_transient() -> None:
    assert fault_of(Transient, paid_at=None, last_confirmed_at=None) == "paid-at-not-there"


@pytest.mark.parametrize(
    "text",
    ["infinity", "-infinity", "0044-03-15 00:00:00 BC", "10000-01-01 00:00:00", "0001-01-01 00:00:00+14", "soon"],
)
def test_a_time_that_no_ledger_can_hold_is_a_record_fault(text: str) -> None:
    assert fault_of(RecordFault, paid_at=text) == "paid-at-invalid"


# -- drafts: what is booked --------------------------------------------------------------------------------------------


def test_guide_transaction_of_an_invoice() -> None:
    assert drafted().values == {
        "date": "2025-10-22 14:30:00.500000+00:00",
        "description": f"Invoice {NUMBER} - Alps Blockchain - October 2025",
        "amount": "5000.00",
        "currency": "USDT",
        "classified_entity": "Delta Mining Paraguay S.A.",
        "business_unit": "Paraguay Mining",
        "classification_reason": "Crypto invoice payment from Alps Blockchain",
        "source_file": MARK,
        "transaction_type": "Revenue",
        "confidence": "1.0",
        "origin": "External Account",
        "destination": "Delta Paraguay Operations",
        "identifier": NUMBER,
    }
    assert drafted().classification.subcategory == "Client Hosting Revenue"
    assert drafted().source == MARK


@pytest.mark.parametrize("billing_period", [None, ""], ids=repr)
def test_a_description_without_a_billing_period_has_no_dangling_dash(billing_period: str | None) -> None:
    assert drafted(billing_period=billing_period).values["description"] == f"Invoice {NUMBER} - Alps Blockchain"


@pytest.mark.parametrize(
    ("own", "payment", "currency"), [("BTC", "USDC", "BTC"), (None, "USDC", "USDC"), ("", "USDC", "USDC"), (None,) * 3]
)
def test_the_currency_is_the_invoice_s_else_the_payment_s(
    own: str | None, payment: str | None, currency: str | None
) -> None:
    assert drafted(crypto_currency=own, payment_currency=payment).values["currency"] == currency


def test_a_template_can_take_every_field(tmp_path: Path) -> None:
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    lines = "\n".join(f'"x_{name}" = "{{{name}}}"' for name in sorted(templates.FIELDS))
    path = tmp_path / "mapping.toml"
    path.write_text(text.replace("[target.judgements]", f"[target.judgements]\n{lines}"), encoding="utf-8")
    values = drafted(rules=mapping.load(path)).values
    assert all(values[f"x_{name}"] for name in templates.FIELDS)
    assert values["x_transaction_hash"] == "0xabc"
    assert values["x_crypto_amount"] == values["x_amount_received"] == "5001.25"


def test_a_renumbered_invoice_keeps_the_identifier_under_which_it_was_booked() -> None:
    found = drafted(sync=BOOKED, invoice_number="DPY-2025-10-0099")
    assert (found.identifier, found.source, found.values["identifier"]) == (NUMBER, MARK, NUMBER)
    assert found.values["description"] == "Invoice DPY-2025-10-0099 - Alps Blockchain - October 2025"


texts = st.none() | st.text(max_size=12)


@given(
    st.builds(
        Invoice,
        id=st.integers(1, 2**31 - 1),
        status=st.sampled_from(["paid", "complete", "sent", None]) | texts,
        invoice_number=texts,
        client_id=texts,
        client_name=texts,
        amount_usd=texts | st.sampled_from(["100.00", "1e300", "NaN"]),
        paid_at=texts | st.datetimes(timezones=st.none() | st.timezones()).map(str) | st.just("infinity"),
        billing_period=texts,
        description=texts,
        crypto_currency=texts,
        crypto_amount=texts,
        crypto_network=texts,
        last_confirmed_at=texts,
        transaction_hash=texts,
        payment_currency=texts,
        amount_received=texts,
    ),
    st.none() | st.just(BOOKED),
)
@example(replace(PAID, amount_usd="1e+100"), None)
def test_any_row_gives_a_verdict_or_a_fault_and_never_another_error(invoice: Invoice, sync: SyncRow | None) -> None:
    """One invoice's data must never be the whole batch's error."""
    try:
        verdict = draft(invoice, sync, GUIDE)
    except Fault:
        return
    assert isinstance(verdict, Draft | Settled | NotPaid)


# -- placing drafts in the ledger --------------------------------------------------------------------------------------

OURS = LedgerRow(key="10", identifier=NUMBER, source=MARK, entity="Delta", mapped_to=None)
FOREIGN = LedgerRow(key="11", identifier=NUMBER, source="bank.csv", entity="Another", mapped_to=None)


def placed(each: Draft, *ledger: LedgerRow, taken: dict[str, int] | None = None) -> object:
    [step] = decide([each], ledger, taken or {}).values()
    return (type(step), step.row.key) if isinstance(step, Refresh | Adopt) else step


def refused(each: Draft, *ledger: LedgerRow, taken: dict[str, int] | None = None) -> str:
    step = placed(each, *ledger, taken=taken)
    assert isinstance(step, RecordFault)
    return step.code


def test_an_invoice_that_the_ledger_does_not_know_is_inserted() -> None:
    assert placed(drafted()) == Insert(drafted())
    assert placed(drafted(), replace(FOREIGN, identifier="another"), replace(FOREIGN, identifier=None)) == Insert(
        drafted()
    )


def test_our_row_without_a_mapping_is_ours_to_link() -> None:
    """What a crash between the two commits leaves."""
    assert placed(drafted(), OURS) == (Refresh, "10")


def test_our_mapped_row_is_refreshed() -> None:
    assert placed(drafted(sync=BOOKED), replace(OURS, mapped_to=1), taken={NUMBER: 1}) == (Refresh, "10")


def test_a_row_of_another_hand_is_adopted() -> None:
    assert placed(drafted(), FOREIGN) == (Adopt, "11")
    assert placed(drafted(), replace(FOREIGN, source=None)) == (Adopt, "11")


def test_an_adopted_row_stays_adopted() -> None:
    sync = replace(BOOKED, cfo_transaction_id=11, adopted=True)
    assert placed(drafted(sync=sync), replace(FOREIGN, mapped_to=1), taken={NUMBER: 1}) == (Adopt, "11")
    marked = replace(FOREIGN, source=MARK, mapped_to=1)
    assert placed(drafted(sync=sync), marked, taken={NUMBER: 1}) == (Adopt, "11")


def test_a_mapped_row_whose_mark_is_not_ours_is_never_changed() -> None:
    row = replace(OURS, source="edited by hand", mapped_to=1)
    assert placed(drafted(sync=BOOKED), row, taken={NUMBER: 1}) == (Adopt, "10")


def test_a_mapped_row_is_found_by_its_key_although_its_identifier_was_edited() -> None:
    row = replace(OURS, identifier="edited", mapped_to=1)
    assert placed(drafted(sync=BOOKED), row, taken={NUMBER: 1}) == (Refresh, "10")


def test_our_row_wins_over_another_hand_s_with_the_same_identifier() -> None:
    assert placed(drafted(), FOREIGN, OURS) == (Refresh, "10")


def test_a_mapped_row_wins_over_others_with_the_same_identifier() -> None:
    rows = [replace(OURS, mapped_to=1), FOREIGN, replace(FOREIGN, key="12")]
    assert placed(drafted(sync=BOOKED), *rows, taken={NUMBER: 1}) == (Refresh, "10")


def test_several_rows_of_other_hands_are_ambiguous() -> None:
    assert refused(drafted(), FOREIGN, replace(FOREIGN, key="12")) == "identifier-ambiguous"


def test_several_rows_with_our_mark_are_ambiguous() -> None:
    assert refused(drafted(), OURS, replace(OURS, key="12")) == "identifier-ambiguous"


def test_a_row_that_is_mapped_to_another_invoice_is_taken() -> None:
    assert refused(drafted(), replace(FOREIGN, mapped_to=2)) == "transaction-taken"
    assert refused(drafted(), replace(OURS, mapped_to=2)) == "transaction-taken"


def test_a_mapping_that_points_to_another_invoice_s_row_does_not_change_it() -> None:
    sync = replace(BOOKED, cfo_transaction_id=20)
    theirs = LedgerRow("20", "DPY-2", "crypto_invoice_DPY-2", "Delta", mapped_to=2)
    assert placed(drafted(sync=sync), theirs, taken={NUMBER: 1}) == Insert(drafted(sync=sync))


def test_a_number_that_another_invoice_was_booked_under_is_taken() -> None:
    assert refused(drafted(), replace(OURS, mapped_to=2), taken={NUMBER: 2}) == "identifier-taken"
    assert refused(drafted(), taken={NUMBER: 2}) == "identifier-taken"


def test_of_two_drafts_with_one_identifier_the_older_invoice_is_booked_and_the_other_refused() -> None:
    first, second = drafted(id=1), drafted(id=2)
    for order in ([first, second], [second, first]):
        steps = decide(order, [], {})
        assert steps[1] == Insert(first)
        assert isinstance(fault := steps[2], RecordFault)
        assert fault.code == "identifier-taken"
        assert "invoice 1" in fault.message


def test_a_renumbered_invoice_and_the_heir_of_its_number_do_not_meet() -> None:
    renumbered = drafted(sync=BOOKED, invoice_number="DPY-2025-10-0099")
    heir = drafted(id=2)
    steps = decide([renumbered, heir], [replace(OURS, mapped_to=1)], {NUMBER: 1})
    assert isinstance(steps[1], Refresh)
    assert isinstance(fault := steps[2], RecordFault)
    assert fault.code == "identifier-taken"


def test_a_booking_that_the_cfo_deleted_is_booked_again() -> None:
    assert placed(drafted(sync=BOOKED), taken={NUMBER: 1}) == Insert(drafted(sync=BOOKED))


def test_a_fault_of_one_draft_leaves_the_others_alone() -> None:
    others = [drafted(id=number, invoice_number=f"N-{number}") for number in range(2, 50)]
    steps = decide([*others, drafted()], [FOREIGN, replace(FOREIGN, key="12")], {})
    assert isinstance(steps.pop(1), RecordFault)
    assert all(isinstance(step, Insert) for step in steps.values())
    assert set(steps) == set(range(2, 50))


# -- ledgers of another shape ------------------------------------------------------------------------------------------


@pytest.fixture
def unmarked(tmp_path: Path) -> Mapping:
    """A ledger without a column for the source mark."""
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    text = text.replace('source = "source_file"', "").replace('source_file = "crypto_invoice_{identifier}"', "")
    path = tmp_path / "mapping.toml"
    path.write_text(text, encoding="utf-8")
    return mapping.load(path)


def test_without_a_source_column_only_the_mapping_tells_which_row_is_ours(unmarked: Mapping) -> None:
    row = LedgerRow("10", NUMBER, None, None, mapped_to=None)
    assert placed(drafted(rules=unmarked)) == Insert(drafted(rules=unmarked))
    assert placed(drafted(rules=unmarked), row) == (Adopt, "10")
    mapped = replace(row, mapped_to=1)
    assert placed(drafted(rules=unmarked, sync=BOOKED), mapped, taken={NUMBER: 1}) == (Refresh, "10")
    adopted = replace(BOOKED, adopted=True)
    assert placed(drafted(rules=unmarked, sync=adopted), mapped, taken={NUMBER: 1}) == (Adopt, "10")


def test_with_a_text_key_the_identifier_leads_to_our_row(unmarked: Mapping) -> None:
    sync = replace(BOOKED, cfo_transaction_id=None)
    row = LedgerRow("5f2c", NUMBER, MARK, "Delta", mapped_to=None)
    assert placed(drafted(sync=sync), row, taken={NUMBER: 1}) == (Refresh, "5f2c")
    bare = replace(row, source=None)
    assert placed(drafted(rules=unmarked, sync=sync), bare, taken={NUMBER: 1}) == (Refresh, "5f2c")
    assert placed(drafted(sync=replace(sync, adopted=True)), bare, taken={NUMBER: 1}) == (Adopt, "5f2c")
