"""Who may ask, from where, how much; and what is noted of a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from starlette.requests import Request

from consumer import gate
from consumer.api_answers import actor_of
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from tests.conftest import make_settings
from tests.integration.web import OPERATOR, TOKENS, VIEWER, Web, serving
from tests.support import InvoiceSystem

NOWHERE = "host=127.0.0.1 port=1 dbname=none password=hunter2"
READS = [
    "/api/invoice/1/sync-status",
    "/api/cfo-sync/pending",
    "/api/cfo-sync/reconciliation",
    "/api/cfo-sync/dlq",
    "/api/openapi.json",
]
ACTS = [
    "/api/invoice/1/sync-to-cfo",
    "/api/invoice/1/remap",
    "/api/cfo-sync/dlq/0/0/replay",
    "/api/cfo-sync/dlq/0/0/discard",
]


class Unused:
    """A pool from which nothing may be lent: what is refused is refused before."""

    def close(self) -> None:
        pass

    def lend(self) -> Any:
        raise ZeroDivisionError("the handler was reached, with hunter2")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Printing tracebacks takes long."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(scope="module")
def guarded() -> Iterator[Web]:
    """With tokens. A handler that is reached fails with 500."""
    with serving(make_settings(NOWHERE), token=TOKENS, pool=Unused()) as web:
        yield web


@pytest.fixture(scope="module")
def local() -> Iterator[Web]:
    """Without tokens."""
    with serving(make_settings(NOWHERE), pool=Unused()) as web:
        yield web


def is_reached(answer: Any) -> bool:
    return answer.status_code in (200, 422, 500)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("GET", path) for path in READS] + [("POST", path) for path in ACTS])
def test_who_may_do_what(guarded: Web, method: str, path: str) -> None:
    for headers in (
        {},
        {"Authorization": f"Bearer {OPERATOR}x"},
        {"Authorization": f"Bearer {OPERATOR[:-1]}"},
        {"Authorization": OPERATOR},
        {"Authorization": f"Basic {OPERATOR}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer treasury:operator:{OPERATOR}"},
        {"X-Token": OPERATOR},
        [("Authorization", f"Bearer {OPERATOR}"), ("Authorization", "Bearer x")],
    ):
        refused = guarded.ask(method, path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"].startswith('Bearer realm="cfo-sync"')
        assert OPERATOR not in refused.text
    assert is_reached(guarded.ask(method, path, token=OPERATOR))
    as_viewer = guarded.ask(method, path, token=VIEWER)
    if method == "GET":
        assert is_reached(as_viewer)
    else:
        assert (as_viewer.status_code, as_viewer.json()["code"]) == (403, "forbidden")


def test_wrong_tokens_are_limited_by_address_and_lock_nobody_with_a_long_one_out() -> None:
    short = "s3cret"
    with serving(make_settings(NOWHERE), token=f"{TOKENS},x:viewer:{short}", pool=Unused()) as web:

        def ask(token: str | None, address: str) -> httpx.Response:
            return web.get("/api/openapi.json", token=token, address=address)

        assert {ask(f"guess{number}", "192.0.2.1").status_code for number in range(9)} == {401}
        assert {ask(None, "192.0.2.1").status_code for _ in range(20)} == {401}  # no token is no guess
        assert ask(short, "192.0.2.1").status_code == 200
        assert ask("guess", "192.0.2.1").status_code == 401
        # From now on a right guess cannot be told from a wrong one.
        for token in ("guess", short, f"{OPERATOR}x"):
            refused = ask(token, "192.0.2.1")
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many-attempts")
            assert 1 <= int(refused.headers["retry-after"]) <= 10
            assert refused.headers["cache-control"] == "no-store"
        assert ask(OPERATOR, "192.0.2.1").status_code == 200
        assert ask(short, "192.0.2.2").status_code == 200
        forwarded = web.get(
            "/api/openapi.json", token=short, address="192.0.2.1", headers={"X-Forwarded-For": "192.0.2.9"}
        )
        assert forwarded.status_code == 429  # anybody can send that header
        counts = {
            reason: web.registry.get_sample_value("cfo_sync_api_refused_tokens_total", {"reason": reason})
            for reason in ("missing", "unknown", "limited")
        }
    assert counts == {"missing": 20, "unknown": 10, "limited": 4}


def test_a_token_is_replaced_without_an_interruption() -> None:
    """Both are good while it is handed out; after the next start only the new one is."""
    old, new = "treasury:operator:the-old-token-of-this-test", "treasury:operator:the-new-token-of-this-test"
    statuses = []
    for tokens in (f"{old},{new}", new):
        with serving(make_settings(NOWHERE), token=tokens, pool=Unused()) as web:
            statuses += [web.get("/api/openapi.json", token=each.rpartition(":")[2]).status_code for each in (old, new)]
    assert statuses == [200, 200, 401, 200]


def test_the_scheme_may_be_written_in_any_case(guarded: Web) -> None:
    assert guarded.get("/api/openapi.json", headers={"Authorization": f"bEARER   {VIEWER}"}).status_code == 200


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/nothing", "/api/invoice/1", "/api/invoice/1/sync-status/"])
def test_who_has_no_token_does_not_learn_which_paths_there_are(guarded: Web, path: str) -> None:
    expected = 404 if path == "/api" else 401
    assert guarded.get(path).status_code == expected
    assert guarded.get(path, token=VIEWER).status_code == 404


SPELLINGS = ["//api/cfo-sync/pending", "/API/cfo-sync/pending", "/./api/cfo-sync/pending", "/x/../api/cfo-sync/pending"]


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_other_spelling_of_a_path_leads_around_the_gate(guarded: Web, path: str) -> None:
    assert guarded.get(path).status_code in (401, 404)


def test_probes_and_metrics_are_open(guarded: Web) -> None:
    """And /readyz, see test_api_readiness."""
    assert guarded.get("/healthz").json() == {"alive": True}
    assert guarded.get("/metrics").headers["content-type"].startswith("text/plain")


def test_a_query_is_no_place_for_a_token(guarded: Web) -> None:
    assert guarded.get(f"/api/cfo-sync/pending?access_token={OPERATOR}").status_code == 401


# -- this machine only -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:8080", "127.1.2.3"])
def test_without_tokens_this_machine_s_names_are_answered(local: Web, host: str) -> None:
    assert local.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.1",
     "evil@127.0.0.1", "", "[", "127.0.0.1/evil", "2130706433"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/healthz", "/api/cfo-sync/pending"])
def test_without_tokens_other_names_are_refused(local: Web, host: str, path: str) -> None:
    """A page whose name was made to resolve to 127.0.0.1 would otherwise be of the same origin."""
    refused = local.get(path, headers={"Host": host})
    assert (refused.status_code, refused.json()["code"]) == (403, "host-not-local")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": ""},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"},
    ],
    ids=str,
)
def test_other_sites_pages_cannot_act(local: Web, guarded: Web, headers: dict[str, str]) -> None:
    refused = local.post("/api/invoice/1/sync-to-cfo", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "cross-site")
    assert guarded.post("/api/invoice/1/sync-to-cfo", headers=headers, token=OPERATOR).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_programs_and_our_own_pages_can_act(local: Web, headers: dict[str, str]) -> None:
    assert is_reached(local.post("/api/invoice/1/sync-to-cfo", headers=headers))


def test_no_answer_lets_another_site_read_it(local: Web) -> None:
    for answer in (
        local.get("/api/openapi.json", headers={"Origin": "https://evil.example"}),
        local.ask("OPTIONS", "/api/invoice/1/sync-to-cfo", headers={
            "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}),
    ):  # fmt: skip
        assert not [name for name in answer.headers if name.startswith("access-control")]


# -- what a request may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/invoice/1/remap", "/api/invoice/1/sync-to-cfo", "/healthz", "/nothing"])
def test_a_large_body_is_refused(local: Web, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1024

    for content in (b"x" * (gate.MAX_BODY_BYTES + 1), chunks):
        answer = local.post(path, content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "request-too-large")
    assert local.post(path, headers={"Content-Length": "9" * 5000}).status_code == 413
    assert local.post(path, content=b"x" * gate.MAX_BODY_BYTES).status_code != 413


def test_a_body_in_many_parts_arrives_whole(local: Web) -> None:
    def parts() -> Iterator[bytes]:
        yield from (b'{"entity"', b": ", b"1}")

    answer = local.post("/api/invoice/1/remap", content=parts, headers={"Content-Type": "application/json"})
    assert [error["field"] for error in answer.json()["errors"]] == ["body.entity"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/invoice/1/sync-to-cfo", {"POST"}),
        ("DELETE", "/api/invoice/1/sync-status", {"GET"}),
        ("OPTIONS", "/api/cfo-sync/pending", {"GET"}),
        ("PATCH", "/healthz", {"GET"}),
        ("BREW", "/api/cfo-sync/pending", {"GET"}),
    ],
)
def test_a_method_that_a_path_does_not_have_is_405(local: Web, method: str, path: str, allowed: set[str]) -> None:
    answer = local.ask(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/api/invoice/1/sync-status/", "/%2e%2e/etc", "/x%00"])
def test_other_paths_are_not_found(local: Web, path: str) -> None:
    answer = local.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_every_answer_has_the_security_headers(local: Web, guarded: Web) -> None:
    for answer in (
        local.get("/healthz"), local.get("/nothing"), local.get("/api/cfo-sync/pending?limit=0"),
        local.get("/api/cfo-sync/pending"), local.get("/metrics"), guarded.get("/api/cfo-sync/pending"),
    ):  # fmt: skip
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


# -- what goes wrong inside --------------------------------------------------------------------------------------------


def test_an_error_that_nobody_foresaw_tells_nothing_of_the_inside(local: Web, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), structlog.testing.capture_logs() as lines:
        answer = local.get("/api/cfo-sync/pending")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
    assert "ZeroDivision" not in answer.text
    [line] = [line for line in lines if line["event"] == "request failed"]
    assert line["log_level"] == "error"
    assert line["exc_info"]


def test_when_all_services_are_in_use_one_more_request_is_sent_away() -> None:
    settings = make_settings(NOWHERE)
    pool = Pool(lambda: CFOSyncService(settings), size=1, patience=0.05)
    with serving(settings, pool=pool) as web, pool.lend():
        answer = web.get("/api/cfo-sync/pending")
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert answer.headers["retry-after"] == "1"


# -- what is noted -----------------------------------------------------------------------------------------------------


def test_each_request_that_acts_is_logged_with_who_what_and_outcome(dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    paid, unpaid = invoices.paid_invoice(), invoices.create_test_invoice()
    invoices.close()
    with serving(make_settings(dsn), token=TOKENS) as web, structlog.testing.capture_logs() as lines:
        web.get("/api/cfo-sync/pending", token=VIEWER)
        web.post(f"/api/invoice/{paid}/sync-to-cfo?force=true", token=OPERATOR)
        web.post(f"/api/invoice/{unpaid}/sync-to-cfo", token=OPERATOR)
        web.post(f"/api/invoice/{paid}/remap", token=OPERATOR, json={"entity": "E"})
        web.post(f"/api/invoice/{paid}/sync-to-cfo", token=VIEWER)
        web.post(f"/api/invoice/{paid}/sync-to-cfo", token="guess")
        web.post(f"/api/cfo-sync/pending?token={OPERATOR}", token=OPERATOR)
    noted = [line for line in lines if line["event"] == "request"]
    assert [(line["by"], line["path"], line["status"], line["outcome"]) for line in noted] == [
        ("treasury", f"/api/invoice/{paid}/sync-to-cfo", 200, "booked"),
        ("treasury", f"/api/invoice/{unpaid}/sync-to-cfo", 409, "not-paid"),
        ("treasury", f"/api/invoice/{paid}/remap", 200, "remapped"),
        ("audit", f"/api/invoice/{paid}/sync-to-cfo", 403, "forbidden"),
        (None, f"/api/invoice/{paid}/sync-to-cfo", 401, "unauthorized"),
        ("treasury", "/api/cfo-sync/pending", 405, "method-not-allowed"),
    ]
    assert (noted[0]["force"], noted[0]["invoice_id"]) == (True, paid)
    text = repr(lines)
    assert not [secret for secret in (OPERATOR, VIEWER, "guess") if secret in text]


def test_the_token_s_name_is_who_did_it(dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    invoice_id = invoices.paid_invoice()
    with serving(make_settings(dsn), token=TOKENS) as web:
        web.post(f"/api/invoice/{invoice_id}/sync-to-cfo", token=OPERATOR)
        web.post(f"/api/invoice/{invoice_id}/remap", token=OPERATOR, json={"entity": "E"})
    assert invoices.value("SELECT done_by FROM cfo_sync_actions") == "treasury"
    invoices.close()


def test_requests_are_counted_by_route_and_never_by_what_was_asked(local: Web) -> None:
    def count(route: str, method: str, status: str) -> float | None:
        labels = {"route": route, "method": method, "status": status}
        return local.registry.get_sample_value("cfo_sync_api_requests_total", labels)

    def count_series() -> int:
        samples = [sample for metric in local.registry.collect() for sample in metric.samples]
        return len([sample for sample in samples if sample.name == "cfo_sync_api_requests_total"])

    route = "/api/invoice/{invoice_id}/sync-to-cfo"
    assert count(route, "POST", "409") == 0  # from the beginning
    before = count(route, "POST", "422") or 0
    series = count_series()
    for number in (0, -1, -2):
        local.post(f"/api/invoice/{number}/sync-to-cfo")
    assert count(route, "POST", "422") == before + 3
    for number in range(20):
        local.ask(f"BREW{number}", f"/nothing/{number}")
    assert count("other", "other", "404") == 20
    assert count_series() <= series + 1
    seconds = local.registry.get_sample_value("cfo_sync_api_request_seconds_count", {"route": route, "method": "POST"})
    assert seconds is not None
    assert seconds >= 3
    assert "cfo_sync_api_requests_total{" in local.get("/metrics").text


def test_the_actor_comes_from_the_gate_and_from_nowhere_else(local: Web) -> None:
    """A handler without the gate before it fails instead of serving everybody."""
    with pytest.raises(AttributeError):
        actor_of(Request({"type": "http", "headers": []}), None)
    assert local.get("/healthz").status_code == 200
