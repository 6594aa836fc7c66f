"""Our updates, marked so that a connector can pass them over; without the means for it nothing but the echo changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from structlog.testing import capture_logs

from consumer import checks, origins
from consumer.faults import Outage
from consumer.outcomes import Booked
from consumer.service import CFOSyncService
from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.integration.scenes import invoice_dsn
from tests.roles import CONSUMER, INVOICE_DATABASE, as_owner, create_roles
from tests.support import InvoiceSystem

SLOT = "origins_test"
MARKING = f"EXECUTE ON FUNCTION {', '.join(origins.FUNCTIONS)}"
PEEK = (
    "SELECT count(*) FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
    " 'publication_names', 'cfo_sync_publication', 'origin', %s) WHERE get_byte(data, 0) = ascii('U')"
)


COMMIT_TIMES = (
    "SELECT substr(data, 19, 8) FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
    " 'publication_names', 'cfo_sync_publication') WHERE get_byte(data, 0) = ascii('C')"
)


@pytest.fixture
def marking(settings: Settings) -> Settings:
    return settings.model_copy(update={"silence_echo": True})


@pytest.fixture
def granted(postgres: Stack, settings: Settings) -> None:
    """The privilege, in this test's database alone."""
    _as_superuser(postgres, settings, f"GRANT {MARKING} TO {CONSUMER}")


def _as_superuser(postgres: Stack, settings: Settings, statement: str) -> None:
    dbname = psycopg.conninfo.conninfo_to_dict(invoice_dsn(settings))["dbname"]
    with psycopg.connect(postgres.postgres.superuser_dsn(str(dbname)), autocommit=True) as superuser:
        superuser.execute(statement.encode())


@pytest.fixture
def slot(invoices: InvoiceSystem) -> Iterator[str]:
    invoices.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    yield SLOT
    invoices.connection.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))


def _silence(settings: Settings) -> checks.Finding:
    with psycopg.connect(settings.invoice_dsn.get_secret_value()) as connection:
        return checks._check_silence(connection)


@pytest.mark.usefixtures("granted")
def test_what_a_marked_session_writes_is_passed_over_and_what_others_write_is_not(
    marking: Settings, invoices: InvoiceSystem, slot: str
) -> None:
    ids = invoices.paid_invoices(300)
    for invoice_id in ids[:3]:
        invoices.update(invoice_id, description="touched")
    with CFOSyncService(marking) as service:
        outcomes = service.sync(dict.fromkeys(ids, 0))
        taken = invoices.value("SELECT count(*) FROM pg_replication_origin WHERE roname LIKE 'cfo-sync-%%'")
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert taken >= 2, "each connection has an origin of its own"
    assert invoices.value(PEEK, slot, "any") == 303
    assert invoices.value(PEEK, slot, "none") == 3
    assert _silence(marking).good


@pytest.mark.usefixtures("granted")
def test_each_marked_transaction_bears_its_own_commit_time(
    marking: Settings, invoices: InvoiceSystem, slot: str
) -> None:
    with CFOSyncService(marking) as service:
        for _ in range(3):
            assert service.sync(dict.fromkeys([invoices.paid_invoice()], 0))
    times = [row["substr"] for row in invoices.rows(COMMIT_TIMES, slot)]
    assert len(times) == 9  # sent, paid, complete
    assert times == sorted(set(times)), "in the order of the commits, none twice"


@pytest.mark.usefixtures("granted")
def test_a_privilege_that_is_taken_away_is_missed_once(
    postgres: Stack, marking: Settings, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    with CFOSyncService(marking) as reader, CFOSyncService(marking) as writer:
        reader.status(invoice_id)
        writer.status(invoice_id)
        _as_superuser(postgres, marking, f"REVOKE {MARKING} FROM {CONSUMER}")
        with pytest.raises(Outage, match="permission denied"):
            reader.status(invoice_id)
        with pytest.raises(Outage, match="permission denied"):
            writer.sync({invoice_id: 0})
        assert reader.status(invoice_id) is not None
        assert isinstance(writer.sync({invoice_id: 0})[invoice_id], Booked)


@pytest.mark.usefixtures("granted")
def test_running_the_roles_file_again_leaves_the_privilege(marking: Settings) -> None:
    create_roles(as_owner(marking.invoice_dsn.get_secret_value()), INVOICE_DATABASE)
    assert _silence(marking).good


@pytest.mark.usefixtures("granted")
def test_an_origin_is_free_again_when_its_session_ends(marking: Settings, invoices: InvoiceSystem) -> None:
    def mine() -> str | None:
        with psycopg.connect(marking.invoice_dsn.get_secret_value(), autocommit=True) as connection:
            return origins.mark(connection)

    assert mine() == mine()


def test_without_the_privilege_it_is_told_and_nothing_else_changes(
    marking: Settings, invoices: InvoiceSystem, slot: str
) -> None:
    invoice_id = invoices.paid_invoice()
    with capture_logs() as logs, CFOSyncService(marking) as service:
        outcome = service.sync({invoice_id: 0})[invoice_id]
    assert isinstance(outcome, Booked)
    [warning] = [each for each in logs if each["log_level"] == "warning"]
    assert "may not execute" in warning["reason"]
    assert invoices.value(PEEK, slot, "none") == 2  # paid, complete
    finding = _silence(marking)
    assert not finding.good
    assert "GRANT EXECUTE" in finding.fix


@pytest.mark.usefixtures("granted")
def test_when_all_origins_are_taken_it_is_told(marking: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as sessions, capture_logs() as logs:

        def mine() -> str | None:
            dsn = marking.invoice_dsn.get_secret_value()
            return origins.mark(sessions.enter_context(psycopg.connect(dsn, autocommit=True)))

        *taken, last = [mine() for _ in range(11)]
        assert taken[0] is not None
        assert last is None
        monkeypatch.setattr(origins, "_MOST", 1)
        assert mine() is None
    assert "max_active_replication_origins" in logs[0]["reason"]
    assert "in use" in logs[1]["reason"]
