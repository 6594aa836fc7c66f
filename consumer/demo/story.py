"""The demo from its first line to its last."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final, LiteralString

import psycopg
from psycopg import Connection
from rich.console import Console
from rich.text import Text

from consumer import checks, sessions
from consumer.demo import tables
from consumer.demo.chapters import CHAPTERS
from consumer.demo.process import RETRY_DELAYS, ConsumerProcess, wait_ready
from consumer.demo.promises import PROMISES
from consumer.demo.stage import Stage, Stalled
from consumer.demo.tape import Tape
from consumer.demo.verdicts import Verdict
from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.sessions import Limits, Session
from consumer.settings import Settings, SettingsError

MARK: Final = "cfo-sync reference schema"  # the comment that schemas/reference puts on its tables

_CONSUMER_SECONDS: Final = 30.0
_CHECK_SECONDS: Final = 10.0


def play(settings: Settings, out: Console) -> bool:
    """Play the story with a consumer of its own, then prove every promise; True when all hold.

    The consumer is a member of the configured group, and is stopped in any case; others of the group may take part.
    The demo adds rows and never removes any, so it runs only on the reference schema: raises `SettingsError`, before
    it writes anything, for any other database. Raises `Outage` when something that it needs is missing or goes away.
    """
    settings = settings.model_copy(update={"mapping_file": None})  # the guide's rules, as its consumer's
    try:
        with _terminations_unwind(), ExitStack() as closing:
            return _play(settings, out, closing)
    except psycopg.Error as error:
        raise sessions.outage_of(error, "database of the demo") from error


def _play(settings: Settings, out: Console, closing: ExitStack) -> bool:
    began = time.monotonic()
    invoices, other, ledger = _connect(settings, closing)
    _need_everything(settings)
    tape = closing.enter_context(Tape(settings))
    consumer = closing.enter_context(ConsumerProcess(settings))
    service = closing.enter_context(CFOSyncService(settings))
    stage = Stage(settings, out, invoices, ledger, other, tape, consumer, service)
    closing.callback(stage.queue.close)
    holds = False
    try:
        holds = _tell(stage, began)
    finally:
        if not holds and not _is_interrupted():
            consumer.keep_log = True
            out.print(Text(f"log of the consumer: {consumer.log}"), soft_wrap=True)
    return holds


def _is_interrupted() -> bool:
    return isinstance(sys.exception(), KeyboardInterrupt | SystemExit)


def _tell(stage: Stage, began: float) -> bool:
    out, consumer = stage.out, stage.consumer
    _introduce(stage)
    if not wait_ready(consumer, _CONSUMER_SECONDS):
        stage.complain("the consumer does not become ready; the end of its log:")
        for line in consumer.last_words():
            out.print(Text(line), soft_wrap=True)
        return False
    stage.say(f"the consumer runs, process {consumer.pid}, ready after {time.monotonic() - began:.1f} s")
    for number, chapter in enumerate(CHAPTERS, 1):
        stage.chapter(number, chapter.title)
        try:
            chapter.play(stage)
        except Stalled as stalled:
            # The story goes on: the promises say what came of it.
            stage.complain(str(stalled))
            stage.lose_patience()
    consumer.stop()
    out.print()
    tables.show(stage)
    verdicts = [promise(stage) for promise in PROMISES]
    tables.judge(out, verdicts)
    return _conclude(out, verdicts, time.monotonic() - began)


def _connect(settings: Settings, closing: ExitStack) -> tuple[Connection, Connection, Connection]:
    """Sessions to the invoice database, one of them somebody else's, and one to the ledger's."""
    dsn = settings.invoice_dsn.get_secret_value()
    limits = Limits(idle_in_transaction=120)
    first, second = (Session(dsn, "invoice database", limits, application="cfo-sync-demo") for _ in range(2))
    invoices = closing.enter_context(_session(first))
    _refuse_unless_marked(invoices, "crypto_invoices", "CFO_SYNC_INVOICE_DSN")
    other = closing.enter_context(_session(second))
    if settings.cfo_dsn is None or settings.is_one_database:
        return invoices, other, invoices
    third = Session(settings.cfo_dsn.get_secret_value(), "CFO database", limits, application="cfo-sync-demo")
    ledger = closing.enter_context(_session(third))
    _refuse_unless_marked(ledger, "transactions", "CFO_SYNC_CFO_DSN")
    return invoices, other, ledger


@contextmanager
def _session(session: Session) -> Iterator[Connection]:
    try:
        with session.connection() as connection:
            yield connection
    finally:
        session.close()


def _refuse_unless_marked(connection: Connection, table: LiteralString, variable: str) -> None:
    row = connection.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", (table,)).fetchone()
    if row is None or row[0] != MARK:
        raise SettingsError(
            f"{variable}: the demo writes invoices and transactions, so it refuses this database:"
            f" table {table} of {connection.info.dbname!r} does not bear the comment {MARK!r}\n"
            "`make demo` brings a stack of its own"
        )


def _need_everything(settings: Settings) -> None:
    """A story without its connector would stall in every chapter: look first, for as long as things may be starting."""
    deadline = time.monotonic() + _CHECK_SECONDS
    while bad := [each for each in checks.check(settings, logging.getLogger("kafka")) if not each.good]:
        if time.monotonic() > deadline:
            lines = [f"{each.what}: {each.found}; fix: {each.fix}" for each in bad]
            raise Outage(
                "not-ready", "\n".join(["the demo needs a stack where `cfo-sync check` finds no fault:", *lines])
            )
        time.sleep(0.3)


def _introduce(stage: Stage) -> None:
    settings, info = stage.settings, stage.invoices.info
    stage.out.print(Text(f"CFO Sync demo, run {stage.run}", style="bold"))
    stage.say(f"database {info.dbname} on {info.host}:{info.port}, Kafka {settings.kafka_bootstrap_servers}")
    stage.say(f"group {settings.group_id}, retries after {RETRY_DELAYS}")


def _conclude(out: Console, verdicts: list[Verdict], seconds: float) -> bool:
    broken = sum(not verdict.holds for verdict in verdicts)
    out.print()
    if broken:
        out.print(Text(f"FAIL: {broken} of {len(verdicts)} promises do not hold; {seconds:.1f} s", style="bold red"))
    else:
        out.print(Text(f"PASS: all {len(verdicts)} promises hold; {seconds:.1f} s", style="bold green"))
    return not broken


@contextmanager
def _terminations_unwind() -> Iterator[None]:
    """SIGTERM ends the story as Ctrl-C does: the consumer is stopped on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
