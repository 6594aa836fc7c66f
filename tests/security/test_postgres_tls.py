"""PostgreSQL that takes TLS only: `sslmode=verify-full` works everywhere, and whoever cannot be verified is refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from consumer import checks, migrations
from consumer.faults import Outage
from consumer.outcomes import Booked
from consumer.readiness import Readiness
from consumer.service import CFOSyncService
from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.conftest import make_settings
from tests.e2e.harness import wait_until
from tests.security.certificates import Authority
from tests.security.processes import Process
from tests.security.tls_front import TlsFront
from tests.support import InvoiceSystem

HOST = "127.0.0.1"
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issued the server's certificate, which is for `HOST` and nothing else."""
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def front(postgres: Stack, authority: Authority) -> Iterator[TlsFront]:
    """The only way in."""
    front = TlsFront(authority.file.parent, *authority.issue(HOST), postgres.postgres.port)
    yield front
    front.close()


def by_tls(dsn: str, front: TlsFront, authority: Authority) -> str:
    """The same database, by verified TLS."""
    return make_conninfo(dsn, host=HOST, port=front.port, sslmode="verify-full", sslrootcert=str(authority.file))


@pytest.fixture
def secured(settings: Settings, front: TlsFront, authority: Authority) -> Settings:
    """Both databases by verified TLS."""

    def secure(dsn: SecretStr) -> str:
        return by_tls(dsn.get_secret_value(), front, authority)

    cfo_dsn = None if settings.cfo_dsn is None else secure(settings.cfo_dsn)
    return make_settings(secure(settings.invoice_dsn), cfo_dsn=cfo_dsn, kafka_bootstrap_servers=NOBODY)


def test_all_works_by_verified_tls(
    secured: Settings, dsn: str, front: TlsFront, authority: Authority, invoices: InvoiceSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checks, "_check_topics", lambda *_: iter(()))
    before = front.encrypted
    invoice_id = invoices.paid_invoice()
    with CFOSyncService(secured) as service:
        service.verify()
        [outcome] = service.sync({invoice_id: 0}).values()
        assert isinstance(outcome, Booked)
        looks = Readiness(secured, service.rules.target).look()
    assert {name: wrong for name, wrong in looks.items() if "database" in name and wrong} == {}
    assert migrations.migrate(by_tls(dsn, front, authority)) == []  # dsn is the owner's
    places = {each.what: each for each in checks.check(secured, logging.getLogger("kafka")) if "database" in each.what}
    assert len(places) == (1 if secured.cfo_dsn is None else 2)
    for place in places.values():
        assert place.good
        assert place.found.endswith(", TLS, verified")
    assert front.encrypted - before >= 4 * len(places)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sslrootcert": "other"}, "sslrootcert"),
        ({"sslrootcert": "/nowhere.pem"}, "/nowhere.pem"),
        ({"host": "localhost", "hostaddr": HOST}, 'does not match host name "localhost"'),
        ({"sslmode": "disable", "sslrootcert": ""}, "no encryption"),
    ],
    ids=["authority", "no-authority", "host-name", "no-tls"],
)
@pytest.mark.parametrize("settings", ["one-database"], indirect=True)
def test_what_cannot_be_verified_is_an_outage_that_says_so(
    secured: Settings, changed: dict[str, str], named: str, tmp_path: Path
) -> None:
    if changed.get("sslrootcert") == "other":
        changed = {"sslrootcert": str(Authority(tmp_path, "other").file)}
    dsn = make_conninfo(secured.invoice_dsn.get_secret_value(), **changed)
    with CFOSyncService(make_settings(dsn)) as service, pytest.raises(Outage) as caught:
        service.verify()
    assert named in caught.value.message
    assert str(conninfo_to_dict(dsn)["password"]) not in caught.value.message


@pytest.mark.parametrize("settings", ["one-database"], indirect=True)
def test_a_wrong_authority_is_held_by_run_until_it_is_right(
    secured: Settings, authority: Authority, invoices: InvoiceSystem, tmp_path: Path,
    start: Callable[[str, dict[str, str]], Process],
) -> None:  # fmt: skip
    file = Authority(tmp_path, "trusted").file
    dsn = make_conninfo(secured.invoice_dsn.get_secret_value(), sslrootcert=str(file))
    process = start("run", {
        "CFO_SYNC_INVOICE_DSN": dsn, "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": NOBODY, "CFO_SYNC_LOG_FORMAT": "json",
        "CFO_SYNC_METRICS_HOST": HOST,
    })  # fmt: skip
    process.wait_hold("unreachable", "certificate verify failed", "sslrootcert")
    shutil.copy(authority.file, file)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cfo-sync'"
    wait_until(lambda: invoices.value(query) == 1, "the session")
