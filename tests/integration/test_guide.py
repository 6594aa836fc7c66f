"""The guide, followed to the letter: its Testing walk-through, and every complete SQL statement as printed there."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import invoice_dsn, ledger_dsn
from tests.roles import API, as_role
from tests.support import InvoiceSystem, LedgerView

NUMBER = "DPY-2025-10-0001"
ENTITY = "Delta Mining Paraguay S.A."


def test_the_walk_through_of_the_guides_chapter_on_testing(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    create_test_invoice = invoices.create_test_invoice
    mark_invoice_as_paid = invoices.mark_invoice_as_paid
    sync_invoice_to_cfo = service.sync_invoice_to_cfo

    # 1. Create test invoice
    invoice_id = create_test_invoice(client="Alps Blockchain", amount=100.00, currency="USDT", network="TRC20")
    # 2. Simulate payment
    mark_invoice_as_paid(invoice_id, tx_hash="0xtest123")
    # 3. Trigger sync
    result = sync_invoice_to_cfo(invoice_id)
    assert result["success"] == True  # noqa: E712 - as the guide writes it
    # 4. Verify in CFO database
    [transaction] = ledger.rows("""SELECT * FROM transactions
   WHERE source_file LIKE 'crypto_invoice_%'
   ORDER BY created_at DESC LIMIT 1;""")
    assert transaction["id"] == result["cfo_transaction_id"]
    assert (transaction["amount"], transaction["currency"]) == (Decimal("100.00"), "USDT")
    # 5. Check sync status
    [sync] = invoices.rows(f"""SELECT * FROM crypto_invoice_cfo_sync
   WHERE invoice_id = {invoice_id};""")
    assert (sync["sync_status"], sync["confidence_score"]) == ("synced", Decimal("1.0"))
    assert (sync["entity_mapped"], sync["category_mapped"]) == (ENTITY, "Revenue")


def test_the_service_of_the_guides_manual_retry_takes_its_settings_from_the_environment(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFO_SYNC_INVOICE_DSN", as_role(API, invoice_dsn(settings)))
    monkeypatch.setenv("CFO_SYNC_CFO_DSN", as_role(API, ledger_dsn(settings)))
    invoice_id = invoices.paid_invoice()

    sync_service = CFOSyncService()
    result = sync_service.sync_invoice_to_cfo(invoice_id, force_retry=True)
    sync_service.close()

    assert result["success"] is True
    assert ledger.count() == 1


# -- the guide's statements, each as printed there; templates with their values put in -------------------------------

CHECK_IF_SYNCED = "SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = ?"

CREATE_TRANSACTION = """
   INSERT INTO transactions (
       Date,
       Description,
       Amount,
       classified_entity,
       Business_Unit,
       source_file,
       transaction_type,
       confidence,
       classification_reason,
       Origin,
       Destination,
       Identifier,
       Currency
   ) VALUES (
       paid_at,
       'Invoice {invoice_number} - {client_name} - {billing_period}',
       amount_usd,
       'Delta Mining Paraguay S.A.',  -- Entity from invoice issuer
       'Delta Mining Paraguay S.A.',
       'crypto_invoice_{invoice_number}',
       'Revenue',
       1.0,  -- 100% confidence
       'Crypto invoice payment from {client}',
       'External Account',
       'Delta Paraguay Operations',
       invoice_number,
       crypto_currency
   )
"""

RECORD_MAPPING = """
   INSERT INTO crypto_invoice_cfo_sync (
       invoice_id,
       cfo_transaction_id,
       sync_status,
       sync_timestamp,
       entity_mapped,
       category_mapped,
       confidence_score
   ) VALUES (
       invoice_id,
       cfo_txn_id,
       'synced',
       NOW(),
       'Delta Mining Paraguay S.A.',
       'Revenue',
       1.0
   )
"""

# Printed without values; they are put in behind it.
LOG_ATTEMPT = """
   INSERT INTO crypto_cfo_sync_log (
       invoice_id,
       sync_status,
       cfo_transaction_id,
       request_payload,
       response_data
   )
"""

COMPLETE_INVOICE = """
   UPDATE crypto_invoices
   SET status = 'complete'
   WHERE id = invoice_id
"""

FAILED_SYNCS = """
SELECT *
FROM v_crypto_invoices_pending_sync
WHERE sync_status = 'failed'
AND retry_count < 3;
"""

SYNC_LAG = """
   SELECT AVG(EXTRACT(EPOCH FROM (sync_timestamp - paid_at)))
   FROM crypto_invoice_cfo_sync s
   JOIN crypto_invoices i ON s.invoice_id = i.id
   WHERE sync_timestamp > NOW() - INTERVAL '24 hours';
