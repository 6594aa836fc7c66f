"""What `run` says of itself over HTTP: /healthz (alive), /readyz (able to work, and if not why), /metrics."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from consumer.faults import Outage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# Longer than any batch may take: the worker's statements and waits all end far earlier.
_STUCK_SECONDS: Final = 300.0
_CONNECTIONS: Final = 32


class Health:
    """The worker's state, written by its thread and read by the server's."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._beat = monotonic()
        self._outage: Outage | None = Outage("starting", "waiting for the dependencies")
        self._broker_outage: Outage | None = None
        self._partitions = 0

    def beat(self) -> None:
        """The worker's loop turns."""
        self._beat = self._monotonic()

    def hold(self, outage: Outage | None) -> None:
        """The worker is on hold because of this, or not any more."""
        self._outage = outage

    def broker(self, outage: Outage | None) -> None:
        """No broker answers, or one does again."""
        self._broker_outage = outage

    def assigned(self, partitions: int) -> None:
        """So many partitions are assigned to this consumer."""
        self._partitions = partitions

    @property
    def is_alive(self) -> bool:
        """Whether the loop has turned within the last five minutes."""
        return self._monotonic() - self._beat < _STUCK_SECONDS

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is ready, and why or why not."""
        outage = self._outage or self._broker_outage
        body: dict[str, Any] = {"ready": outage is None and self.is_alive, "assigned_partitions": self._partitions}
        if outage is not None:
            body |= {"hold": outage.reason, "detail": outage.message}
        return bool(body["ready"]), body


class _Handler(WSGIRequestHandler):
    timeout = 5.0  # seconds for one read or write

    def log_message(self, format: str, *args: Any) -> None:
        """Probes and scrapes are not news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, so that nobody who connects and then is silent or slow keeps a probe waiting. When
    there are too many the oldest is cut; a probe is answered at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._open: dict[Any, None] = {}
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Somebody connected."""
        self._open[request] = None
        if len(self._open) > _CONNECTIONS:
            with suppress(StopIteration, OSError, RuntimeError):  # it may end by itself at this moment
                oldest = next(iter(self._open))
                self._open.pop(oldest, None)
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection ends."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is slow or leaves is no news; what goes wrong in the application wsgiref logs by itself."""


def serve(health: Health, registry: CollectorRegistry, host: str, port: int) -> WSGIServer:
    """Serve in a daemon thread; `server_port` of the result is the port. Raises `OSError` when it is taken."""
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            exposition: Iterable[bytes] = metrics(environ, start_response)
            return exposition
        if path == "/healthz":
            good, body = health.is_alive, {"alive": health.is_alive}
        elif path == "/readyz":
            good, body = health.report()
        else:
            start_response("404 Not Found", [("Content-Type", "application/json")])
            return [b'{"paths": ["/healthz", "/readyz", "/metrics"]}\n']
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(body).encode() + b"\n"]

    server = make_server(host, port, application, server_class=_Server, handler_class=_Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
