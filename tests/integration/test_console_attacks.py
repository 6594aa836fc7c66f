"""What somebody with a raw client sends to the console: none of it is taken for an outage, or for something else."""

from __future__ import annotations

import html
import http.cookies
import json
import re
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from consumer.settings import Settings
from consumer.web import listing, sessions
from tests.integration.visitor import Visitor
from tests.integration.web import OPERATOR, TOKENS, VIEWER, Web, serving
from tests.support import InvoiceSystem


def test_a_cookie_kept_from_before_signing_out_is_worth_nothing(idle: Web) -> None:
    visitor, thief, other = (Visitor(idle).sign_in(VIEWER) for _ in range(3))
    thief.cookies = httpx.Cookies(visitor.cookies)
    assert thief.get("/mapping").status_code == 200
    visitor.post("/sign-out")
    assert thief.get("/mapping").headers["location"].startswith("/sign-in")
    assert other.get("/mapping").status_code == 200  # another sign-in with the same token


def test_signing_out_after_an_idle_hour_ends_the_copies_that_were_in_use(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(sessions.Sessions.__init__, "__defaults__", (lambda: now,))
    with serving(settings, token=TOKENS) as web:
        visitor, thief = Visitor(web).sign_in(VIEWER), Visitor(web)
        form_token = visitor.form_token()
        thief.cookies = httpx.Cookies(visitor.cookies)
        for _ in range(3):
            now += 1500
            assert thief.get("/mapping").status_code == 200
        assert "was=expired" in visitor.get("/mapping").headers["location"]
        out = visitor.send("/sign-out", {"form_token": form_token})
        assert (out.headers["location"], dict(visitor.cookies)) == ("/sign-in?was=out", {})
        assert thief.get("/mapping").headers["location"].startswith("/sign-in")


def test_a_page_that_is_made_while_its_visitor_signs_out_brings_no_cookie_back(
    idle: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_RENEWED_AFTER", 0)
    visitor, tab = Visitor(idle).sign_in(VIEWER), Visitor(idle)
    form_token = visitor.form_token()
    tab.cookies = httpx.Cookies(visitor.cookies)
    assert "set-cookie" in tab.get("/mapping").headers
    lend, leaving = idle.pool.lend, [visitor]

    def signing_out() -> AbstractContextManager[Any]:
        if leaving:
            assert leaving.pop().send("/sign-out", {"form_token": form_token}).status_code == 303
        return lend()

    monkeypatch.setattr(idle.pool, "lend", signing_out)
    page = tab.get("/mapping")
    assert leaving == []
    assert "set-cookie" not in page.headers


def test_a_short_token_lets_nobody_lock_the_sessions_of_long_ones_out(settings: Settings) -> None:
    with serving(settings, token=f"treasury:operator:{OPERATOR},audit:viewer:short") as web:
        operator, auditor = Visitor(web).sign_in(OPERATOR), Visitor(web).sign_in("short")
        assert auditor.get("/mapping").status_code == 200
        stranger = Visitor(web)  # behind the same proxy
        for number in range(11):
            stranger.cookies.set("cfo-sync-session-8080", f"of.another.{number}")
            page = stranger.get("/mapping")
        assert page.status_code == 429
        assert operator.get("/mapping").status_code == 200
        assert auditor.get("/mapping").status_code == 429  # a right guess must not differ from a wrong one


def test_no_cookie_with_escapes_is_read(idle: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(idle).sign_in(VIEWER)
    read: list[str] = []

    def unquote(text: str) -> str:
        read.append(text)
        return text

    monkeypatch.setattr(http.cookies, "_unquote", unquote)
    [ours] = [f"{name}={value}" for name, value in visitor.cookies.items()]
    hostile = 'x="' + '\\"' * 20_000 + '"'
    assert visitor.get("/mapping", Cookie=f"{hostile}; {ours}; {hostile}").status_code == 200
    assert idle.get("/healthz", headers={"Cookie": hostile}).status_code == 200
    assert read != []
    assert not any("\\" in text for text in read)


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