"""

SUCCESS_RATE = """
   SELECT
       COUNT(*) FILTER (WHERE sync_status = 'synced') * 100.0 / COUNT(*) as success_rate
   FROM crypto_invoice_cfo_sync
   WHERE created_at > NOW() - INTERVAL '7 days';
"""

PENDING_SYNCS = "SELECT COUNT(*) FROM v_crypto_invoices_pending_sync;"

PENDING_VIEW = "SELECT * FROM v_crypto_invoices_pending_sync;"

SYNCED_VIEW = "SELECT * FROM v_crypto_invoices_synced;"

READY_FUNCTION = "SELECT * FROM get_invoices_ready_for_sync();"

LATEST_TRANSACTION = """
   SELECT * FROM transactions
   WHERE source_file LIKE 'crypto_invoice_%'
   ORDER BY created_at DESC LIMIT 1;
"""

SYNC_STATUS = """
   SELECT * FROM crypto_invoice_cfo_sync
   WHERE invoice_id = {invoice_id};
"""

DUPLICATE = """
   SELECT * FROM transactions
   WHERE Identifier = 'DPY-2025-10-0001';
"""

CORRECT_MAPPING = """
   UPDATE crypto_invoice_cfo_sync
   SET entity_mapped = 'Correct Entity'
   WHERE invoice_id = {invoice_id};
"""

CORRECT_TRANSACTION = """
   UPDATE transactions
   SET classified_entity = 'Correct Entity'
   WHERE id = {cfo_transaction_id};
