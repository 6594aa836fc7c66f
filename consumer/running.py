"""`cfo-sync run` as a whole: wait for the dependencies, work, stop on a signal."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from types import FrameType
from typing import Final

import structlog

from consumer import broker, health, topics
from consumer.faults import Outage
from consumer.metrics import Metrics
from consumer.pipeline import Pipeline
from consumer.publisher import Publisher
from consumer.retry import Backoff
from consumer.service import CFOSyncService
from consumer.settings import Settings, SettingsError
from consumer.sweep import Sweep
from consumer.worker import Worker

_LOG: Final = structlog.get_logger("run")


class Stop:
    """SIGTERM or SIGINT asks to finish the batch and leave; a second one leaves at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.worker: Worker | None = None

    def install(self) -> None:
        """Handle the signals from now on. Only in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)

    def _asked(self, number: int, _: FrameType | None) -> None:
        if self.event.is_set():
            os._exit(128 + number)
        self.event.set()
        if self.worker is not None:
            self.worker.stop()


def run(settings: Settings) -> None:
    """Consume until a signal comes. Raises `SettingsError` and `MappingError` for what no waiting can mend."""
    stop = Stop()
    stop.install()
    kafka_log = logging.getLogger("kafka")
    metrics, state = Metrics(settings.consumed_topics), health.Health()
    with CFOSyncService(settings) as service:
        if settings.metrics_port:
            try:
                server = health.serve(state, metrics.registry, settings.metrics_host, settings.metrics_port)
            except OSError as error:
                where = f"{settings.metrics_host}:{settings.metrics_port}"
                raise SettingsError(f"CFO_SYNC_METRICS_PORT: cannot listen on {where}: {error.strerror}") from error
            _LOG.info("serving /metrics, /healthz and /readyz", host=settings.metrics_host, port=server.server_port)
        if not _wait_for_dependencies(settings, service, state, metrics, stop, kafka_log):
            return
        worker = Worker(
            settings,
            lambda on_error, on_commit: broker.make_consumer(settings, kafka_log, on_error, on_commit),
            Publisher(lambda: broker.make_producer(settings, kafka_log)),
            Pipeline(settings, service),
            Sweep(settings, service, time.monotonic),
            metrics,
            state,
            uniform=random.random,
        )
        stop.worker = worker
        if not stop.event.is_set():
            state.hold(None)
            _LOG.info("consuming", group=settings.group_id, topics=list(settings.consumed_topics))
            worker.run()
        _LOG.info("stopped")
        if not worker.is_closed:
            # The interpreter would wait for the client that waits for a broker. Everything else is finished.
            service.close()
            logging.shutdown()
            os._exit(0)


def _wait_for_dependencies(
    settings: Settings,
    service: CFOSyncService,
    state: health.Health,
    metrics: Metrics,
    stop: Stop,
    kafka_log: logging.Logger,
) -> bool:
    """Wait until everything that we need is there, with a line per thing waited for. False if asked to stop.

    That is a hold too: the metrics say so.
    """
    backoff = Backoff(0.5, 10, random.random)
    said, reason = "", None
    while not stop.event.is_set():
        state.beat()
        try:
            service.verify()
            _need_topics(settings, kafka_log)
        except Outage as outage:
            state.hold(outage)
            if reason not in (None, outage.reason):
                metrics.hold.labels(reason).set(0)
            reason = outage.reason
            metrics.hold.labels(reason).set(1)
            if str(outage) != said:
                said = str(outage)
                _LOG.warning("waiting", reason=outage.reason, detail=outage.message)
            stop.event.wait(backoff.next_wait())
        else:
            if reason is not None:
                metrics.hold.labels(reason).set(0)
            return True
    return False


def _need_topics(settings: Settings, kafka_log: logging.Logger) -> None:
    existing = topics.describe(broker.make_admin(settings, kafka_log))
    if missing := [name for name in (*settings.consumed_topics, settings.dlq_topic) if name not in existing]:
        raise Outage("topics", f"no topic {', '.join(missing)} that we may see: `cfo-sync check` tells how to mend it")
