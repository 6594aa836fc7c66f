"""`cfo-sync reconcile` as people and programs see it: the report, JSON, CSV, exit codes, repair, acknowledgement."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog

from consumer import cli
from consumer.differences import KINDS
from consumer.settings import PREFIX, Settings
from deploy.local.stack import Stack
from tests.conftest import make_settings
from tests.integration.reconciling import Books
from tests.integration.scenes import invoice_dsn, login_role
from tests.roles import API, as_role

Call: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def books(dsn: str) -> Iterator[Books]:
    books = Books(make_settings(dsn))
    yield books
    books.close()


@pytest.fixture
def call(
    books: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """Run `cfo-sync reconcile`; gives exit code, standard output and standard error."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", as_role(API, invoice_dsn(books.settings)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    handlers, level = logging.root.handlers, logging.root.level

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cfo-sync", "reconcile", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    yield call
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def plant(books: Books) -> tuple[int, int]:
    """One invoice is missing, another has another amount, and there is an orphan."""
    books.booked("A-1", "10.00")
    missing, other = books.paid("B-1", "20.00"), books.booked("C-1", "30.00")
    books.ledger.execute("UPDATE transactions SET amount = 31.50 WHERE identifier = 'C-1'")
    books.ours("D-1", "40.00")
    return missing, other


def test_books_that_agree(books: Books, call: Call) -> None:
    books.booked("A-1")
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "Invoices and ledger agree."
    assert not any(kind in out for kind in KINDS)


def test_the_report_names_what_differs_and_the_last_line_says_so(books: Books, call: Call) -> None:
    plant(books)
    code, out, _ = call("--limit", "2")
    assert code == 1
    assert "Compared 3 paid or complete invoices with 3 transactions" in out
    assert "    column amount: invoice 30.00, ledger 31.50\n" in out
    assert "and 1 more: --json and --csv list all" in out
    assert out.splitlines()[-1] == "Invoices and ledger do not agree: 3 differences, 2 of them repairable (--repair)."


def test_json_is_one_document(books: Books, call: Call) -> None:
    missing, other = plant(books)
    code, out, err = call("--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert [(each["kind"], each["invoice_id"], each["usd"]) for each in document["differences"]] == [
        ("missing-transaction", missing, "20.00"),
        ("amount-differs", other, "1.50"),
        ("orphan-transaction", None, "40.00"),
    ]
    summary = document["summary"]
    assert (summary["agrees"], summary["differences"], summary["counts"]["amount-differs"]) == (False, 3, 1)
    assert summary["totals"] == {"invoices": "60.00", "ledger": "81.50", "difference": "21.50"}
    books.ledger.execute("DELETE FROM transactions")
    books.invoices.connection.execute("TRUNCATE crypto_invoices, crypto_invoice_cfo_sync")
    code, out, _ = call("--json")
    assert (code, json.loads(out)["differences"]) == (0, [])


def test_csv_is_no_formula_and_a_terminal_gets_no_control_characters(books: Books, call: Call) -> None:
    books.paid("=HYPERLINK(1)", client="\x1b[31m@evil\u202e")
    code, out, _ = call("--csv")
    assert code == 1
    [row] = csv.DictReader(io.StringIO(out))
    assert (row["kind"], row["identifier"], row["usd"]) == ("missing-transaction", "'=HYPERLINK(1)", "100.00")
    for arguments in ((), ("--csv",)):
        _, out, _ = call(*arguments)
        assert "\x1b[31m" not in out
        assert "\u202e" not in out


def test_a_repair_without_yes_and_without_a_terminal_only_shows(books: Books, call: Call) -> None:
    plant(books)
    code, out, _ = call("--repair")
    assert code == 1
    assert "of 2 invoices: 1 missing-transaction, 1 amount-differs." in out
    assert "1 is for people to decide" in out
    assert "Nothing was changed" in out
    assert len(books.ledger.of("B-1")) == 0


def test_a_repair_books_what_is_missing_and_says_what_is_left(books: Books, call: Call) -> None:
    missing, other = plant(books)
    code, out, _ = call("--repair", "--yes", "--by", "clerk")
    assert code == 1
    assert "Repaired: 1 inserted, 1 refreshed." in out
    assert out.splitlines()[-1] == "Invoices and ledger do not agree: 1 difference, 0 of them repairable (--repair)."
    assert [books.ledger.of(number)[0]["amount"] for number in ("B-1", "C-1")] == [20, 30]
    actions = books.invoices.rows(
        "SELECT invoice_id, done_by, details ->> 'result' AS r FROM cfo_sync_actions ORDER BY 1"
    )
    assert actions == [
        {"invoice_id": missing, "done_by": "clerk", "r": "inserted"},
        {"invoice_id": other, "done_by": "clerk", "r": "refreshed"},
    ]
    runs = books.invoices.rows(
        "SELECT requested_by, summary -> 'differences' AS n FROM cfo_sync_reconciliations ORDER BY id"
    )
    assert runs == [{"requested_by": "clerk", "n": 3}, {"requested_by": "clerk", "n": 1}]
    code, out, _ = call("--repair", "--yes", "--json")
    assert code == 1
    assert json.loads(out)["repair"]["done"] is False  # nothing left that it could mend


def test_a_repair_as_json(books: Books, call: Call) -> None:
    plant(books)
    books.ledger.execute("DELETE FROM transactions WHERE identifier = 'D-1'")
    code, out, err = call("--repair", "--yes", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["repair"]["done"], document["repair"]["inserted"], document["repair"]["faults"]) == (True, 1, [])
    assert (document["repair"]["before"]["differences"], document["summary"]["differences"]) == (2, 0)
    assert "Repaired" in err


def test_acknowledging(books: Books, call: Call) -> None:
    books.theirs("X-1", "99.00")
    invoice_id = books.booked("X-1")
    plain = books.booked("Y-1")
    assert call()[0] == 1
    code, _, err = call("--acknowledge", str(plain), "--reason", "why not")
    assert (code, err) == (
        1,
        f"nothing about invoice {plain} can be acknowledged: only what --repair cannot mend can be\n",
    )
    code, out, _ = call("--acknowledge", str(invoice_id), "--reason", "bank fee", "--by", "clerk")
    assert (code, out) == (
        0, f"acknowledged: adopted-differs of invoice {invoice_id}, amount of a transaction by another hand\n",
    )  # fmt: skip
    code, out, _ = call()
    assert (code, "1 acknowledged." in out) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--json", "--csv"), ("--yes",), ("--acknowledge", "1"), ("--reason", "x"), ("--since", "yesterday"),
        ("--acknowledge", "1", "--reason", " "), ("--acknowledge", "1", "--reason", "x", "--repair"),
    ],
)  # fmt: skip
def test_wrong_usage(call: Call, arguments: tuple[str, ...]) -> None:
    assert call(*arguments)[0] == 2


def test_an_unreachable_database(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", "postgresql://cfo:hunter2@127.0.0.1:1/invoicing")
    code, out, err = call("--json")
    assert (code, out) == (3, "")
    assert "hunter2" not in err


def test_a_role_that_may_only_read_reconciles_too(
    books: Books, call: Call, postgres: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(books)
    with login_role(postgres.postgres.superuser_dsn(), invoice_dsn(books.settings)) as dsn:
        tables: Any = (
            "crypto_invoices, crypto_clients, crypto_payment_transactions, crypto_invoice_cfo_sync, transactions,"
            " cfo_sync_acknowledgements"
        )
        name = dsn.split("//")[1].split(":")[0]
        books.invoices.connection.execute(f"GRANT SELECT ON {tables} TO {name}".encode())
        monkeypatch.setenv(PREFIX + "INVOICE_DSN", dsn)
        code, out, err = call()
    assert code == 1
    assert "do not agree: 3 differences" in out
    assert err.startswith("cfo-sync: this run is not on record: ")
