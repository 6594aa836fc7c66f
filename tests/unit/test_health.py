"""The probes of `run`: answered at once, whatever others do with their connections."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from consumer import health
from consumer.health import Health


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of this process, that has patience with the slow."""
    monkeypatch.setattr(health._Handler, "timeout", 60)
    server = health.serve(Health(), CollectorRegistry(), "127.0.0.1", 0)
    yield server.server_port
    server.shutdown()
    server.server_close()


def probe(port: int) -> None:
    """It must be answered, long before strangers are cut for being slow."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer:
        assert json.load(answer) == {"alive": True}


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX: "], ids=["silent", "half a request"])
def test_a_connection_that_is_held_open_keeps_no_probe_waiting(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(sent)
        probe(port)


def test_of_too_many_connections_the_oldest_are_cut(port: int) -> None:
    with ExitStack() as held:
        strangers = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(100)]
        probe(port)
        assert strangers[0].recv(1) == b""


def test_a_client_that_is_silent_is_cut(
    port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
        assert stranger.recv(1) == b""
    assert capfd.readouterr().err == ""
