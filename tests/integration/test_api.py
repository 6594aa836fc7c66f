"""The guide's three endpoints and remap: its JSON to the letter, and what they answer when they cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.store import FaultRow
from deploy.local.ports import choose_port
from tests.conftest import make_settings
from tests.integration.scenes import (
    another_session,
    booked,
    execute,
    invoice_dsn,
    ledger_dsn,
    relent,
    sabotage,
    terminate_sessions,
)
from tests.integration.web import Web, serving
from tests.roles import API
from tests.support import InvoiceSystem, LedgerView

# The guide's, copied.
SYNC_ANSWER = """
{
    "success": true,
    "invoice_id": 123,
    "cfo_transaction_id": 45678,
    "sync_status": "synced",
    "sync_timestamp": "2025-10-22T14:30:00Z"
}
"""
STATUS_ANSWER = """
{
    "invoice_id": 123,
    "invoice_number": "DPY-2025-10-0001",
    "invoice_status": "complete",
    "sync_status": "synced",
    "cfo_transaction_id": 45678,
    "sync_timestamp": "2025-10-22T14:30:00Z",
    "entity_mapped": "Delta Mining Paraguay S.A.",
    "category_mapped": "Revenue"
}
"""
PENDING_ANSWER = """
{
    "count": 2,
    "invoices": [
        {
            "invoice_id": 124,
            "invoice_number": "DPY-2025-10-0002",
            "client_name": "Alps Blockchain",
            "amount_usd": 5000.00,
            "paid_at": "2025-10-22T14:00:00Z",
            "sync_status": "pending",
            "retry_count": 0
        }
    ]
}
"""


def compact(text: str) -> str:
    """The same JSON without white space; nothing else of its text changes."""
    return msgspec.json.format(text, indent=-1)


@pytest.fixture
def web(settings: Settings) -> Iterator[Web]:
    with serving(settings) as web:
        yield web


@pytest.fixture(scope="module")
def idle() -> Iterator[Web]:
    """For requests that no database is asked for: it has none."""
    with serving(make_settings("host=127.0.0.1 port=1 dbname=none")) as web:
        yield web


def test_sync_and_status_answer_as_in_the_guide(web: Web, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    ledger.execute("SELECT setval('transactions_id_seq', 45677)")
    invoices.create_test_invoice(id=123, invoice_number="DPY-2025-10-0001")
    invoices.mark_invoice_as_paid(123)

    first = web.post("/api/invoice/123/sync-to-cfo")
    assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
    invoices.rows("UPDATE crypto_invoice_cfo_sync SET sync_timestamp = '2025-10-22 14:30:00' RETURNING id")
    again = web.post("/api/invoice/123/sync-to-cfo")

    assert again.text == compact(SYNC_ANSWER)
    assert {**first.json(), "sync_timestamp": None} == {**again.json(), "sync_timestamp": None}
    assert web.get("/api/invoice/123/sync-status").text == compact(STATUS_ANSWER)
    assert booked(invoices, ledger, 123)["id"] == 45678
    assert ledger.count() == 1


def test_pending_answers_as_in_the_guide(web: Web, invoices: InvoiceSystem) -> None:
    for number in (124, 125):
        invoices.create_test_invoice(id=number, invoice_number=f"DPY-2025-10-{number - 122:04d}", amount=5000)
        invoices.mark_invoice_as_paid(number, paid_at=datetime(2025, 10, 22, 14, 0))  # noqa: DTZ001
    answer = web.get("/api/cfo-sync/pending?limit=1")
    assert answer.text == compact(PENDING_ANSWER)
    assert answer.headers["link"] == '</api/cfo-sync/pending?limit=1&after=124>; rel="next"'


def test_nothing_pending(web: Web) -> None:
    answer = web.get("/api/cfo-sync/pending")
    assert (answer.text, "link" in answer.headers) == ('{"count":0,"invoices":[]}', False)


@pytest.mark.parametrize("count", [7, 8])
def test_following_the_links_shows_every_pending_invoice_once(web: Web, invoices: InvoiceSystem, count: int) -> None:
    ids = invoices.paid_invoices(count)
    found: list[int] = []
    sizes = []
    path: str | None = "/api/cfo-sync/pending?limit=2"
    while path:
        answer = web.get(path)
        assert answer.json()["count"] == count
        sizes.append(len(answer.json()["invoices"]))
        found += [row["invoice_id"] for row in answer.json()["invoices"]]
        path = answer.links.get("next", {}).get("url")
    assert found == ids
    assert sizes == [2] * (count // 2) + [1] * (count % 2)


EXACT = ["5000.00", "0.10", "100.05", "0.01", "9007199254740993.01"]


def amounts(answer: str) -> list[str | None]:
    """As they are written in a pending list, which is strict JSON."""
    document = json.loads(answer, parse_float=str, parse_int=str, parse_constant=pytest.fail)
    return [row["amount_usd"] for row in document["invoices"]]


def test_amounts_are_numbers_exact_to_the_cent(dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    for text in EXACT:
        invoices.create_test_invoice(amount=Decimal(text), status="paid")
    invoices.close()
    with serving(make_settings(dsn)) as web:
        assert amounts(web.get("/api/cfo-sync/pending").text) == EXACT


@pytest.mark.parametrize(
    ("kind", "found", "shown"),
    [
        ("double precision", ["0.1", "NaN", "Infinity", "5000"], ["0.10", None, None, "5000.00"]),
        ("numeric", ["NaN", "1.005", "1e30", None, "5"], [None, "1.005", f"1{'0' * 30}.00", None, "5.00"]),
        ("text", ["12.5", "much"], ["12.50", None]),
    ],
)
def test_amounts_of_other_column_types_are_still_json(
    dsn: str, kind: str, found: list[str | None], shown: list[str | None]
) -> None:
    invoices = InvoiceSystem(dsn)
    view = invoices.value("SELECT pg_get_viewdef('v_crypto_invoices_pending_sync'::regclass)")
    execute(
        dsn,
        "DROP VIEW v_crypto_invoices_pending_sync, v_crypto_invoices_synced",
        f"ALTER TABLE crypto_invoices ALTER COLUMN amount_usd TYPE {kind} USING NULL",
        f"CREATE VIEW v_crypto_invoices_pending_sync AS {view}",
        f"GRANT SELECT ON v_crypto_invoices_pending_sync TO {API}",
    )
    for amount in found:
        invoices.update(invoices.create_test_invoice(amount=None, status="paid"), amount_usd=amount)
    invoices.close()
    with serving(make_settings(dsn)) as web:
        assert amounts(web.get("/api/cfo-sync/pending").text) == shown


def test_pending_names_the_failed_and_those_in_retry(
    web: Web, service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    ids = [invoices.paid_invoice() for _ in range(3)]
    service.record_faults(
        [FaultRow(ids[0], "failed", 3, "row-locked: x", None), FaultRow(ids[1], "retry", 2, "row-locked: x", None)]
    )
    rows = web.get("/api/cfo-sync/pending").json()["invoices"]
    assert [(row["sync_status"], row["retry_count"]) for row in rows] == [("failed", 3), ("retry", 2), ("pending", 0)]
    for row in rows:
        assert web.get(f"/api/invoice/{row['invoice_id']}/sync-status").json()["sync_status"] == row["sync_status"]


def test_the_status_of_an_invoice_that_is_not_paid(web: Web, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.create_test_invoice()
    answer = web.get(f"/api/invoice/{invoice_id}/sync-status").json()
    assert (answer["invoice_status"], answer["sync_status"], answer["sync_timestamp"]) == ("sent", None, None)


def test_a_reopened_invoice_is_pending_again(web: Web, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    invoice_id = invoices.paid_invoice()
    transaction = web.post(f"/api/invoice/{invoice_id}/sync-to-cfo").json()["cfo_transaction_id"]
    invoices.update(invoice_id, status="paid")
    answer = web.get(f"/api/invoice/{invoice_id}/sync-status").json()
    assert (answer["sync_status"], answer["cfo_transaction_id"]) == ("pending", transaction)
    assert web.post(f"/api/invoice/{invoice_id}/sync-to-cfo").json()["cfo_transaction_id"] == transaction
    assert ledger.count() == 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    return body


@pytest.mark.parametrize("path", ["sync-to-cfo", "sync-status", "remap"])
def test_an_unknown_invoice_is_not_found(web: Web, invoices: InvoiceSystem, path: str) -> None:
    del invoices
    method, body = ("GET", None) if path == "sync-status" else ("POST", {"entity": "E"} if path == "remap" else None)
    assert (
        problem(web.ask(method, f"/api/invoice/4711/{path}", json=body), 404, "invoice-unknown")["invoice_id"] == 4711
    )


def test_an_invoice_that_is_not_paid_is_a_conflict(web: Web, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    invoice_id = invoices.create_test_invoice()
    for force in ("false", "true"):
        body = problem(web.post(f"/api/invoice/{invoice_id}/sync-to-cfo?force={force}"), 409, "not-paid")
        assert body["invoice_id"] == invoice_id
        assert "'sent'" in body["detail"]
    assert ledger.count() == 0


def test_used_up_retries_need_force(
    web: Web, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.record_faults([FaultRow(invoice_id, "failed", 3, "row-locked: somebody", None)])
    problem(web.post(f"/api/invoice/{invoice_id}/sync-to-cfo"), 409, "retries-used-up")
    assert ledger.count() == 0
    assert web.post(f"/api/invoice/{invoice_id}/sync-to-cfo?force=true").status_code == 200
    booked(invoices, ledger, invoice_id)


FAULTS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"amount_usd": None}, "amount-missing", "amount_usd", "empty"),
    ({"amount_usd": 0}, "amount-not-positive", "amount_usd", "0.00"),
    ({"amount_usd": -5}, "amount-not-positive", "amount_usd", "-5.00"),
    ({"invoice_number": " "}, "invoice-number-missing", "invoice_number", "empty"),
    ({"paid_at": "infinity"}, "paid-at-invalid", "paid_at", "infinity"),
]


def test_an_invoice_that_cannot_be_booked_names_the_field(web: Web, invoices: InvoiceSystem) -> None:
    for columns, code, field, found in FAULTS:
        invoice_id = invoices.paid_invoice()
        invoices.update(invoice_id, **columns)
        body = problem(web.post(f"/api/invoice/{invoice_id}/sync-to-cfo"), 422, code)
        assert body["invoice_id"] == invoice_id
        [error] = body["errors"]
        assert error["field"] == field
        assert found in error["found"]
        assert error["allowed"]


def test_a_value_that_the_ledger_refuses_is_the_invoice_s_fault(
    web: Web, invoices: InvoiceSystem, settings: Settings
) -> None:
    execute(ledger_dsn(settings), "ALTER TABLE transactions ALTER COLUMN currency TYPE varchar(3)")
    invoice_id = invoices.paid_invoice(currency="USDT")
    problem(web.post(f"/api/invoice/{invoice_id}/sync-to-cfo"), 422, "sqlstate-22001")


def test_an_identifier_that_belongs_to_another_invoice_is_refused(web: Web, invoices: InvoiceSystem) -> None:
    first = invoices.paid_invoice(invoice_number="N-1")
    web.post(f"/api/invoice/{first}/sync-to-cfo")
    invoices.update(first, invoice_number="N-2")
    second = invoices.paid_invoice(invoice_number="N-1")
    body = problem(web.post(f"/api/invoice/{second}/sync-to-cfo"), 422, "identifier-taken")
    assert body["errors"][0]["field"] == "invoice_number"


def test_a_locked_invoice_may_be_tried_again_soon(web: Web, invoices: InvoiceSystem, settings: Settings) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as somebody:
        somebody.execute("SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE", [invoice_id])
        answer = web.post(f"/api/invoice/{invoice_id}/sync-to-cfo")
    problem(answer, 503, "row-locked")
    assert answer.headers["retry-after"] == "5"


def test_a_client_that_is_not_there_yet_may_come(web: Web, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice(client_id=4711)
    answer = web.post(f"/api/invoice/{invoice_id}/sync-to-cfo")
    assert problem(answer, 503, "client-not-there")["invoice_id"] == invoice_id
    assert answer.headers["retry-after"] == "60"


BAD_REQUESTS = [
    ("GET", "/api/invoice/0/sync-status", "path.invoice_id", "0", "greater than or equal to 1"),
    ("GET", f"/api/invoice/{2**31}/sync-status", "path.invoice_id", str(2**31), "less than or equal to 2147483647"),
    ("GET", "/api/invoice/-1/sync-status", "path.invoice_id", "-1", "greater than"),
    ("GET", "/api/invoice/1.0/sync-status", "path.invoice_id", "1.0", "whole number"),
    ("GET", "/api/invoice/1_0/sync-status", "path.invoice_id", "1_0", "whole number"),
    ("GET", "/api/invoice/%2B1/sync-status", "path.invoice_id", "+1", "whole number"),
    ("GET", "/api/invoice/%D9%A1/sync-status", "path.invoice_id", "\u0661", "whole number"),
    ("GET", "/api/invoice/x%00%0A/sync-status", "path.invoice_id", "x", "whole number"),
    ("POST", f"/api/invoice/{'9' * 5000}/sync-to-cfo", "path.invoice_id", "9" * 50, "whole number"),
    ("POST", "/api/invoice/1/sync-to-cfo?force=maybe", "query.force", "maybe", "true or false"),
    ("POST", "/api/invoice/1/sync-to-cfo?force=", "query.force", "", "true or false"),
    ("POST", "/api/invoice/1/sync-to-cfo?forse=true", "query.forse", "not known", "leave it away"),
    ("GET", "/api/cfo-sync/pending?limit=0", "query.limit", "0", "greater than or equal to 1"),
    ("GET", "/api/cfo-sync/pending?limit=1001", "query.limit", "1001", "less than or equal to 1000"),
    ("GET", "/api/cfo-sync/pending?limit=ten", "query.limit", "ten", "whole number"),
    ("GET", "/api/cfo-sync/pending?after=-1", "query.after", "-1", "greater than or equal to 0"),
    ("GET", "/api/cfo-sync/pending?page=2", "query.page", "not known", "leave it away"),
]


@pytest.mark.parametrize(("method", "path", "field", "found", "allowed"), BAD_REQUESTS)
def test_a_bad_request_says_which_field_what_was_found_and_what_is_allowed(
    idle: Web, method: str, path: str, field: str, found: str, allowed: str
) -> None:
    body = problem(idle.ask(method, path), 422, "validation")
    [error] = body["errors"]
    assert error["field"] == field
    assert found in error["found"]
    assert allowed in error["allowed"]
    assert len(error["found"]) <= 100


def test_several_mistakes_are_told_at_once(idle: Web) -> None:
    body = problem(idle.get("/api/cfo-sync/pending?limit=x&after=y"), 422, "validation")
    assert [error["field"] for error in body["errors"]] == ["query.limit", "query.after"]


# -- remap -------------------------------------------------------------------------------------------------------------


def test_remap_changes_the_transaction_and_the_mapping_and_says_old_and_new(
    web: Web, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    key = web.post(f"/api/invoice/{invoice_id}/sync-to-cfo").json()["cfo_transaction_id"]
    answer = web.post(f"/api/invoice/{invoice_id}/remap", json={"entity": "Correct Entity"})
    assert answer.json() == {
        "success": True,
        "invoice_id": invoice_id,
        "cfo_transaction_id": key,
        "old": {"entity": "Delta Mining Paraguay S.A."},
        "new": {"entity": "Correct Entity"},
    }
    assert booked(invoices, ledger, invoice_id)["classified_entity"] == "Correct Entity"
    assert web.get(f"/api/invoice/{invoice_id}/sync-status").json()["entity_mapped"] == "Correct Entity"
    [action] = invoices.rows("SELECT * FROM cfo_sync_actions")
    assert (action["action"], action["done_by"], action["invoice_id"]) == ("remap", "local", invoice_id)
    both = web.post(f"/api/invoice/{invoice_id}/remap", json={"entity": "E", "business_unit": "B"}).json()
    assert (both["new"], both["old"]["business_unit"]) == ({"entity": "E", "business_unit": "B"}, "Paraguay Mining")


def test_what_is_not_booked_is_not_remapped(web: Web, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    problem(web.post(f"/api/invoice/{invoice_id}/remap", json={"entity": "E"}), 409, "not-booked")


def test_an_adopted_transaction_is_not_remapped(web: Web, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="N-1")
    ledger.insert(["identifier", "amount", "date"], "N-1", 1, datetime(2025, 10, 22))  # noqa: DTZ001
    web.post(f"/api/invoice/{invoice_id}/sync-to-cfo")
    problem(web.post(f"/api/invoice/{invoice_id}/remap", json={"entity": "E"}), 409, "adopted")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"entity"', "body"),
        (b"\xff", "body"),
        (b"{}", "body.entity"),
        (b'{"entity": ""}', "body.entity"),
        (b'{"entity": "  "}', "body.entity"),
        (b'{"entity": null}', "body.entity"),
        (b'{"entity": 1}', "body.entity"),
        (b'{"entity": "a\\u0000b"}', "body.entity"),
        (b'{"entity": "a\\nb"}', "body.entity"),
        (b'{"entity": "\\ud800"}', "body.entity"),
        (b'{"entity": "' + b"x" * 256 + b'"}', "body.entity"),
        (b'{"entity": "E", "business_unit": ""}', "body.business_unit"),
        (b'{"entity": "E", "unit": "B"}', "body.unit"),
        (b"[" * 30_000, "body"),
        (b'{"entity": ' + b"9" * 5000 + b"}", "body"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_body_is_refused(idle: Web, content: bytes, field: str) -> None:
    answer = idle.post("/api/invoice/1/remap", content=content, headers={"Content-Type": "application/json"})
    assert [error["field"] for error in problem(answer, 422, "validation")["errors"]] == [field]


def test_only_json_is_taken_for_json(idle: Web) -> None:
    answer = idle.post("/api/invoice/1/remap", content=b'{"entity": "E"}', headers={"Content-Type": "text/plain"})
    [error] = problem(answer, 422, "validation")["errors"]
    assert "application/json" in error["allowed"]


# -- outages -----------------------------------------------------------------------------------------------------------


def test_an_outage_is_503_and_says_when_to_come_back(web: Web, invoices: InvoiceSystem, settings: Settings) -> None:
    invoice_id = invoices.paid_invoice()
    name = sabotage(ledger_dsn(settings), sqlstate="53100")
    answer = web.post(f"/api/invoice/{invoice_id}/sync-to-cfo")
    problem(answer, 503, "outage-resources")
    assert int(answer.headers["retry-after"]) > 0
    relent(ledger_dsn(settings), name)
    assert web.post(f"/api/invoice/{invoice_id}/sync-to-cfo").status_code == 200


def test_lost_connections_are_opened_again(web: Web, invoices: InvoiceSystem, settings: Settings) -> None:
    invoice_id = invoices.paid_invoice()
    web.get("/api/cfo-sync/pending")
    assert terminate_sessions(invoice_dsn(settings)) == 1
    assert web.post(f"/api/invoice/{invoice_id}/sync-to-cfo").status_code == 200


@pytest.mark.parametrize("wrong", ["port", "password"])
def test_without_a_database_every_endpoint_says_503_and_no_secret(dsn: str, wrong: str) -> None:
    there = make_conninfo(dsn, port=choose_port()) if wrong == "port" else make_conninfo(dsn, password="wrong-hunter2")
    secret = str(conninfo_to_dict(there)["password"])
    with serving(make_settings(there)) as web:
        for method, path, body in (
            ("POST", "/api/invoice/1/sync-to-cfo", None),
            ("GET", "/api/invoice/1/sync-status", None),
            ("GET", "/api/cfo-sync/pending", None),
            ("POST", "/api/invoice/1/remap", {"entity": "E"}),
            ("GET", "/api/cfo-sync/reconciliation", None),
        ):
            answer = web.ask(method, path, json=body)
            problem(answer, 503, "outage-unreachable" if wrong == "port" else "outage-login")
            assert secret not in answer.text
            assert "Traceback" not in answer.text


def test_a_missing_table_is_named(web: Web, settings: Settings) -> None:
    execute(invoice_dsn(settings), "ALTER TABLE crypto_invoice_cfo_sync RENAME TO gone")
    body = problem(web.get("/api/invoice/1/sync-status"), 503, "outage-schema")
    assert "crypto_invoice_cfo_sync" in body["detail"]
