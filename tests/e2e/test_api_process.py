"""`cfo-sync api` as a process: its port, its tokens, its logs, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from consumer.mapping import MappingError
from consumer.serving import serve
from consumer.settings import SettingsError
from deploy.local.ports import choose_port
from tests.conftest import make_settings
from tests.roles import API, environment_as
from tests.support import InvoiceSystem

OPERATOR = "operators-token-of-this-test"
VIEWER = "viewers-token-of-this-test"
TOKENS = f"treasury:operator:{OPERATOR} audit:viewer:{VIEWER}"
NOBODY = "127.0.0.1:1"


class ApiProcess:
    """`cfo-sync api` on a port that it chose itself."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumer", "api"],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("CFO_SYNC_")},
                    "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": NOBODY,
                    "CFO_SYNC_API_PORT": "0",
                    **environment_as(API, environment),
                },
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    @property
    def port(self) -> int:
        """As the log says it; waits for it."""
        deadline = time.monotonic() + 30
        while True:
            for line in self.lines("serving the API"):
                return int(line["port"])
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines with this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    def client(self, token: str | None = None) -> httpx.Client:
        """A client of it."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)

    def end(self) -> int:
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


Start = Callable[..., ApiProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start one; it ends with the test."""
    started: list[ApiProcess] = []

    def start(**environment: str) -> ApiProcess:
        names = {f"CFO_SYNC_{name}": value for name, value in environment.items()}
        started.append(ApiProcess(tmp_path / f"api-{len(started)}.log", names))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(10)


def test_it_serves_logs_and_ends(start: Start, dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    invoice_id = invoices.paid_invoice()
    invoices.close()
    api = start(INVOICE_DSN=dsn, API_TOKEN=TOKENS, LOG_LEVEL="DEBUG")
    with api.client(OPERATOR) as operator, api.client(VIEWER) as viewer, api.client() as anybody:
        assert operator.post(f"/api/invoice/{invoice_id}/sync-to-cfo").json()["success"] is True
        assert viewer.get(f"/api/invoice/{invoice_id}/sync-status").json()["invoice_status"] == "complete"
        assert viewer.post(f"/api/invoice/{invoice_id}/sync-to-cfo").status_code == 403
        assert anybody.get("/api/cfo-sync/pending").status_code == 401
        # Any Host will do, and the other's address is not looked for.
        assert anybody.get("/healthz", headers={"Host": "cfo-sync.example"}).status_code == 200
        metrics = anybody.get("/metrics").text
        assert (
            'cfo_sync_api_requests_total{method="POST",route="/api/invoice/{invoice_id}/sync-to-cfo",status="200"} 1.0'
            in metrics
        )
        assert "cfo_sync_pending_invoices" in metrics
        ready = anybody.get("/readyz")
        assert (ready.status_code, ready.json()["dependencies"]["invoice database"]) == (503, "ok")
        assert "server" not in ready.headers
    assert api.end() == 0
    [line] = [line for line in api.lines("request") if line["status"] == 200]
    assert (line["by"], line["outcome"], line["invoice_id"]) == ("treasury", "booked", invoice_id)
    assert len(api.lines("stopped")) == 1
    log = api.log.read_text()
    assert "Traceback" not in log
    for secret in (OPERATOR, VIEWER, str(conninfo_to_dict(dsn)["password"])):
        assert secret not in log
    assert "/healthz" not in log  # no access log


def test_a_stop_finishes_the_request_that_runs(start: Start, dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    invoice_id = invoices.paid_invoice()
    api = start(INVOICE_DSN=dsn)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with api.client() as client:
            answers.append(client.post(f"/api/invoice/{invoice_id}/sync-to-cfo"))

    assert api.port
    with psycopg.connect(dsn) as somebody:
        somebody.execute("LOCK TABLE transactions IN EXCLUSIVE MODE")
        asking = threading.Thread(target=ask)
        asking.start()
        deadline = time.monotonic() + 10
        while not invoices.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        api.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError), api.client() as late:
            late.get("/healthz")
        assert api.process.poll() is None
    asking.join(10)
    assert answers[0].json()["success"] is True
    assert api.process.wait(10) == 0
    assert invoices.invoice(invoice_id)["status"] == "complete"
    invoices.close()


def test_a_second_signal_leaves_at_once(start: Start) -> None:
    """Here from a request that waits for a database which accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        api = start(INVOICE_DSN=f"postgresql://u:hunter2@127.0.0.1:{server.getsockname()[1]}/d")

        def ask() -> None:
            with pytest.raises(httpx.TransportError), api.client() as client:
                client.get("/api/cfo-sync/pending")

        assert api.port
        asking = threading.Thread(target=ask)
        asking.start()
        server.settimeout(10)
        server.accept()[0].close()
        time.sleep(0.2)
        api.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert api.process.poll() is None
        assert api.end() == 128 + signal.SIGTERM
        asking.join(5)


def test_without_a_database_it_starts_on_any_address_if_there_is_a_token(start: Start) -> None:
    there = f"postgresql://u:hunter2@127.0.0.1:{choose_port()}/d"
    api = start(INVOICE_DSN=there, API_HOST="0.0.0.0", API_TOKEN="short")  # noqa: S104
    with api.client("short") as client:
        answer = client.get("/api/cfo-sync/pending")
        assert (answer.status_code, answer.json()["code"]) == (503, "outage-unreachable")
        assert int(answer.headers["retry-after"]) > 0
    assert api.end() == 0
    assert len(api.lines("a token of CFO_SYNC_API_TOKEN is short: it can be guessed")) == 1
    assert "hunter2" not in api.log.read_text()


def test_without_a_token_it_refuses_any_other_address(start: Start) -> None:
    api = start(INVOICE_DSN="host=127.0.0.1 port=1 password=hunter2", API_HOST="0.0.0.0")  # noqa: S104
    assert api.process.wait(30) == 2
    [said] = api.log.read_text().splitlines()
    assert said.startswith("cfo-sync: CFO_SYNC_API_HOST: ")
    assert "CFO_SYNC_API_TOKEN" in said


# -- mistakes in the settings, told before anything is served ----------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"api_host": "::"}, "CFO_SYNC_API_HOST: without CFO_SYNC_API_TOKEN"),
        ({"api_host": "example.org"}, "CFO_SYNC_API_HOST: without CFO_SYNC_API_TOKEN"),
        ({"api_token": "audit:viewer:aaaa,treasury:hunter2"}, "CFO_SYNC_API_TOKEN: token 2 of 2"),
        ({"api_host": "no-such-host.invalid", "api_token": "hunter2"}, "CFO_SYNC_API_HOST: 'no-such-host.invalid'"),
        ({"api_host": "192.0.2.1", "api_token": "hunter2"}, "CFO_SYNC_API_PORT: cannot listen on 192.0.2.1:"),
        ({"kafka_config_file": "/nowhere/kafka.properties"}, "CFO_SYNC_KAFKA_CONFIG_FILE: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_told_and_no_secret(variables: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        serve(make_settings("host=127.0.0.1 port=1 password=hunter2", api_port=0, **variables))
    assert str(caught.value).startswith(told)
    assert "hunter2" not in str(caught.value)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"CFO_SYNC_API_PORT: cannot listen on 127.0.0.1:{port}: Address already"
        ):
            serve(make_settings("host=127.0.0.1 port=1", api_port=port))


def test_a_mapping_file_that_is_not_there_is_told() -> None:
    with pytest.raises(MappingError, match=r"/nowhere/mapping\.toml"):
        serve(make_settings("host=127.0.0.1 port=1", mapping_file="/nowhere/mapping.toml"))
