"""Requests of any bytes: never a 5xx, always a problem; and what is no HTTP at all is refused without harm."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.effort import effort
from tests.fuzz.strategies import TEXTS, json_bytes, wild_texts
from tests.integration.web import OPERATOR, Web

POSTS = ["/api/invoice/2/remap", "/api/cfo-sync/dlq/0/1/discard", "/api/cfo-sync/dlq/0/1/replay"]
LISTS = ["/api/cfo-sync/dlq", "/api/cfo-sync/pending"]
TYPES = [
    "application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data; boundary=x", "", ";;=",
    "application/x-www-form-urlencoded", "application/json; charset=\xff", "APPLICATION/JSON", "x/y+json",
]  # fmt: skip
NAMES = ["entity", "business_unit", "reason", "force", "\ud800", "\0", "", "__proto__", "x" * 5000]
QUERY_NAMES = ["limit", "after", "state", "error_code", "text", "since", "until", "first_offset", "partition", "x"]

bodies = json_bytes | st.binary(max_size=200) | st.sampled_from([b"[" * 60_000, b"9" * 60_000, b"{" * 70_000])
objects = st.dictionaries(
    st.sampled_from(NAMES) | wild_texts.map(lambda text: text[:1000]),
    wild_texts.map(lambda text: text[:1000])
    | st.floats()
    | st.integers()
    | st.none()
    | st.lists(st.none(), max_size=2),
    max_size=3,
).map(lambda each: json.dumps(each).encode())
escapes = st.sampled_from(
    ["%ff%fe", "%00", "%ed%a0%80", "%0d%0a", "%", "%zz", "+", "9" * 5000, "1e400", "٣", "-1", "0x1"]
)


def ask(web: Web, method: str, path: str, **arguments: Any) -> int:
    """Send it; `Web` holds every error against what a problem is."""
    answer = web.ask(method, path, token=OPERATOR, **arguments)
    assert answer.status_code < 500, (path, answer.text)
    answer.json()
    return answer.status_code


def test_bodies_and_queries_of_any_bytes_are_answered_with_a_problem(busy_web: Web) -> None:
    """One test, for its pipeline takes longer to make than all that is asked of it."""

    @effort
    @given(st.sampled_from(POSTS), bodies | objects, st.sampled_from(TYPES))
    def ask_with_body(path: str, body: bytes, kind: str) -> None:
        headers = [("Content-Type", kind.encode("latin-1"))]
        assert ask(busy_web, "POST", path, content=body, headers=headers) in (200, 404, 409, 413, 422)

    @effort
    @given(st.sampled_from(LISTS), st.lists(st.tuples(st.sampled_from(QUERY_NAMES), escapes), max_size=4))
    def ask_with_query(path: str, pairs: list[tuple[str, str]]) -> None:
        query = "&".join(f"{name}={value}" for name, value in pairs)
        assert ask(busy_web, "GET", f"{path}?{query}") in (200, 422)

    ask_with_body()
    ask_with_query()
    for text in TEXTS:
        for name in ("entity", "reason", text):
            ask(busy_web, "POST", POSTS[0], content=json.dumps({name: text, "\ud800": 1}).encode())
    for each in ("%ff", "%00", "a%0d%0ab", "9" * 5000, "%2e%2e%2f", "1%00", "٣", "1.0", "%ed%a0%80"):
        assert ask(busy_web, "GET", f"/api/invoice/{each}/sync-status") in (404, 422)
        assert ask(busy_web, "POST", f"/api/cfo-sync/dlq/{each}/{each}/replay") in (404, 422)
    assert ask(busy_web, "GET", "/api/cfo-sync/dlq?" + "&".join(["error_code=x"] * 5000)) == 422
    assert ask(busy_web, "GET", "/api/cfo-sync/dlq?state=open&state=all&limit=1&limit=2") in (200, 422)
    for line in check_over_a_socket(busy_web):
        raise AssertionError(line)


# -- over a socket, where the server's own parser comes first ----------------------------------------------------------


@contextmanager
def listening(web: Web) -> Iterator[int]:
    """The app on a port, served as `cfo-sync api` does."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(web.app, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def talk(port: int, request: bytes) -> bytes:
    """All that is answered, until the server has no more to say."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it hung up in the middle
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        return answer


AUTH = b"Host: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer " + OPERATOR.encode() + b"\r\n"
POST = b"POST /api/invoice/2/remap HTTP/1.1\r\n" + AUTH
RAW: list[bytes] = [
    b"\x16\x03\x01\x02\x00\x01", b"\0" * 5000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\n" + AUTH + b"\r\n", b"GET /%ff%fe?%ff=\xff HTTP/1.1\r\n" + AUTH + b"\r\n",
    b"GET /api/cfo-sync/pending?x=%00 HTTP/1.1\r\n" + AUTH + b"\r\n",
    b"GET /api/x HTTP/1.1\r\n" + AUTH + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
    b"GET /api/x HTTP/1.1\r\n" + AUTH + b"X: 1\r\n" * 5000 + b"\r\n",
    b"GET /api/x HTTP/1.1\r\n" + AUTH + b"Authorization: Bearer \xff\r\n\r\n",
    b"GET /api/x HTTP/1.1\r\n" + AUTH + b"Bad Name: 1\r\n\r\n", b"GET /api/x HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n" + AUTH + b"\r\n",
    POST + b"Content-Length: -1\r\n\r\n", POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    POST + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"a\":\xff\xfe}",
    POST + b"Content-Type: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}", b"BREW /api/x HTTP/1.1\r\n" + AUTH + b"\r\n",
]  # fmt: skip


def check_over_a_socket(web: Web) -> Iterator[str]:
    """What is wrong with the answers: a 5xx, an error of the app that is no problem, a server that is gone."""
    with listening(web) as port:
        for request in RAW:
            head, _, body = talk(port, request).partition(b"\r\n\r\n")
            if not head:
                continue  # refused by hanging up
            status = int(head.split()[1])
            is_problem = b"content-type: application/problem+json" in head.lower()
            # What is no HTTP never reaches the app: uvicorn answers with a line of text, and hangs up on the rest of
            # the request, which may cost the line.
            is_refusal = status == 400 and (not body or b"Invalid HTTP request received." in body)
            if status >= 500 or (status >= 400 and not (is_problem or is_refusal)):
                yield f"{request[:60]!r}: {head!r} {body[:200]!r}"
            if is_problem:
                assert json.loads(body)["status"] == status
        if not talk(port, b"GET /healthz HTTP/1.1\r\n" + AUTH + b"\r\n").startswith(b"HTTP/1.1 200"):
            yield "the server does not answer any more"
