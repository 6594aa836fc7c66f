"""/readyz: each dependency by name, within seconds whatever happens; and the pool that lends services."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from psycopg.conninfo import make_conninfo

from consumer import mapping
from consumer.faults import Outage
from consumer.readiness import Readiness
from consumer.service_pool import Busy, Pool
from consumer.settings import Settings
from deploy.local.ports import choose_port
from tests.conftest import make_settings
from tests.integration.scenes import execute, invoice_dsn, ledger_dsn

RULES = mapping.load(None)


def look(settings: Settings) -> dict[str, str | None]:
    """With no broker, whose name is dropped from the answer."""
    nobody = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{choose_port()}"})
    found = dict(Readiness(nobody, RULES.target, patience=0.4).look())
    assert "broker" in str(found.pop("kafka"))
    assert str(found.pop("topics")).startswith("unknown")
    return found


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that accepts and then says nothing; gives it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_each_database_is_named(settings: Settings) -> None:
    names = ["invoice database"] if settings.is_one_database else ["invoice database", "CFO database"]
    assert look(settings) == dict.fromkeys(names)


def test_what_is_missing_is_told_where_it_is_missing(settings: Settings) -> None:
    execute(ledger_dsn(settings), "DROP TABLE transactions")
    found = look(settings)
    where = "invoice database" if settings.is_one_database else "CFO database"
    assert "transactions" in str(found.pop(where))
    assert set(found.values()) <= {None}
    execute(invoice_dsn(settings), "ALTER TABLE crypto_cfo_sync_log RENAME TO gone")
    assert "crypto_cfo_sync_log" in str(look(settings)["invoice database"])


def test_a_wrong_password_is_told_and_not_repeated(dsn: str) -> None:
    wrong = look(make_settings(make_conninfo(dsn, password="hunter2")))["invoice database"]
    assert "password authentication failed" in str(wrong)
    assert "hunter2" not in str(wrong)


def test_nothing_makes_it_hang_and_nobody_waits_twice() -> None:
    """Databases and a broker that accept connections and never answer; many ask at the same time."""
    with silent_server() as port:
        there = f"postgresql://u:hunter2@127.0.0.1:{port}/d"
        settings = make_settings(there, cfo_dsn=f"{there}2", kafka_bootstrap_servers=f"127.0.0.1:{port}")
        readiness = Readiness(settings, RULES.target, patience=0.6, fresh=60)
        answers: list[object] = []
        threads = [threading.Thread(target=lambda: answers.append(readiness.look())) for _ in range(20)]
        before = threading.active_count()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert threading.active_count() <= before + 3
        forgetful = Readiness(settings, RULES.target, patience=0.2, fresh=0)
        before = threading.active_count()
        for _ in range(3):
            assert None not in forgetful.look().values()
        assert threading.active_count() <= before + 3  # who still waits for an answer is not asked again
    assert len(answers) == 20
    first = answers[0]
    assert all(each is first for each in answers)
    assert isinstance(first, dict)
    assert list(first) == ["invoice database", "CFO database", "kafka", "topics"]
    assert None not in first.values()
    assert "hunter2" not in str(first)


def test_an_answer_is_kept_for_a_second_and_not_longer(dsn: str) -> None:
    nobody = make_settings(dsn, kafka_bootstrap_servers=f"127.0.0.1:{choose_port()}")
    readiness = Readiness(nobody, RULES.target, patience=0.4)
    assert readiness.look()["invoice database"] is None
    execute(dsn, "ALTER TABLE crypto_clients RENAME TO gone")
    assert readiness.look()["invoice database"] is None
    time.sleep(1.1)
    assert readiness.look()["invoice database"] is not None


# -- the pool ----------------------------------------------------------------------------------------------------------


class Lent:
    def __init__(self) -> None:
        self.closings = 0

    def close(self) -> None:
        self.closings += 1


def test_what_is_lent_comes_back_and_is_lent_again() -> None:
    pool = Pool(Lent, size=2, patience=0.01)
    with pool.lend() as one, pool.lend() as two:
        assert one is not two
        with pytest.raises(Busy), pool.lend():
            pass
    with pool.lend() as again:
        assert again in (one, two)
    assert (one.closings, two.closings) == (0, 0)


def test_who_waits_gets_the_next_one() -> None:
    pool = Pool(Lent, size=1, patience=5)
    got = []

    def wait() -> None:
        with pool.lend() as lent:
            got.append(lent)

    with pool.lend() as lent:
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        assert got == []
    waiting.join(5)
    assert got == [lent]


def test_an_outage_leaves_it_usable_and_any_other_error_closes_its_connections() -> None:
    pool = Pool(Lent, size=1, patience=0.01)
    with pytest.raises(Outage), pool.lend() as lent:
        raise Outage("unreachable", "x")
    assert lent.closings == 0
    with pytest.raises(ZeroDivisionError), pool.lend() as lent:
        raise ZeroDivisionError
    assert lent.closings == 1
    with pool.lend() as again:
        assert again is lent


def test_a_failure_to_make_one_takes_no_place() -> None:
    def fail() -> Lent:
        raise ZeroDivisionError

    pool = Pool(fail, size=1, patience=0.01)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.lend():
            pass


def test_closing_closes_the_idle_now_and_the_others_when_they_come_back() -> None:
    pool = Pool(Lent, size=2)
    with pool.lend() as busy:
        with pool.lend() as idle:
            pass
        pool.close()
        assert (idle.closings, busy.closings) == (1, 0)
    assert busy.closings == 1
