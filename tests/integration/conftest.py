"""Each test's databases go when it is over: hundreds of them would keep the server's autovacuum and checkpoints busy."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from deploy.local.stack import Stack

_NAMES = r"SELECT datname FROM pg_database WHERE datname LIKE 'test\_%'"


class Administrator:
    """A superuser's session, opened again when a test has stopped the server."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def databases(self) -> set[str]:
        """The names of the tests' databases."""
        try:
            return self._names()
        except psycopg.OperationalError:
            self.close()
            self._connection = None
            return self._names()

    def drop(self, name: str) -> None:
        """Drop a database, and end the sessions that a failed test left in it."""
        assert self._connection is not None
        self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _names(self) -> set[str]:
        if self._connection is None:
            self._connection = psycopg.connect(self._dsn, autocommit=True)
        return {row[0] for row in self._connection.execute(_NAMES.encode())}


@pytest.fixture(scope="session")
def administrator(postgres: Stack) -> Iterator[Administrator]:
    administrator = Administrator(postgres.postgres.superuser_dsn())
    yield administrator
    administrator.close()


@pytest.fixture(autouse=True)
def _drop_databases(administrator: Administrator) -> Iterator[None]:
    before = administrator.databases()
    yield
    for name in administrator.databases() - before:
        administrator.drop(name)
