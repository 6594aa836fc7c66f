"""`cfo-sync run` that dies at a chosen moment: `python -m tests.faults.failpoints run`.

The shipped package knows nothing of this: no switch, no hook, no cost. This launcher replaces, before it calls the
command, that through which the consumer reaches the world (methods of PostgreSQL's connection and cursor, Kafka's
consumer and producer) by what counts the calls, and notes the step, or kills the process.

    CFO_SYNC_TEST_FAIL_POINT=before:statement:7     SIGKILL right before the seventh statement
    CFO_SYNC_TEST_FAIL_POINT_TRACE=FILE             one line per step passed: the point's name, a tab, what was done

Steps are counted from the first record on: what comes before it is the same as never having started. With neither
variable set nothing is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from confluent_kafka import Consumer, Message, Producer
from psycopg import sql

from consumer import broker, cli

POINT: Final = "CFO_SYNC_TEST_FAIL_POINT"
TRACE: Final = "CFO_SYNC_TEST_FAIL_POINT_TRACE"

STEPS: Final = {
    "receive": "records come out of the Kafka client, the first time since anything else was done (after only)",
    "begin": "a transaction begins",
    "statement": "a statement is executed; in pipeline mode, sent",
    "sync": "the end of pipeline mode, when all answers are in",
    "commit": "a transaction commits",
    "publish": "a record is given to the producer",
    "flush": "all given records are waited for",
    "confirm": "the broker's confirmation of one record is taken note of, within a flush",
    "offset-commit": "offsets are sent, the first time since anything else was done",
    "offset-answer": "the broker's answer to that is taken note of",
}
# Through which the consumer reaches the world: where they stand, and under which name.
CLIENTS: Final[tuple[tuple[Any, str], ...]] = (
    (psycopg.Cursor, "execute"),
    (psycopg.Connection, "transaction"),
    (psycopg.Connection, "pipeline"),
    (broker, "Consumer"),
    (broker, "Producer"),
)

_NAME: Final = re.compile(rf"(before|after):({'|'.join(STEPS)}):[1-9]\d*")


class FailPoints:
    """Counts steps, notes them, and kills the process at the chosen one."""

    def __init__(self, point: str | None, trace: Path | None) -> None:
        if point is not None and _NAME.fullmatch(point) is None:
            raise SystemExit(f"{POINT}: {point!r}: write before or after, a step, a number, like before:statement:7;"
                             f" steps: {', '.join(STEPS)}")  # fmt: skip
        self._point = point
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if trace is not None else None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._is_armed = False
        self._has_received = False  # since a statement
        self._has_worked = False  # since offsets were committed

    def receive(self, messages: Iterable[Message | None]) -> None:
        """This came out of the Kafka client. How many calls it takes is chance: only the first one is a step."""
        if self._has_received or all(each is None or each.error() is not None for each in messages):
            return
        self._is_armed = self._has_received = True
        self.pass_by("after", "receive")

    def begin_commit(self) -> bool:
        """Whether these offsets are worth a step: an idle consumer commits the ends of partitions now and then."""
        had_worked, self._has_worked = self._has_worked, False
        return had_worked

    def pass_by(self, moment: str, step: str, what: str = "") -> None:
        """Such a step is about to be done, or is done. Does not return from the chosen one."""
        if not self._is_armed:
            return
        if step in ("statement", "publish"):
            self._has_received, self._has_worked = False, True
        self._counts[moment, step] += 1
        name = f"{moment}:{step}:{self._counts[moment, step]}"
        if self._trace is not None:
            os.write(self._trace, f"{name}\t{what}\n".encode())
        if name == self._point:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def around(self, step: str, what: str = "") -> Iterator[None]:
        """The points before and after a step; none after one that raised."""
        self.pass_by("before", step, what)
        yield
        self.pass_by("after", step, what)


def install(points: FailPoints) -> None:
    """Replace the clients of this process. Everything that the consumer does afterwards passes `points`."""

    execute, begin_transaction, begin_pipeline = (
        psycopg.Cursor.execute, psycopg.Connection.transaction, psycopg.Connection.pipeline
    )  # fmt: skip

    def watched_execute(cursor: psycopg.Cursor[Any], query: Any, *arguments: Any, **options: Any) -> Any:
        with points.around("statement", _statement(cursor.connection, query)):
            return execute(cursor, query, *arguments, **options)

    @contextmanager
    def watched_transaction(connection: psycopg.Connection[Any], **options: Any) -> Iterator[psycopg.Transaction]:
        transaction = begin_transaction(connection, **options)
        with points.around("begin", connection.info.dbname):
            entered = transaction.__enter__()
        try:
            yield entered
        except BaseException as error:
            if not transaction.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            with points.around("commit", connection.info.dbname):
                transaction.__exit__(None, None, None)

    @contextmanager
    def watched_pipeline(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Pipeline]:
        with begin_pipeline(connection) as pipeline:
            yield pipeline
            points.pass_by("before", "sync", connection.info.dbname)
        points.pass_by("after", "sync", connection.info.dbname)

    class WatchedConsumer(Consumer):
        def __init__(self, config: dict[str, Any], **options: Any) -> None:
            answered: Callable[..., None] = config["on_commit"]
            self._is_awaited = False

            def on_commit(*arguments: Any) -> None:
                if not self._is_awaited:
                    answered(*arguments)
                    return
                self._is_awaited = False
                with points.around("offset-answer"):
                    answered(*arguments)

            super().__init__(config | {"on_commit": on_commit}, **options)

        def poll(self, *arguments: Any, **options: Any) -> Message | None:
            message = super().poll(*arguments, **options)
            points.receive([message])
            return message

        def consume(self, *arguments: Any, **options: Any) -> list[Message]:
            messages = super().consume(*arguments, **options)
            points.receive(messages)
            return messages

        def commit(self, *arguments: Any, **options: Any) -> Any:
            if not points.begin_commit():
                return super().commit(*arguments, **options)
            self._is_awaited = True
            with points.around("offset-commit"):
                return super().commit(*arguments, **options)

    class WatchedProducer(Producer):
        def produce(self, topic: str, *arguments: Any, **options: Any) -> None:
            on_delivery = options.pop("on_delivery")

            def confirmed(*found: Any) -> None:
                with points.around("confirm", topic):
                    on_delivery(*found)

            with points.around("publish", topic):
                super().produce(topic, *arguments, **(options | {"on_delivery": confirmed}))

        def flush(self, *arguments: Any, **options: Any) -> int:
            with points.around("flush"):
                return super().flush(*arguments, **options)

    watched = (watched_execute, watched_transaction, watched_pipeline, WatchedConsumer, WatchedProducer)
    for (owner, name), replacement in zip(CLIENTS, watched, strict=True):
        setattr(owner, name, replacement)


def main() -> None:
    """The command with its arguments, watched if the environment says so."""
    point, trace = os.environ.get(POINT), os.environ.get(TRACE)
    if point or trace:
        install(FailPoints(point or None, Path(trace) if trace else None))
    cli.main()


def run_forked(module: str, environment: Mapping[str, str], log: str) -> None:
    """`python -m MODULE run`, in a process that was forked to spare the interpreter's start and the imports.

    Writes its output to `log`. Does not outlive its parent, whatever ends that.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv[1:] = ["run"]
    sys.modules.pop(module, None)  # runpy would warn
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _statement(connection: psycopg.Connection[Any], query: Any) -> str:
    text = query.as_string(connection) if isinstance(query, sql.Composable) else query
    lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
    words = " ".join(line.strip() for line in lines if not line.startswith("--"))
    return f"{connection.info.dbname} {words}"


if __name__ == "__main__":
    main()
