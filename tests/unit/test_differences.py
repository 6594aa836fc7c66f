"""Comparing an invoice with its transactions: values as columns hold them, whose a row is, and what a verdict says."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from consumer import mapping
from consumer.comparison import Comparison, assign
from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.differences import EXISTENCE, KINDS, Difference, Summary
from consumer.facts import find_facts, month_of

RULES = mapping.load()
TYPES = {"date": "timestamp without time zone", "amount": "numeric(18,2)", "currency": "character varying(20)"}
GUIDE = Comparison(find_facts(RULES.target, TYPES), RULES.target.fixed["source_file"])
BOOKED = InvoiceRow(
    key="A-1", id="1", state="complete", number="A-1", client="Alps Blockchain", amount="100.00",
    paid_at="2025-10-22 23:30:00", currency="USDT", last_confirmed_at=None, payment_currency=None, young=None,
    sync_status="synced", transaction_id="7", identifier="A-1", recorded="y", adopted=None, version="1",
)  # fmt: skip
ADOPTED = BOOKED._replace(adopted="y")
UNBOOKED = BOOKED._replace(
    state="paid", sync_status=None, transaction_id=None, identifier=None, recorded=None, version=None
)
OURS = TransactionRow("7", "A-1", "crypto_invoice_A-1", "y", "100.00", "2025-10-22 23:30:00", "USDT")
THEIRS = OURS._replace(source="bank.csv", marked=None)


def kinds(invoice: InvoiceRow, *rows: TransactionRow, comparison: Comparison = GUIDE) -> list[str]:
    return [each.kind for each in comparison.judge(invoice, rows).differences]


def types(**changed: str) -> Comparison:
    return Comparison(find_facts(RULES.target, TYPES | changed), GUIDE.marker)


# -- facts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date_type", "found", "is_same"),
    [
        ("timestamp without time zone", "2025-10-22 23:30:00", True),
        ("timestamp without time zone", "2025-10-22 23:30:00.000001", False),
        ("timestamp with time zone", "2025-10-22 23:30:00+00", True),
        ("timestamp with time zone", "2025-10-22 20:30:00-03", True),
        ("timestamp with time zone", "2025-10-22 23:30:00-03", False),
        ("date", "2025-10-22", True),
        ("date", "2025-10-23", False),
        ("text", "2025-10-22 23:30:00+00:00", True),
        ("text", "2025-10-23T01:30:00+02:00", True),
        ("text", "22 October", False),
        ("timestamp without time zone", "infinity", False),
        ("timestamp without time zone", None, False),
    ],
)
def test_dates_are_compared_as_the_column_holds_them(date_type: str, found: str | None, is_same: bool) -> None:
    row = OURS._replace(date=found)
    comparison = types(date=date_type)
    assert kinds(BOOKED, row, comparison=comparison) == ([] if is_same else ["date-differs"])
    assert comparison.is_plain(BOOKED, row) is is_same


def test_a_column_that_rounds_seconds_is_no_difference() -> None:
    comparison = types(date="timestamp(0) without time zone")
    late = BOOKED._replace(paid_at="2025-10-31 23:59:59.5")
    assert kinds(late, OURS._replace(date="2025-11-01 00:00:00"), comparison=comparison) == []
    assert kinds(late, OURS._replace(date="2025-10-31 23:59:59"), comparison=comparison) == ["date-differs"]


@pytest.mark.parametrize(
    ("amount_type", "found", "is_same"),
    [
        ("numeric(18,2)", "100.00", True), ("numeric", "100", True), ("numeric(20,6)", "100.000000", True),
        ("numeric(20,6)", "100.000001", False), ("money", "100.00", True), ("text", " 100.0 ", True),
        ("text", "100,00", False), ("text", "NaN", False), ("text", "", False), ("double precision", "100", True),
    ],
)  # fmt: skip
def test_amounts_are_compared_as_numbers(amount_type: str, found: str, is_same: bool) -> None:
    row = OURS._replace(amount=found)
    assert kinds(BOOKED, row, comparison=types(amount=amount_type)) == ([] if is_same else ["amount-differs"])


def test_amounts_are_exact_beyond_a_floats_digits() -> None:
    big = BOOKED._replace(amount="9007199254740993.01")
    assert kinds(big, OURS._replace(amount="9007199254740993.01")) == []
    [difference] = GUIDE.judge(big, [OURS._replace(amount="9007199254740993.02")]).differences
    assert (difference.kind, difference.usd) == ("amount-differs", Decimal("0.01"))


def test_an_empty_currency_is_none() -> None:
    assert kinds(BOOKED._replace(currency=None), OURS._replace(currency=None)) == []
    assert kinds(BOOKED._replace(currency=None), OURS._replace(currency="")) == []
    assert kinds(BOOKED._replace(currency=None, payment_currency="BTC"), OURS._replace(currency="BTC")) == []
    assert kinds(BOOKED, OURS._replace(currency=None)) == ["currency-differs"]


@pytest.mark.parametrize(
    ("text", "month"),
    [
        ("2025-10-31 23:59:59", "2025-10"), ("2025-10-31", "2025-10"), ("2025-10-31 23:59:59.123456+00", "2025-10"),
        ("2025-10-31T23:59:59-03:00", "2025-11"), ("2025-11-01 00:30:00+02:00", "2025-10"),
        (None, "unknown"), ("infinity", "unknown"), ("last week", "unknown"),
    ],
)  # fmt: skip
def test_months_are_of_utc(text: str | None, month: str) -> None:
    assert month_of(text) == month


def test_a_fact_that_no_column_holds_alone_is_not_compared_and_named() -> None:
    columns = {name: text for name, text in RULES.target.facts.items() if name != "currency"}
    target = RULES.target.model_copy(update={"facts": columns})
    comparison = Comparison(find_facts(target, TYPES), GUIDE.marker)
    assert comparison.not_compared == ("currency",)
    assert kinds(BOOKED, OURS._replace(currency="BTC"), comparison=comparison) == []


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("invoice", "rows", "expected"),
    [
        (BOOKED, [OURS], []),
        (BOOKED, [], ["synced-without-transaction"]),
        (UNBOOKED, [], ["missing-transaction"]),
        (UNBOOKED._replace(state="complete"), [], ["missing-transaction"]),
        (UNBOOKED, [THEIRS], ["missing-transaction"]),
        (UNBOOKED._replace(state="complete"), [THEIRS], ["complete-without-mapping"]),
        (UNBOOKED._replace(state="complete"), [OURS], ["complete-without-mapping"]),
        (BOOKED._replace(sync_status="retry"), [OURS], ["complete-without-mapping"]),
        (BOOKED._replace(state="paid", sync_status="retry"), [OURS], []),  # reopened, and its booking is awaited
        (BOOKED._replace(state="draft"), [OURS], ["invoice-not-paid"]),
        (BOOKED._replace(state=None), [OURS], ["orphan-transaction"]),
        (BOOKED._replace(state=None, adopted="y"), [THEIRS], []),  # nobody's again
        (BOOKED._replace(state="draft", adopted="y"), [THEIRS], ["invoice-not-paid"]),
        (UNBOOKED._replace(state="draft"), [THEIRS], []),
        (BOOKED._replace(state="draft"), [], ["synced-without-transaction"]),
        (BOOKED, [OURS, THEIRS._replace(key="8")], ["duplicate-transaction"]),
        (BOOKED, [OURS._replace(key="8")], ["mapped-elsewhere"]),
        (BOOKED, [OURS._replace(identifier="B-1")], ["mapped-elsewhere"]),
        (BOOKED._replace(adopted="y"), [THEIRS], []),
        (BOOKED, [THEIRS._replace(amount="1.00")], ["adopted-differs"]),  # its mark was taken off
        (BOOKED._replace(adopted="y"), [OURS._replace(amount="1.00", currency="BTC")], ["adopted-differs"]),
        (BOOKED._replace(adopted="y"), [OURS._replace(date="2025-10-22 00:00:00")], []),  # people know the day
        (BOOKED._replace(adopted="y"), [OURS._replace(date="2025-10-21 23:59:59")], ["adopted-differs"]),
        (BOOKED, [OURS._replace(key="8", amount="1.00")], ["mapped-elsewhere", "amount-differs"]),
    ],
)
def test_one_kind_of_existence_at_most_and_then_the_facts(
    invoice: InvoiceRow, rows: list[TransactionRow], expected: list[str]
) -> None:
    assert kinds(invoice, *rows) == expected
    assert sum(kind in EXISTENCE for kind in expected) <= 1


@pytest.mark.parametrize("rows", [[], [OURS], [THEIRS]])
def test_what_was_paid_a_moment_ago_is_in_flight(rows: list[TransactionRow]) -> None:
    verdict = GUIDE.judge(UNBOOKED._replace(young="y"), rows)
    assert (verdict.differences, verdict.is_in_flight) == ((), True)


def test_a_complete_invoice_is_never_in_flight() -> None:
    assert kinds(UNBOOKED._replace(state="complete", young="y")) == ["missing-transaction"]
    assert kinds(UNBOOKED._replace(sync_status="failed", young="y")) == ["missing-transaction"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"amount": "0.00"}, "amount-not-positive"), ({"amount": None}, "amount-missing"),
        ({"amount": "1.005"}, "amount-not-cents"), ({"paid_at": None}, "paid-at-not-there"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("invoice", "rows"), [(UNBOOKED, []), (UNBOOKED, [THEIRS]), (BOOKED, []), (BOOKED, [OURS._replace(key="8")])]
)
def test_what_no_repair_can_book_is_for_people_and_says_why(
    invoice: InvoiceRow, rows: list[TransactionRow], change: dict[str, Any], code: str
) -> None:
    [good, *_] = GUIDE.judge(invoice, rows).differences
    assert (good.is_repairable, good.fingerprint) == (True, None)
    [bad, *_] = GUIDE.judge(invoice._replace(**change), rows).differences
    assert not bad.is_repairable
    assert code in bad.detail
    [other, *_] = GUIDE.judge(invoice._replace(**change)._replace(amount="-7"), rows).differences
    assert None is not bad.fingerprint != other.fingerprint, "acknowledged exactly as it is"


def test_what_may_be_a_booking_between_its_two_commits_is_to_be_looked_at_again() -> None:
    assert GUIDE.judge(UNBOOKED, [OURS]).may_pass
    assert not GUIDE.judge(UNBOOKED, []).may_pass
    assert not GUIDE.judge(UNBOOKED._replace(state="complete"), [OURS]).may_pass


def test_a_fingerprint_is_one_of_exact_values() -> None:
    def fingerprint(row: TransactionRow, invoice: InvoiceRow = ADOPTED) -> str | None:
        [difference] = GUIDE.judge(invoice, [row]).differences
        return difference.fingerprint

    base = THEIRS._replace(amount="99.00")
    same = fingerprint(base)
    assert same is not None
    assert fingerprint(base._replace(source="another mark")) == same
    changed = [
        fingerprint(base._replace(amount="99.01")), fingerprint(base._replace(currency="BTC")),
        fingerprint(base, ADOPTED._replace(amount="100.01")),
        fingerprint(base._replace(key="8"), ADOPTED._replace(transaction_id="8")),
    ]  # fmt: skip
    assert len({same, *changed}) == 5


# -- whose a row is ----------------------------------------------------------------------------------------------------


def owners(invoices: list[InvoiceRow], *rows: TransactionRow) -> dict[str, str]:
    return {key: owner.id for key, owner in assign(GUIDE, invoices, rows)[1].items()}


def test_a_row_belongs_to_the_invoice_that_its_key_is_mapped_to() -> None:
    other = UNBOOKED._replace(id="2", key="B-1")
    assert owners([BOOKED, other], OURS._replace(identifier="B-1")) == {"7": "1"}


def test_of_several_invoices_with_a_number_the_one_booked_under_it_has_its_rows() -> None:
    renumbered = BOOKED._replace(id="9", transaction_id="70")
    older = UNBOOKED._replace(id="3")
    assert owners([older, renumbered], OURS) == {"7": "9"}
    assert owners([UNBOOKED._replace(id="5", state="draft"), UNBOOKED._replace(id="6"), UNBOOKED._replace(id="10")],
                  OURS) == {"7": "6"}  # fmt: skip


def test_a_reserved_identifier_finds_our_row_and_nobody_elses() -> None:
    renumbered = UNBOOKED._replace(key="B-1", number="B-1", identifier="A-1", sync_status="pending")
    assert owners([renumbered], OURS) == {"7": "1"}
    assert owners([renumbered], THEIRS) == {}
    assert not GUIDE.is_plain_alone(renumbered._replace(state="draft"))


# -- the summary -------------------------------------------------------------------------------------------------------


def test_a_summary_names_every_kind_and_writes_amounts_with_two_decimals() -> None:
    summary = Summary(datetime(2025, 10, 22, tzinfo=UTC))
    assert summary.agrees
    [difference] = GUIDE.judge(BOOKED._replace(amount="1.5"), [OURS]).differences
    summary.add(difference)
    answer = summary.as_dict()
    assert set(answer["counts"]) == set(answer["usd"]) == set(answer["repairable"]) == set(KINDS)
    assert (answer["agrees"], answer["usd"]["amount-differs"], answer["usd"]["date-differs"]) == (
        False,
        "98.50",
        "0.00",
    )
    assert answer["started_at"] == "2025-10-22T00:00:00Z"
    assert set(difference.as_dict()) == {
        "kind", "invoice_id", "invoice_number", "identifier", "client", "invoice_status", "sync_status", "transaction",
        "usd", "expected", "found", "detail", "repairable", "acknowledgeable",
    }  # fmt: skip
    assert isinstance(difference, Difference)
