"""What somebody with a raw client sends to the console: none of it is taken for an outage, or for something else."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import urlencode

import httpx
import pytest

from consumer.settings import Settings
from consumer.web import listing
from tests.integration.visitor import Visitor
from tests.integration.web import VIEWER, Web, serving
from tests.support import InvoiceSystem


def test_a_cookie_kept_from_before_signing_out_is_worth_nothing(idle: Web) -> None:
    visitor, thief, other = (Visitor(idle).sign_in(VIEWER) for _ in range(3))
    thief.cookies = httpx.Cookies(visitor.cookies)
    assert thief.get("/mapping").status_code == 200
    visitor.post("/sign-out")
    assert thief.get("/mapping").headers["location"].startswith("/sign-in")
    assert other.get("/mapping").status_code == 200  # another sign-in with the same token


def test_without_tokens_nobody_is_sent_around_in_circles(settings: Settings) -> None:
    with serving(settings) as web:
        visitor = Visitor(web)
        assert visitor.get("/mapping").status_code == 200
        kept = httpx.Cookies(visitor.cookies)
        old = visitor.form_token()
        visitor.post("/sign-out")
        visitor.cookies = kept
        assert visitor.get("/mapping").status_code == 200
        assert visitor.send("/reconciliation/repair", {"form_token": old, "ids": ""}).status_code == 403


def test_cookies_of_a_replaced_token_keep_nobody_from_signing_in(idle: Web) -> None:
    visitor = Visitor(idle, address="10.9.9.7")
    for _ in range(11):
        visitor.cookies.set("cfo-sync-session-8080", "of.another.token")
        page = visitor.get("/mapping")
    assert (page.status_code, 'href="/sign-in"' in page.text) == (429, True)
    assert visitor.sign_in(VIEWER).get("/mapping").status_code == 200


def test_nothing_is_smuggled_behind_a_request_with_two_lengths(idle: Web) -> None:
    lengths = {"Content-Length": "4", "Transfer-Encoding": "chunked"}
    for method, path in (("GET", "/sign-in"), ("POST", "/nowhere"), ("GET", "/api/cfo-sync/pending")):
        assert idle.ask(method, path, headers=lengths, content=b"0\r\n\r").headers["connection"] == "close"
    assert "connection" not in idle.get("/sign-in").headers


MADE_UP = [  # Python reads each of these, PostgreSQL does not
    ("amount", "sNaN"), ("amount", "\N{FULLWIDTH DIGIT ONE}"), ("amount", "1e999999"), ("amount", "NaN1"),
    ("paid", "2020-W01-1"), ("paid", "2020-01-01T00:00:00+23:59"),
]  # fmt: skip


def test_made_up_values_are_no_outage(operator: Visitor) -> None:
    for order, value in MADE_UP:
        query = urlencode({"state": "pending", "order": order, "after": json.dumps([value, 1])})
        assert operator.get(f"/invoices?{query}").status_code == 200, value
    for ids in ("2147483648", "9999999999", "1,,2", "-1", "1e3", "\N{FULLWIDTH DIGIT ONE}"):
        assert operator.post("/reconciliation/repair", {"ids": ids}).status_code == 422, ids


def test_paging_goes_on_after_a_time_that_only_postgresql_knows(
    operator: Visitor, invoices: InvoiceSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", 1)
    for year in (1, 2):
        invoices.update(invoices.paid_invoice(invoice_number=f"BC-{year}"), paid_at=f"{year:04}-03-15 BC")
    page = operator.get("/invoices?state=pending&order=paid")
    assert "BC-1" in page.text
    [onward] = re.findall(r'href="([^"]+)" rel="next"', page.text)
    assert "BC-2" in operator.get(html.unescape(onward)).text


def test_an_address_means_the_invoice_that_it_names_or_none(operator: Visitor, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    path = f"/invoices/{invoice_id:012}34"
    assert operator.get(path).status_code == 404
    assert operator.post(f"{path}/sync").status_code == 404
    assert invoices.sync_row(invoice_id) is None
