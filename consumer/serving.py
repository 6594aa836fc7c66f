"""`cfo-sync api` as a whole: what it is made of, the port, the monitor, stopping on a signal."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from consumer import broker, mapping, tokens
from consumer.api import create_app
from consumer.connections import Connection
from consumer.dlq import DeadLetterQueue
from consumer.readiness import Readiness
from consumer.service import CFOSyncService
from consumer.service_pool import OwnQueue, Pool
from consumer.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from consumer.metrics import StateMetrics

_LOG: Final = structlog.get_logger("api")

_SERVICES: Final = 8  # each holds a connection to each database
_QUEUES: Final = 2  # each reads the whole dead-letter topic once, and keeps what it read

# Together below the ten seconds in which a stop must be done.
_GRACE: Final = 8  # seconds for the requests that run
_MONITOR_GRACE: Final = 1.0


def serve(settings: Settings) -> None:
    """Serve until a signal comes, then finish the requests that run, for a few seconds at most.

    Databases and brokers may be missing meanwhile: /readyz says so, and requests get 503.

    Raises `SettingsError` and `MappingError` for what no waiting can mend; a port that is taken is one.
    """
    from consumer.metrics import StateMetrics

    secret = settings.api_token
    known = tokens.parse(secret.get_secret_value() if secret is not None else None)
    tokens.need_loopback(settings.api_host, known)
    rules = mapping.load(settings.mapping_file)
    broker.client_config(settings)  # says now what is wrong with the properties file
    listener = _listen(settings, only_loopback=not known)
    host, port = listener.getsockname()[:2]

    def make_service() -> CFOSyncService:
        return CFOSyncService(settings, rules=rules)

    metrics = StateMetrics(settings)
    pool = Pool(make_service, size=_SERVICES)
    queues = Pool[DeadLetterQueue](lambda: OwnQueue(settings, make_service()), size=_QUEUES)
    app = create_app(
        pool,
        queues,
        look=Readiness(settings, rules.target).look,
        registry=metrics.registry,
        tokens=known,
        settings=settings,
    )
    config = uvicorn.Config(
        app,
        log_config=None,  # our own goes on
        access_log=False,
        lifespan="off",
        http=Connection,
        ws="none",
        proxy_headers=False,  # anybody can send X-Forwarded-For
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are about what strangers send
    server = _Server(config)
    stop = threading.Event()

    def asked(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn takes the signals over while it serves, and hands them to these afterwards.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)

    watching = threading.Thread(
        target=_watch, args=(settings, make_service, metrics, stop), name="monitor", daemon=True
    )
    watching.start()
    if known.has_short:
        _LOG.warning("a token of CFO_SYNC_API_TOKEN is short: it can be guessed")
    _LOG.info("serving the API", host=host, port=port, needs_token=bool(known))
    # A page of ten thousand dead letters makes so many objects that at the usual thresholds everything that is there
    # is looked through for garbage at each request: a third of its time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    server.run(sockets=[listener])
    stop.set()
    pool.close()
    queues.close()
    watching.join(_MONITOR_GRACE)
    _LOG.info("stopped")
    if watching.is_alive() or threading.active_count() > 1:
        # Clients that wait for a broker or a database would be waited for. Everything else is finished.
        logging.shutdown()
        os._exit(0)


class _Server(uvicorn.Server):
    """Stops as `run` does: the first signal finishes what runs, a second one leaves at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


def _watch(
    settings: Settings, make_service: Callable[[], CFOSyncService], metrics: StateMetrics, stop: threading.Event
) -> None:
    """Look at the pipeline from outside, for /metrics, and reconcile on schedule."""
    from consumer.monitor import Monitor

    with make_service() as service, DeadLetterQueue(settings, service) as queue:
        Monitor(settings, service, queue, metrics).run(stop)


def _listen(settings: Settings, *, only_loopback: bool) -> socket.socket:
    """A socket that listens on the wanted address; the first that works, when the name has several."""
    host, port = settings.api_host, settings.api_port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{PREFIX}API_HOST: {host!r} is no address of this machine: {error}") from error
    refused = OSError("it has no address")
    for family, kind, protocol, _, address in addresses:
        if only_loopback and not tokens.is_loopback(str(address[0])):
            refused = OSError(f"{host!r} is not loopback here, and no token is set")
            continue
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            listener.close()
            refused = error
        else:
            return listener
    reason = refused.strerror or str(refused)
    raise SettingsError(f"{PREFIX}API_PORT: cannot listen on {host}:{port}: {reason}")