"""


class Scene:
    """A day of the invoice system: one invoice booked, one failed for good, one failed after three retries, one new."""

    def __init__(self, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView) -> None:
        self.invoices, self.ledger = invoices, ledger
        self.booked = invoices.paid_invoice(invoice_number=NUMBER, billing_period="October 2025")
        self.cfo_transaction_id = service.sync_invoice_to_cfo(self.booked)["cfo_transaction_id"]
        self.failed = invoices.paid_invoice(amount=None)
        service.sync_invoice_to_cfo(self.failed)
        self.given_up = invoices.paid_invoice(amount=None)
        service.sync_invoice_to_cfo(self.given_up)
        invoices.connection.execute(
            "UPDATE crypto_invoice_cfo_sync SET retry_count = 3 WHERE invoice_id = %s", [self.given_up]
        )
        self.pending = invoices.paid_invoice()

    def put_in(self, statement: str) -> str:
        """The statement with its values in the places of `?` and `{…}`."""
        return (
            statement.replace("?", str(self.booked))
            .replace("{invoice_id}", str(self.booked))
            .replace("{cfo_transaction_id}", str(self.cfo_transaction_id))
        )

    def ask(self, statement: str) -> list[dict[str, Any]]:
        """Run a query of the guide where its tables are."""
        where = self.ledger if "transactions" in statement else self.invoices
        return where.rows(self.put_in(statement))

    def tell(self, statement: str) -> int:
        """Run an update of the guide where its table is; gives the number of rows changed."""
        where = self.ledger if "transactions" in statement else self.invoices
        return where.connection.execute(self.put_in(statement).encode()).rowcount


@pytest.fixture
def scene(service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView) -> Scene:
    return Scene(service, invoices, ledger)


@pytest.mark.parametrize("statement", [CHECK_IF_SYNCED, SYNC_STATUS])
def test_the_mapping_row_is_found_by_invoice_id(scene: Scene, statement: str) -> None:
    [row] = scene.ask(statement)
    assert (row["invoice_id"], row["sync_status"]) == (scene.booked, "synced")
    assert row["cfo_transaction_id"] == scene.cfo_transaction_id


@pytest.mark.parametrize("statement", [LATEST_TRANSACTION, DUPLICATE])
def test_the_transaction_is_found_in_the_cfo_database(scene: Scene, statement: str) -> None:
    [row] = scene.ask(statement)
    assert (row["id"], row["identifier"]) == (scene.cfo_transaction_id, NUMBER)
    assert row["description"] == f"Invoice {NUMBER} - Alps Blockchain - October 2025"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (FAILED_SYNCS, ["failed"]),
        (PENDING_VIEW, ["failed", "given_up", "pending"]),
        (SYNCED_VIEW, ["booked"]),
        (READY_FUNCTION, ["failed", "pending"]),
    ],
)
def test_views_function_and_recovery_query_show_the_right_invoices(
    scene: Scene, statement: str, expected: list[str]
) -> None:
    found = [row["invoice_id"] for row in scene.ask(statement)]
    if statement != READY_FUNCTION:  # the views promise no order
        found.sort()
    assert found == [getattr(scene, name) for name in expected]


def test_metric_sync_lag_is_the_seconds_from_payment_to_sync(scene: Scene) -> None:
    [row] = scene.ask(SYNC_LAG)
    assert 0 <= row["avg"] < 60


def test_metric_success_rate_is_a_percentage_of_the_mapping_rows(scene: Scene) -> None:
    [row] = scene.ask(SUCCESS_RATE)
    assert round(row["success_rate"], 3) == Decimal("33.333")


def test_metric_pending_syncs_counts_each_invoice_once(scene: Scene) -> None:
    scene.invoices.connection.execute(
        "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, status)"
        " VALUES (%s, '0x2', 'confirmed')",
        [scene.pending],
    )
    assert scene.ask(PENDING_SYNCS) == [{"count": 3}]


def test_a_wrong_entity_is_corrected_and_stays_correct(scene: Scene, service: CFOSyncService) -> None:
    assert (scene.tell(CORRECT_MAPPING), scene.tell(CORRECT_TRANSACTION)) == (1, 1)

    for again in (False, True):
        if again:  # even a reopened invoice, whose facts are brought up to date
            scene.invoices.update(scene.booked, status="paid", amount_usd=Decimal("101.00"))
        assert service.sync_invoice_to_cfo(scene.booked)["success"] is True
        sync = scene.invoices.sync_row(scene.booked)
        assert sync is not None
        assert sync["entity_mapped"] == "Correct Entity"
        [transaction] = scene.ledger.of(NUMBER)
        assert transaction["classified_entity"] == "Correct Entity"
    assert transaction["amount"] == Decimal("101.00")


def test_an_invoice_booked_by_hand_with_the_guides_statements_is_settled(
    scene: Scene, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id, number = scene.pending, "DPY-2025-10-0777"
    invoices.update(invoice_id, invoice_number=number)

    head, _, values = CREATE_TRANSACTION.partition("VALUES")
    for name, value in {
        "       paid_at,": "       '2025-10-22 14:00:00',",
        "{invoice_number}": number,
        "{client_name}": "Alps Blockchain",
        "{client}": "Alps Blockchain",
        "{billing_period}": "October 2025",
        "amount_usd": "100.00",
        "       invoice_number,": f"       '{number}',",
        "crypto_currency": "'USDT'",
    }.items():
        assert name in values
        values = values.replace(name, value)
    assert scene.tell(f"{head}VALUES{values}") == 1
    [transaction] = ledger.of(number)

    head, _, values = RECORD_MAPPING.partition("VALUES")
    values = values.replace("invoice_id", str(invoice_id)).replace("cfo_txn_id", str(transaction["id"]))
    assert scene.tell(f"{head}VALUES{values}") == 1
    payloads = """'{"amount": "100.00"}', '{"id": 1}'"""
    assert scene.tell(f"{LOG_ATTEMPT} VALUES ({invoice_id}, 'synced', {transaction['id']}, {payloads})") == 1
    assert scene.tell(COMPLETE_INVOICE.replace("invoice_id", str(invoice_id))) == 1

    result = service.sync_invoice_to_cfo(invoice_id)
    assert (result["success"], result["cfo_transaction_id"]) == (True, transaction["id"])
    assert ledger.of(number) == [transaction]
    [entry] = invoices.log(invoice_id)
    assert entry["request_payload"] == {"amount": "100.00"}
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["created_at"] is not None


def test_a_duplicate_is_settled_by_hand_as_the_guide_says_and_never_booked(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    ledger.insert(("date", "amount", "identifier"), "2025-10-01", "99.00", NUMBER)
    [existing] = ledger.rows(DUPLICATE)
    # "If exists, update sync mapping to point to existing transaction", "mark as synced without creating duplicate"
    invoices.connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status) VALUES (%s, %s, 'synced')",
        (invoice_id, existing["id"]),
    )

    result = service.sync_invoice_to_cfo(invoice_id)

    assert (result["success"], result["cfo_transaction_id"]) == (True, existing["id"])
    assert ledger.rows(DUPLICATE) == [existing]
    assert invoices.invoice(invoice_id)["status"] == "complete"
