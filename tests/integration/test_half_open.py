"""A server that is there but does not answer: frozen, or behind something that swallows packets."""

from __future__ import annotations

from collections.abc import Iterator

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
    session = Session(make_conninfo(dsn, port=proxy.port), "database", Limits(answer=1))

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

    with pytest.raises(psycopg.OperationalError, match="no answer for 1 s") as lost:
        stall()
    assert meaning_of(lost.value).verdict is Verdict.LOST
    proxy.half_open(False)
    with session.connection() as connection, connection.transaction():
        ask(connection)
    session.close()
