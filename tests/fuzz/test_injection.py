"""Texts that look like orders to SQL, terminals, logs, spreadsheets and JSON: booked to the letter, and only shown."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import structlog

from consumer import dlq_views, logs
from consumer.deadletters import FIELDS, Entry
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.texts import printable
from tests.fuzz.strategies import TEXTS
from tests.integration.scenes import execute, ledger_dsn
from tests.integration.test_invoice_cli import Call
from tests.integration.web import serving
from tests.support import InvoiceSystem, LedgerView
from tests.unit.test_deadletters import letter

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def assert_harmless(text: str, *, lines: bool = True) -> None:
    """Nothing in it moves a cursor, reorders text or begins a line, but for our own line ends."""
    marks = {mark for mark in text if unicodedata.category(mark) in ("Cc", "Zl", "Zp")} - ({"\n"} if lines else set())
    assert not marks
    assert not set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(text)


def make_invoices(invoices: InvoiceSystem, **columns: Any) -> dict[int, tuple[str, str]]:
    """A paid invoice for each text, which stands in every column that takes one; gives number and text by id."""
    made = {}
    for number, text in enumerate(TEXTS):
        name = f"{number:02}{text}"[:50]
        invoice_id = invoices.create_test_invoice(
            client=text + str(number),
            currency=text[:20],
            network=text[:50],
            invoice_number=name,
            billing_period=text[:100],
            description=text,
            notes=text,
            memo_tag=text[:100],
            **columns,
        )
        invoices.mark_invoice_as_paid(invoice_id, tx_hash=f"{text}{number}"[:255])
        made[invoice_id] = (name, text)
    return made


def test_every_text_is_booked_to_the_letter_and_no_statement_is_another(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    bystander = ledger.insert(["date", "amount", "identifier", "description"], "2025-01-01", 1, "bystander", "x")
    made = make_invoices(invoices)
    outcomes = service.sync(dict.fromkeys(made, 0))
    assert {type(outcome).__name__ for outcome in outcomes.values()} == {"Booked"}
    for number, (invoice_id, (name, text)) in enumerate(made.items()):
        [row] = ledger.of(name)
        client = text + str(number)
        period = f" - {text[:100]}" if text else ""
        assert row["description"] == f"Invoice {name} - {client}{period}"
        assert row["classification_reason"] == f"Crypto invoice payment from {client}"
        assert (row["source_file"], row["currency"]) == (f"crypto_invoice_{name}", text[:20])
        assert row["amount"] == Decimal("100.00")
        [logged] = invoices.log(invoice_id)
        assert row["description"] in logged["request_payload"].values()
    assert [row["id"] for row in ledger.of("bystander")] == [bystander]
    assert ledger.count() == len(made) + 1
    assert invoices.value("SELECT count(*) FROM crypto_invoices WHERE status = 'complete'") == len(made)
    assert invoices.value("SELECT count(*) FROM crypto_clients") == len(made)


def test_a_text_that_the_ledger_cannot_hold_is_that_invoice_s_fault_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    execute(ledger_dsn(settings), "ALTER TABLE transactions ALTER COLUMN currency TYPE varchar(5)")
    good = invoices.paid_invoice()
    long = {invoices.paid_invoice(currency=text[:20]) for text in TEXTS if len(text[:20].rstrip(" ")) > 5}
    outcomes = service.sync(dict.fromkeys([good, *long], 0))
    assert {invoice_id for invoice_id, outcome in outcomes.items() if type(outcome).__name__ == "Booked"} == {good}
    answer = service.sync_invoice_to_cfo(min(long), force_retry=True)
    assert (answer["success"], answer["error_code"]) == (False, "sqlstate-22001")
    assert ledger.count() == 1


@pytest.fixture
def failed(service: CFOSyncService, invoices: InvoiceSystem) -> dict[int, tuple[str, str]]:
    """Invoices that failed, with the texts in their errors too."""
    made = make_invoices(invoices, amount=None)
    for invoice_id, (_, text) in made.items():
        assert service.sync_invoice_to_cfo(invoice_id)["error_code"] == "amount-missing"
        invoices.connection.execute(
            "UPDATE crypto_invoice_cfo_sync SET sync_error = %s WHERE invoice_id = %s", (text, invoice_id)
        )
    return made


def test_the_command_line_shows_them_and_nothing_acts(call: Call, failed: dict[int, tuple[str, str]]) -> None:
    code, out, err = call("pending", "--limit", "1000")
    assert (code, err) == (1, "")
    assert_harmless(out)
    assert "[red]bold[/red] [/]" in out
    assert len(out.splitlines()) == 2 + 2 * len(failed)  # each and its error, on one line each
    for line in (each for name, text in failed.values() for each in (printable(name), printable(text))):
        assert line in out
    shown = json.loads(call("pending", "--limit", "1000", "--json")[1])["invoices"]
    assert {row["invoice_number"] for row in shown} == {name for name, _ in failed.values()}
    for invoice_id, (name, _) in list(failed.items())[:8]:
        _, out, _ = call("status", str(invoice_id))
        assert_harmless(out)
        assert printable(name) in out


def test_the_api_gives_them_back_to_the_letter(settings: Settings, failed: dict[int, tuple[str, str]]) -> None:
    with serving(settings) as web:
        rows = web.get("/api/cfo-sync/pending?limit=1000").json()["invoices"]
        assert {row["invoice_id"]: row["invoice_number"] for row in rows} == {
            invoice_id: name for invoice_id, (name, _) in failed.items()
        }
        assert {row["client_name"] for row in rows} == {
            text + str(number) for number, (_, text) in enumerate(failed.values())
        }


def test_what_remapping_is_given_is_stored_to_the_letter_or_refused(
    settings: Settings, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="N-1")
    assert service.sync_invoice_to_cfo(invoice_id)["success"]
    with serving(settings) as web:
        for text in [*TEXTS, "\0", "a\0b", "\ud800", "x" * 300, "", " \n"]:
            body = json.dumps({"entity": text}).encode()
            headers = {"Content-Type": "application/json"}
            answer = web.post(f"/api/invoice/{invoice_id}/remap", content=body, headers=headers)
            assert answer.status_code in (200, 422), (text, answer.text)
            if answer.status_code == 200:
                # Blanks around it are nobody's intention.
                assert ledger.of("N-1")[0]["classified_entity"] in (text, text.strip())
            else:
                assert not text.isprintable() or len(text) > 255 or not text.strip(), text
    assert ledger.count() == 1


def test_reconciliation_lists_them_as_table_json_and_csv(
    call: Call, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    made = make_invoices(invoices)
    service.sync(dict.fromkeys(made, 0))
    ledger.execute("DELETE FROM transactions")
    code, out, err = call("reconcile", "--limit", "1000")
    assert code == 1, err
    assert_harmless(out + err)
    code, out, err = call("reconcile", "--csv")
    assert_harmless(out + err)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == len(made)
    assert_guarded(cell for row in rows for cell in row.values())
    document = json.loads(call("reconcile", "--json")[1])
    assert {each["identifier"] for each in document["differences"]} == {name for name, _ in made.values()}


# -- dead letters, whose headers anybody may have written --------------------------------------------------------------


def assert_guarded(cells: Iterable[str]) -> None:
    for cell in cells:
        assert not cell.startswith(FORMULA) or cell.lstrip("+-").replace(".", "", 1).isdigit(), cell


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_dead_letters_are_shown_and_nothing_acts(capsys: pytest.CaptureFixture[str], text: str) -> None:
    entry = Entry(
        replace(letter(), error_message=text, error_code=text, error_kind=text, origin_topic=text, failure_id=text),
        "open",
    )
    dlq_views.print_entries([entry], with_state=True)
    out = capsys.readouterr().out
    assert_harmless(out)
    assert len(out.splitlines()) == 3
    assert printable(text) in out
    dlq_views.print_csv([entry])
    out = capsys.readouterr().out
    assert_harmless(out)
    [head, cells] = csv.reader(io.StringIO(out))
    assert tuple(head) == FIELDS
    assert_guarded(cells)
    assert printable(text) in cells[FIELDS.index("error_message")]


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _restored() -> Iterator[None]:
    """Logging is one per process."""
    handlers, level = logging.root.handlers, logging.root.level
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("style", ["json", "human"])
def test_a_log_line_stays_one_line_wherever_the_text_stands(capsys: pytest.CaptureFixture[str], style: Any) -> None:
    logs.configure("INFO", style)
    log = structlog.get_logger("worker")
    for text in TEXTS:
        structlog.contextvars.bind_contextvars(client=text)
        log.warning("faulted", error=text, reasons={text: 1}, rows=[text, (text, {"x": text})], bytes=text.encode())
        log.info(text, path=text)
        logging.getLogger("library").error("said %s", text)
        logging.getLogger("library").error(text)
        log.error("failed", error=ValueError(text))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 * len(TEXTS)
    for line in lines:
        assert_harmless(line, lines=False)
        if style == "json":
            assert isinstance(json.loads(line), dict)
