"""A server that is there but does not answer: frozen, or behind something that swallows packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumer.sessions import Limits, Session, Verdict, meaning_of
from deploy.local.ports import choose_port
from deploy.local.stack import Stack
from tests.faults.proxy import Proxy


@pytest.fixture
def proxy(postgres: Stack) -> Iterator[Proxy]:
    proxy = Proxy(choose_port(), postgres.postgres.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_answer_that_does_not_come_is_a_lost_connection(dsn: str, proxy: Proxy, pipelined: bool) -> None:
    session = Session(make_conninfo(dsn, port=proxy.port), "database", Limits(statement=1, answer=0))

    def ask(connection: psycopg.Connection) -> None:
        if pipelined:
            with connection.pipeline():
                connection.execute("SELECT 1")
        else:
            connection.execute("SELECT 1")

    def stall() -> None:
        with session.connection() as connection, connection.transaction():
            connection.execute("SELECT 1")
            proxy.half_open(True)
            ask(connection)

    with pytest.raises(psycopg.OperationalError, match=f"no answer for {4 if pipelined else 1} s") as lost:
        stall()
    assert meaning_of(lost.value).verdict is Verdict.LOST
    proxy.half_open(False)
    with session.connection() as connection, connection.transaction():
        ask(connection)
    session.close()


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_server_that_is_slow_within_its_limits_is_waited_for(dsn: str, pipelined: bool) -> None:
    # A second is for each: those of a pipeline are answered together.
    session = Session(dsn, "database", Limits(statement=1, answer=0))
    with session.connection() as connection, connection.transaction():
        with connection.pipeline() if pipelined else nullcontext():
            for _ in range(3):
                connection.execute("SELECT pg_sleep(0.4)")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    session.close()


def test_a_statement_without_a_limit_is_waited_for(dsn: str) -> None:
    session = Session(dsn, "database", Limits(statement=0, answer=0))
    with session.connection() as connection:
        assert connection.execute("SELECT 1 FROM pg_sleep(0.3)").fetchone() == (1,)
    session.close()
