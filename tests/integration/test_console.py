"""The console's pages, in this process on a real database: what they say, and what they let whom do."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlencode

import pytest
import structlog
from psycopg import Connection

from consumer import reconcile
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.store import FaultRow
from consumer.web import listing, reconciliation, sessions
from tests.integration.reconciling import Books
from tests.integration.scenes import booked
from tests.integration.visitor import Visitor, text_of
from tests.integration.web import OPERATOR, TOKENS, VIEWER, Web, serving
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture
def viewer(web: Web) -> Visitor:
    return Visitor(web).sign_in(VIEWER)


# -- signing in --------------------------------------------------------------------------------------------------------


def test_a_good_token_begins_a_session_that_no_script_can_read(idle: Web) -> None:
    visitor = Visitor(idle)
    answer = visitor.get("/mapping?client=Exos")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Fmapping%3Fclient%3DExos")

    answer = visitor.send("/sign-in", {"token": f" {VIEWER} ", "next": "/mapping?client=Exos"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/mapping?client=Exos")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert VIEWER not in cookie
    assert "audit viewer" in text_of(visitor.get("/mapping"))


def test_behind_tls_the_cookie_is_for_tls_only(idle: Web) -> None:
    cookie = Visitor(idle).send("/sign-in", {"token": VIEWER}, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert cookie.startswith("__Host-")
    assert "; Secure" in cookie


@pytest.mark.parametrize("onward", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_signing_in_leads_to_no_other_site(idle: Web, onward: str) -> None:
    assert Visitor(idle).send("/sign-in", {"token": VIEWER, "next": onward}).headers["location"] == "/"


def test_wrong_tokens_are_limited(idle: Web) -> None:
    visitor = Visitor(idle, address="10.9.9.9")
    answers = [visitor.send("/sign-in", {"token": f"wrong-{number}"}) for number in range(11)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429]
    assert "This token is not known." in text_of(answers[0])
    assert "set-cookie" not in answers[0].headers
    assert int(answers[-1].headers["retry-after"]) > 0


def test_forged_sessions_are_limited_like_wrong_tokens(idle: Web) -> None:
    visitor = Visitor(idle, address="10.9.9.8")
    good = visitor.sign_in(OPERATOR).cookies["cfo-sync-session-8080"]
    forged = [Visitor(idle, address="10.9.9.8") for _ in range(11)]
    for number, each in enumerate(forged):
        each.cookies.set("cfo-sync-session-8080", good[:-4] + f"{number:04d}")
    assert [each.get("/mapping").status_code for each in forged] == [303] * 10 + [429]
    assert visitor.get("/mapping").status_code == 200  # a long token cannot be guessed: its holder is not locked out


def test_a_session_ends(idle: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LIFETIME", 0)
    visitor = Visitor(idle).sign_in(OPERATOR)
    assert visitor.get("/mapping").headers["location"] == "/sign-in?next=%2Fmapping&was=expired"
    assert "Your sign-in has ended" in text_of(visitor.get("/sign-in?was=expired"))


def test_a_session_goes_on_while_pages_are_looked_at(idle: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", 0)
    visitor = Visitor(idle).sign_in(OPERATOR)
    answer = visitor.get("/mapping")
    assert answer.status_code == 200
    assert "HttpOnly" in answer.headers["set-cookie"]
    monkeypatch.setattr(sessions, "IDLE", 0)
    assert visitor.get("/mapping").headers["location"] == "/sign-in?next=%2Fmapping&was=expired"


def test_signing_out(idle: Web) -> None:
    visitor = Visitor(idle).sign_in(VIEWER)
    assert visitor.post("/sign-out").headers["location"] == "/sign-in?was=out"
    assert visitor.get("/mapping").status_code == 303


def test_without_tokens_this_machine_needs_no_sign_in_and_forms_are_guarded_all_the_same(
    settings: Settings, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    with serving(settings) as web:
        visitor = Visitor(web)
        assert visitor.get("/sign-in").headers["location"] == "/"
        assert visitor.send(f"/invoices/{invoice_id}/sync", {}).status_code == 403
        assert "Booked as transaction" in text_of(visitor.post(f"/invoices/{invoice_id}/sync"))


# -- who may act -------------------------------------------------------------------------------------------------------

ACTS = [
    "/invoices/1/sync", "/invoices/1/remap", "/dead-letters/0/0/replay", "/dead-letters/0/0/discard",
    "/dead-letters/replay", "/dead-letters/discard", "/reconciliation/run", "/reconciliation/repair",
]  # fmt: skip


@pytest.mark.parametrize("path", ACTS)
def test_an_action_needs_a_session_its_form_and_an_operator(idle: Web, path: str) -> None:
    stranger, viewer, operator = Visitor(idle), Visitor(idle).sign_in(VIEWER), Visitor(idle).sign_in(OPERATOR)
    assert stranger.send(path, {}).headers["location"].startswith("/sign-in")
    refused = viewer.post(path)
    assert (refused.status_code, "Your token may only look" in text_of(refused)) == (403, True)
    for forged in ({}, {"form_token": "x"}, {"form_token": viewer.form_token()}):
        refused = operator.send(path, forged)
        assert (refused.status_code, "not valid any more" in text_of(refused)) == (403, True)
    crossed = operator.post(path, {}, **{"Sec-Fetch-Site": "cross-site"})
    assert crossed.status_code == 403


def test_a_session_is_no_token_of_the_api(idle: Web) -> None:
    visitor = Visitor(idle).sign_in(OPERATOR)
    cookie = f"cfo-sync-session-8080={visitor.cookies['cfo-sync-session-8080']}"
    assert idle.post("/api/invoice/1/sync-to-cfo", headers={"Cookie": cookie}).status_code == 401


def test_pages_allow_no_script_but_ours(idle: Web) -> None:
    visitor = Visitor(idle)
    for path in ("/sign-in", "/nowhere"):
        policy = visitor.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert visitor.get(path).headers["x-content-type-options"] == "nosniff"
    assert visitor.get("/static/app.js").headers["content-type"].startswith("text/javascript")


# -- the overview ------------------------------------------------------------------------------------------------------


def test_the_overview_answers_whether_everything_is_booked(
    operator: Visitor, invoices: InvoiceSystem, service: CFOSyncService
) -> None:
    assert "Yes, every paid invoice is booked." in text_of(operator.get("/"))

    first = invoices.create_test_invoice(amount=1234.5)
    invoices.mark_invoice_as_paid(first, paid_at=(datetime.now(UTC) - timedelta(hours=2)).replace(tzinfo=None))
    second = invoices.paid_invoice()
    assert "No: 2 paid invoices wait. Waiting since" in text_of(operator.get("/"))
    service.record_faults([FaultRow(second, "failed", 0, "amount-missing: none", None)])
    assert "No: 1 paid invoice waits, and 1 has failed." in text_of(operator.get("/"))
    service.sync({first: 0})
    assert "No: 1 invoice has failed and needs somebody." in text_of(operator.get("/"))


def test_the_overview_counts_money(web: Web, invoices: InvoiceSystem, service: CFOSyncService) -> None:
    ids = [invoices.paid_invoice(amount=Decimal(amount)) for amount in ("1000.25", "2000.50")]
    service.sync(dict.fromkeys(ids[:1], 0))
    told = text_of(Visitor(web).sign_in(VIEWER).get("/"))
    assert "Paid 2 3,000.75 Booked 1 1,000.25" in told
    assert "none has run yet" in told


# -- invoices ----------------------------------------------------------------------------------------------------------


def test_invoices_by_state_number_and_client(
    operator: Visitor, invoices: InvoiceSystem, service: CFOSyncService
) -> None:
    done = invoices.paid_invoice(client="Exos Capital", invoice_number="DPY-1")
    waits = invoices.paid_invoice(client="Alps Blockchain", invoice_number="DPY-2")
    failed = invoices.paid_invoice(client="100%_Mining", invoice_number="dpy-3")
    invoices.create_test_invoice(client="GM Data Centers", invoice_number="X-4")
    service.sync({done: 0})
    service.record_faults([FaultRow(failed, "failed", 3, "client-missing: none", None)])

    def shown(query: str) -> list[str]:
        page = text_of(operator.get(f"/invoices{query}"))
        return [number for number in ("DPY-1", "DPY-2", "dpy-3", "X-4") if number in page]

    assert shown("") == ["DPY-1", "DPY-2", "dpy-3", "X-4"]
    assert shown("?state=synced") == ["DPY-1"]
    assert shown("?state=pending") == ["DPY-2"]
    assert shown("?state=failed") == ["dpy-3"]
    assert shown("?search=DPY-") == ["DPY-1", "DPY-2"]
    assert shown("?search=dpy-") == ["DPY-1", "DPY-2", "dpy-3"]
    assert shown("?search=exos") == ["DPY-1"]
    assert shown("?search=%25_m") == ["dpy-3"]
    assert shown(f"?search={waits}") == ["DPY-2"]
    assert shown("?search=nobody%00") == []


@pytest.mark.parametrize("order", ["id", "number", "client", "amount", "paid"])
@pytest.mark.parametrize("descending", [False, True])
def test_every_order_pages_through_everything_once(
    invoices: InvoiceSystem, service: CFOSyncService, monkeypatch: pytest.MonkeyPatch, order: str, *, descending: bool
) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    for number in range(7):
        invoices.paid_invoice(client=f"Client {number % 3}", amount=f"{number % 2 + 1}.00")
    invoices.rows("UPDATE crypto_invoices SET paid_at = NULL WHERE id % 3 = 0 RETURNING id")
    seen: list[int] = []
    after: str | None = ""
    while after is not None:
        wanted = listing.Wanted("pending", order=order, descending=descending, after=after)
        found = service.read(lambda connection, wanted=wanted: listing.read(connection, wanted))  # type: ignore[misc]
        seen += [row["invoice_id"] for row in found.rows]
        after = found.after
    key = {"id": "i.id", "number": "invoice_number", "client": "c.name", "amount": "amount_usd", "paid": "paid_at"}[
        order
    ]
    direction = "DESC NULLS LAST" if descending else "ASC NULLS FIRST"
    rows = invoices.rows(
        f"SELECT i.id FROM crypto_invoices i JOIN crypto_clients c ON c.id = client_id ORDER BY {key} {direction},"
        f" i.id {direction}"
    )
    assert seen == [row["id"] for row in rows]


@pytest.mark.parametrize(
    "after", ["x", "[1]", '["x", 1]', '["1", 99999999999999999999]', '["99999999999999999999", 1]', '["\\u0000", 1]']
)
@pytest.mark.parametrize("order", ["id", "number"])
def test_an_address_that_no_page_gave_shows_a_page(operator: Visitor, after: str, order: str) -> None:
    assert operator.get(f"/invoices?{urlencode({'order': order, 'after': after})}").status_code == 200


def test_sync_now_books_and_the_log_names_the_token(
    operator: Visitor, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(client="Exos Capital", description="Hosting & more")
    page = text_of(operator.get(f"/invoices/{invoice_id}"))
    assert "A sync would book now" in page
    assert "“Exos Capital”, because the client is “Exos Capital”" in page
    assert "“hosting”, found in the description" in page
    with structlog.testing.capture_logs() as logs:
        answer = operator.post(f"/invoices/{invoice_id}/sync")
    row = booked(invoices, ledger, invoice_id)
    assert f"Booked as transaction {row['id']}." in text_of(answer)
    assert "Classified entity Delta Mining Paraguay S.A." in text_of(answer)
    [line] = [line for line in logs if line["event"] == "request"]
    assert (line["by"], line["outcome"], line["invoice_id"]) == ("treasury", "booked", invoice_id)


def test_retry_by_force_and_in_place(operator: Visitor, invoices: InvoiceSystem, service: CFOSyncService) -> None:
    invoice_id = invoices.paid_invoice()
    service.record_faults([FaultRow(invoice_id, "failed", 3, "client-not-there: none", None)])
    assert "Retry (force)" in operator.get("/invoices?state=failed").text
    refused = operator.post(f"/invoices/{invoice_id}/sync")
    assert (refused.status_code, "retries are used up" in text_of(refused)) == (409, True)
    row = operator.post(f"/invoices/{invoice_id}/sync", {"force": "1"}, **{"X-Fragment": "row"})
    assert row.text.strip().startswith(f'<tr id="invoice-{invoice_id}">')
    assert "Booked as transaction" in text_of(row)


def test_remap_changes_ledger_and_mapping_and_the_history_says_by_whom(
    operator: Visitor, invoices: InvoiceSystem, ledger: LedgerView, service: CFOSyncService
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync({invoice_id: 0})
    answer = operator.post(f"/invoices/{invoice_id}/remap", {"entity": "Other S.A.", "business_unit": ""})
    assert "Remapped by treasury" in text_of(answer)
    row = invoices.sync_row(invoice_id)
    assert row is not None
    assert row["entity_mapped"] == "Other S.A."
    assert ledger.rows("SELECT classified_entity FROM transactions") == [{"classified_entity": "Other S.A."}]
    refused = operator.post(f"/invoices/{invoice_id}/remap", {"entity": " "})
    assert (refused.status_code, "the entity is empty" in text_of(refused)) == (409, True)


def test_a_viewer_reads_everything_and_is_offered_nothing(
    viewer: Visitor, invoices: InvoiceSystem, service: CFOSyncService
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync({invoices.paid_invoice(): 0})
    for path in ("/", "/invoices", f"/invoices/{invoice_id}", "/reconciliation", "/reconciliation/repair", "/mapping"):
        page = viewer.get(path)
        assert page.status_code == 200
        assert page.text.count('method="post"') == 1  # signing out
    assert invoices.sync_row(invoice_id) is None


def test_what_strangers_wrote_is_shown_as_text(operator: Visitor, invoices: InvoiceSystem) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
    invoice_id = invoices.paid_invoice(client=evil, description=evil, billing_period=evil[:99])
    operator.post(f"/invoices/{invoice_id}/sync")
    for path in (
        "/invoices",
        f"/invoices/{invoice_id}",
        "/invoices?search=%3Cscript%3E",
        "/mapping?client=%3Cscript%3E",
    ):
        page = operator.get(path)
        assert "<script>alert" not in page.text
        assert "<img" not in page.text
        assert "&lt;script&gt;" in page.text


# -- reconciliation and mapping ----------------------------------------------------------------------------------------


def test_differences_are_shown_downloaded_and_repaired(settings: Settings) -> None:
    books = Books(settings)
    gone, differs = books.booked("DPY-10"), books.booked("DPY-11")
    books.ledger.execute("DELETE FROM transactions WHERE identifier = 'DPY-10'")
    books.ledger.execute("UPDATE transactions SET amount = 1 WHERE identifier = 'DPY-11'")
    books.ours("=GHOST")
    with serving(settings, token=TOKENS) as web:
        operator = Visitor(web).sign_in(OPERATOR)
        assert operator.post("/reconciliation/run").status_code == 303
        page = _reconciled(operator)
        assert "3 differences between invoices and ledger." in page
        assert "=GHOST" not in text_of(operator.get("/reconciliation?kind=amount-differs")).split("All kinds")[1]
        lines = operator.get("/reconciliation.csv").text.splitlines()
        assert len(lines) == 4
        assert any("'=GHOST" in line for line in lines)  # no formula in a spreadsheet

        preview = operator.get("/reconciliation/repair")
        assert "Repair 2 invoices?" in text_of(preview)
        assert f'name="ids" value="{gone},{differs}"' in preview.text
        assert books.ledger.of("DPY-10") == []
        answer = operator.post("/reconciliation/repair", {"ids": f"{gone},{differs}"})
        assert "1 booked, 1 brought up to date" in text_of(answer)
        assert len(books.ledger.of("DPY-10")) == 1
        assert "1 difference between invoices and ledger." in _reconciled(operator)
        assert "Repaired by the reconciliation by treasury" in text_of(operator.get(f"/invoices/{gone}"))
        assert operator.post("/reconciliation/repair", {"ids": "1;2"}).status_code == 422
    books.close()


def test_of_a_run_that_ends_while_the_page_is_made_it_says_to_look_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, ended = threading.Event(), threading.Event()

    def run_now(*_: object, **__: object) -> None:
        ending.wait(10)

    def last_run(connection: Connection) -> None:
        ending.set()
        ended.wait(10)

    class Running(reconciliation.Running):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if (name, value) == ("is_over", True):
                ended.set()

    monkeypatch.setattr(reconciliation, "Running", Running)
    monkeypatch.setattr(reconcile, "run_now", run_now)
    monkeypatch.setattr(reconcile, "last_run", last_run)
    with serving(settings, token=TOKENS) as web:
        operator = Visitor(web).sign_in(OPERATOR)
        operator.post("/reconciliation/run")
        assert "A run is under way" in text_of(operator.get("/reconciliation"))
        assert "A run is under way" not in text_of(operator.get("/reconciliation"))


def _reconciled(visitor: Visitor) -> str:
    """The page when no run is under way any more."""
    deadline = time.monotonic() + 30
    while "A run is under way" in (page := text_of(visitor.get("/reconciliation"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return page


def test_the_mapping_box_books_nothing_and_says_what_would_be(viewer: Visitor, ledger: LedgerView) -> None:
    page = text_of(viewer.get("/mapping?client=exos++CAPITAL&period=&description=Validator+node"))
    assert "Client rule “Exos Capital”; keyword “validator” gives “Validator Revenue”" in page
    assert "Business unit Paraguay Hosting" in page
    assert "Amount 100.00" in page
    assert "an invoice without a client is not booked" in text_of(viewer.get("/mapping?period=Hosting"))
    assert ledger.count() == 0


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/nowhere", "/invoices/0", "/invoices/x", "/invoices/99999999999", "/invoices/1/x", "/dead-letters/x/1"]
)
def test_what_is_not_there_is_a_page(operator: Visitor, path: str) -> None:
    assert operator.get(path).status_code == 404


def test_programs_get_problems_as_before(idle: Web) -> None:
    assert idle.get("/nowhere").json()["code"] == "not-found"
    assert idle.get("/api/nowhere", token=VIEWER, headers={"Accept": "text/html"}).json()["code"] == "not-found"


def test_an_outage_is_a_page_that_says_which(idle: Web) -> None:
    page = Visitor(idle).sign_in(VIEWER).get("/invoices")
    assert page.status_code == 503
    assert page.headers["retry-after"] == "30"
    assert "The books cannot be read right now" in text_of(page)
    assert "No payment is lost meanwhile" in text_of(page)
