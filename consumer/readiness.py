"""What /readyz says: whether everything that the API needs answers, asked now, within seconds."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import psycopg
from confluent_kafka import KafkaException
from psycopg import Connection

from consumer import broker, sessions, store, topics
from consumer.faults import Outage
from consumer.ledger import Ledger
from consumer.mapping import Target
from consumer.sessions import Limits, Session
from consumer.settings import Settings

Dependencies: TypeAlias = Mapping[str, str | None]
"""By name: None, or what is wrong."""

INVOICE_DATABASE: Final = "invoice database"
CFO_DATABASE: Final = "CFO database"
KAFKA: Final = "kafka"
TOPICS: Final = "topics"


class _Probe:
    """Asks one thing in a thread of its own, which may hang: a name server knows no time limit."""

    def __init__(self, patience: float, names: tuple[str, ...], ask: Callable[[], Dependencies]) -> None:
        self._patience = patience
        self.names = names
        self._ask = ask
        self._done = threading.Event()
        self._done.set()
        self._found: Dependencies = {}

    def start(self) -> None:
        """Ask, unless the question before is not answered yet."""
        if self._done.is_set():
            self._done.clear()
            threading.Thread(target=self._run, name=f"probe {self.names[0]}", daemon=True).start()

    def wait(self, deadline: float) -> Dependencies:
        """What it found, or that it found nothing in time."""
        if self._done.wait(max(0.0, deadline - time.monotonic())):
            return self._found
        return dict.fromkeys(self.names, f"no answer within {self._patience:g} s")

    def _run(self) -> None:
        try:
            self._found = self._ask()
        except Outage as outage:
            self._found = dict.fromkeys(self.names, outage.message)
        except Exception as error:
            logging.getLogger("readiness").exception("probe failed")
            self._found = dict.fromkeys(self.names, f"the probe failed: {type(error).__name__}")
        finally:
            self._done.set()


class Readiness:
    """Looks at both databases, the broker and the topics; never hangs, never raises. Thread-safe."""

    def __init__(self, settings: Settings, target: Target, *, patience: float = 2.0, fresh: float = 1.0) -> None:
        """`patience`: seconds for one look at everything; `fresh`: seconds for which its answer is given again."""
        self._settings = settings
        self._target = target
        self._patience = patience
        self._fresh = fresh
        self._probes = [
            _Probe(patience, (INVOICE_DATABASE,), self._ask_invoice_database),
            _Probe(patience, (KAFKA, TOPICS), self._ask_kafka),
        ]
        if not settings.is_one_database:
            self._probes.insert(1, _Probe(patience, (CFO_DATABASE,), self._ask_cfo_database))
        self._admin: broker.Admin | None = None
        self._lock = threading.Lock()
        self._found: Dependencies = {}
        self._found_at = -math.inf

    def look(self) -> Dependencies:
        """Every dependency, within about two seconds; those who ask at the same time share one answer."""
        with self._lock:
            if time.monotonic() - self._found_at >= self._fresh:
                self._found = self._look_now()
                self._found_at = time.monotonic()
            return self._found

    def _look_now(self) -> Dependencies:
        deadline = time.monotonic() + self._patience
        for probe in self._probes:
            probe.start()
        return {name: wrong for probe in self._probes for name, wrong in probe.wait(deadline).items()}

    def _ask_invoice_database(self) -> Dependencies:
        def ask(connection: Connection) -> None:
            store.touch(connection)
            if self._settings.is_one_database:
                Ledger.inspect(connection, self._target)

        return {INVOICE_DATABASE: _ask(self._settings.invoice_dsn.get_secret_value(), INVOICE_DATABASE, ask)}

    def _ask_cfo_database(self) -> Dependencies:
        assert self._settings.cfo_dsn is not None  # noqa: S101  (there are two)
        dsn = self._settings.cfo_dsn.get_secret_value()
        return {CFO_DATABASE: _ask(dsn, CFO_DATABASE, lambda connection: Ledger.inspect(connection, self._target))}

    def _ask_kafka(self) -> Dependencies:
        settings = self._settings
        try:
            # Kept: making one costs several threads and connections.
            self._admin = self._admin or broker.make_admin(settings, logging.getLogger("kafka"))
            existing = topics.describe(self._admin, 0.75 * self._patience)  # so that its own answer comes in time
        except (Outage, KafkaException) as error:
            wrong = error.message if isinstance(error, Outage) else "no Kafka broker answers"
            return {KAFKA: wrong, TOPICS: "unknown: no Kafka broker answers"}
        missing = [name for name in (*settings.consumed_topics, settings.dlq_topic) if name not in existing]
        return {KAFKA: None, TOPICS: f"missing: {', '.join(missing)}: `cfo-sync topics create`" if missing else None}


def _ask(dsn: str, database: str, ask: Callable[[Connection], object]) -> str | None:
    """Log in anew: a connection that stands already would not tell that nobody else can."""
    limits = Limits(connect=2, statement=2, lock=2, tcp=2)
    session = Session(dsn, database, limits, application="cfo-sync-probe")
    try:
        with session.connection() as connection:
            ask(connection)
    except Outage as outage:
        return _said(outage, database)
    except psycopg.Error as error:
        return _said(sessions.outage_of(error, database), database)
    finally:
        session.close()
    return None


def _said(outage: Outage, database: str) -> str:
    """In one line, and without the name that it is told under."""
    return " ".join(outage.message.removeprefix(f"{database}: ").split())
