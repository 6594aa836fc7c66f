"""Clients that are slow on purpose: cut after a while, and never in the way of others. The limits are short here."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from consumer import connections
from consumer.connections import Connection
from tests.e2e.harness import wait_until

LIMIT = 0.8
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without reading a body; `/large` with more than any buffer holds, `/slow` after a while."""
    if scope["path"] == "/slow":
        await asyncio.sleep(LIMIT * 2)
    body = b"x" * (64 << 20 if scope["path"] == "/large" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def running() -> uvicorn.Server:
    """A server of this process."""
    return uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", ws="none", log_config=None))


@pytest.fixture
def server(running: uvicorn.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Where it listens."""
    monkeypatch.setattr(connections, "_SECONDS", LIMIT)
    monkeypatch.setattr(connections, "_MOST", 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield listener.getsockname()
        running.should_exit = True
        thread.join(10)
    assert not running.server_state.connections


def connect(server: tuple[str, int]) -> socket.socket:
    return socket.create_connection(server, timeout=5)


def seconds_until_cut(client: socket.socket, drip: bytes = b"") -> float:
    """How long the server lets the client go on, which sends this again and again. It must not be for ever."""
    began = time.monotonic()
    client.settimeout(0.05)
    with client:
        while time.monotonic() < began + 20:
            try:
                if drip:
                    client.sendall(drip)
                if not client.recv(1 << 16):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("it is not cut")
        return time.monotonic() - began


def answers(client: socket.socket, path: bytes = b"/") -> bool:
    client.sendall(HEAD.replace(b"/", path, 1) + b"\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nxx"):
        answer += client.recv(1 << 16)
    return answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),  # connects and says nothing
        (HEAD, b""),
        (HEAD, b"X-Header: y\r\n"),  # a head without an end
        (HEAD + b"\r\n" + HEAD, b"X-Header: y\r\n"),  # one whole request, then such a head
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", b"x"),  # a body behind its answer
    ],
    ids=["silent", "half a head", "an endless head", "an endless second head", "an endless body"],
)
def test_a_client_that_does_not_get_on_is_cut(server: tuple[str, int], first: bytes, drip: bytes) -> None:
    client = connect(server)
    client.sendall(first)
    assert seconds_until_cut(client, drip) >= LIMIT * 0.9


def test_a_client_that_does_not_read_is_cut(server: tuple[str, int], running: uvicorn.Server) -> None:
    with connect(server) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: running.server_state.total_requests, "the request")
        wait_until(lambda: not running.server_state.connections, "the cut")
        received = 0
        with suppress(OSError):  # reset
            while part := client.recv(1 << 20):
                received += len(part)
    assert received < 64 << 20


def test_a_client_that_asks_now_and_then_or_waits_for_an_answer_stays(server: tuple[str, int]) -> None:
    with connect(server) as client:
        for _ in range(5):
            assert answers(client)
            time.sleep(LIMIT / 2)
        assert answers(client, b"/slow")


def test_others_get_in_while_somebody_holds_all_connections_open(
    server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SECONDS", 30)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(40)]
        for client in held[:20]:
            with suppress(OSError):  # cut already
                client.sendall(HEAD)
        assert answers(stack.enter_context(connect(server)))
        seconds_until_cut(held[0])


def test_a_head_has_a_size(server: tuple[str, int]) -> None:
    with connect(server) as client:
        client.sendall(HEAD + b"X-Header: " + b"y" * 100_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")
