"""Reconciliation of ledgers that are not the guide's: values are compared as the ledger's columns hold them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from consumer.faults import Outage
from tests.conftest import make_settings
from tests.integration.reconciling import PAID, Books
from tests.integration.scenes import grant_ledger, write_mapping

Edits: TypeAlias = tuple[tuple[str, str], ...]

SOURCELESS: Final[Edits] = (
    ('source = "source_file" ', "#"), ("unique_where", "# unique_where"), ("source_file = ", "# source_file = "),
)  # fmt: skip
TEXT_KEY: Final[Edits] = (
    ('id = "id"', 'id = "txn"'),
    ("[target.fixed]", '[target.fixed]\ntxn = "{sha256(identifier)}"'),
)


@pytest.fixture
def books(dsn: str) -> Iterator[Books]:
    books = Books(make_settings(dsn))
    yield books
    books.close()


def begin(books: Books, tmp_path: Path, *statements: str, edits: Edits = ()) -> Books:
    """The same databases with an altered ledger, and a mapping file that fits it."""
    for statement in statements:
        books.ledger.execute(statement)
    settings = books.settings.model_copy(update={"mapping_file": write_mapping(tmp_path, *edits)})
    grant_ledger(settings)
    return Books(settings)


@pytest.mark.parametrize(
    ("statements", "edits", "date", "amount"),
    [
        (("ALTER date TYPE date",), (), "2025-10-21", "99"),
        (("ALTER date TYPE timestamptz",), (), "2025-10-22 23:30:01+00", "99"),
        (("ALTER date TYPE text",), (), "2025-10-22", "99"),
        (("ALTER date TYPE date",), (('"{paid_at}"', '"{date(paid_at)}"'),), "2025-10-21", "99"),
        (("ALTER amount TYPE text",), (), "2025-10-23", "about 100"),
        (("ALTER amount TYPE money",), (), "2025-10-23", "99.99"),
        (("ALTER identifier TYPE char(80)", "ALTER currency TYPE char(9)"), (), "2025-10-23", "99"),
        (('RENAME amount TO "amount (100 %)"',), (("amount = ", '"amount (100 %)" = '),), "2025-10-23", "99"),
        (("DROP COLUMN id", "ADD txn text PRIMARY KEY"), TEXT_KEY, "2025-10-23", "99"),
        (("DROP COLUMN source_file",), SOURCELESS, "2025-10-23", "99"),
    ],
)  # fmt: skip
def test_what_was_booked_agrees_and_what_was_changed_does_not(
    books: Books, tmp_path: Path, statements: tuple[str, ...], edits: Edits, date: str, amount: str
) -> None:
    own = begin(books, tmp_path, *(f"ALTER TABLE transactions {each}" for each in statements), edits=edits)
    invoice_id = own.booked("A-1")
    own.invoices.update(invoice_id, paid_at="2025-10-22 23:30:00.4", status="paid")
    own.service.sync_invoice_to_cfo(invoice_id)
    try:
        summary = own.run()
        assert summary.agrees, own.kept
        assert summary.totals.ledger == Decimal(100)
        column = '"amount (100 %)"' if "%" in str(edits) else "amount"
        own.ledger.execute(f"UPDATE transactions SET date = '{date}', {column} = '{amount}'")
        assert [(each[0], each[1]) for each in own.found()] == [
            ("amount-differs", invoice_id), ("date-differs", invoice_id),
        ]  # fmt: skip
        assert own.repair().counts["refreshed"] == 1
        assert own.run().agrees
    finally:
        own.close()


def test_without_a_source_column_only_the_mapping_tells_what_is_ours(books: Books, tmp_path: Path) -> None:
    own = begin(books, tmp_path, "ALTER TABLE transactions DROP COLUMN source_file", edits=SOURCELESS)
    try:
        kept, lost, deleted = own.booked("A-1"), own.booked("B-1"), own.booked("C-1")
        own.theirs("B-2")
        own.theirs("D-1", "5.00")
        adopted = own.booked("D-1")
        own.forget(lost)
        own.invoices.delete(deleted)
        own.run()
        assert sorted((each.kind, each.invoice_id) for each in own.kept) == [
            ("adopted-differs", adopted), ("complete-without-mapping", lost), ("orphan-transaction", deleted),
        ]  # fmt: skip
        assert own.repair().counts["adopted"] == 1  # nothing says any more that we made it
        assert kept
    finally:
        own.close()


def test_keys_that_are_no_numbers_are_linked_by_the_identifier(books: Books, tmp_path: Path) -> None:
    own = begin(
        books, tmp_path,
        "ALTER TABLE transactions DROP COLUMN id", "ALTER TABLE transactions ADD txn text PRIMARY KEY",
        edits=TEXT_KEY,
    )  # fmt: skip
    try:
        first, gone = own.booked("A-1"), own.booked("B-1")
        own.ledger.execute("DELETE FROM transactions WHERE identifier = 'B-1'")
        own.ledger.execute("INSERT INTO transactions (txn, date, amount, identifier) VALUES ('x', %s, 5, 'C-1')", PAID)
        adopted = own.booked("C-1")
        own.ledger.execute(
            "INSERT INTO transactions (txn, date, amount, identifier, source_file)"
            " VALUES ('y', %s, 5, 'D-1', 'crypto_invoice_D-1')", PAID,
        )  # fmt: skip
        own.invoices.update(first, status="cancelled")
        own.run()
        assert sorted((each.kind, each.invoice_id, each.identifier) for each in own.kept) == [
            ("adopted-differs", adopted, "C-1"), ("invoice-not-paid", first, "A-1"),
            ("orphan-transaction", None, "D-1"), ("synced-without-transaction", gone, "B-1"),
        ]  # fmt: skip
    finally:
        own.close()


def test_a_mark_that_only_a_function_makes_is_recognised(books: Books, tmp_path: Path) -> None:
    own = begin(
        books, tmp_path, edits=(('"crypto_invoice_{identifier}"', '"{md5(identifier)}"'), ("unique_where", "#"))
    )
    try:
        own.booked("A-1")
        own.ledger.execute("UPDATE transactions SET identifier = 'A-2', source_file = md5('A-2')")
        own.theirs("A-3")
        own.run()
        assert [(each.kind, each.identifier) for each in own.kept] == [("mapped-elsewhere", "A-1")]
        own.invoices.connection.execute("TRUNCATE crypto_invoices, crypto_invoice_cfo_sync")
        assert [(each.kind, each.identifier) for each in (own.one(),)] == [("orphan-transaction", "A-2")]
    finally:
        own.close()


def test_a_condition_that_holds_for_other_hands_too_does_not_make_their_rows_ours(books: Books, tmp_path: Path) -> None:
    condition = "unique_where = \"amount > 0 AND description NOT LIKE '%draft%'\" #"
    own = begin(books, tmp_path, edits=(("unique_where = ", condition),))
    try:
        own.booked("A-1")
        own.theirs("A-0")
        own.theirs("A-2")
        assert own.run().agrees
    finally:
        own.close()


def test_a_condition_that_is_no_sql_is_an_outage_of_the_schema(books: Books, tmp_path: Path) -> None:
    own = begin(books, tmp_path, edits=(("unique_where = ", 'unique_where = "no_such_column = 1" #'),))
    try:
        with pytest.raises(Outage, match="no_such_column"):
            own.run()
    finally:
        own.close()
