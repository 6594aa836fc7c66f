"""Examples for the OpenAPI document: the guide's, where it has them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

# By operation and status; the first three are the guide's.
ANSWERS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("sync-invoice", "200"): {
        "success": True,
        "invoice_id": 123,
        "cfo_transaction_id": 45678,
        "sync_status": "synced",
        "sync_timestamp": "2025-10-22T14:30:00Z",
    },
    ("invoice-status", "200"): {
        "invoice_id": 123,
        "invoice_number": "DPY-2025-10-0001",
        "invoice_status": "complete",
        "sync_status": "synced",
        "cfo_transaction_id": 45678,
        "sync_timestamp": "2025-10-22T14:30:00Z",
        "entity_mapped": "Delta Mining Paraguay S.A.",
        "category_mapped": "Revenue",
    },
    ("pending-invoices", "200"): {
        "count": 2,
        "invoices": [
            {
                "invoice_id": 124,
                "invoice_number": "DPY-2025-10-0002",
                "client_name": "Alps Blockchain",
                "amount_usd": Decimal("5000.00"),
                "paid_at": "2025-10-22T14:00:00Z",
                "sync_status": "pending",
                "retry_count": 0,
            }
        ],
    },
    ("sync-invoice", "409"): {
        "type": "urn:cfo-sync:problem:not-paid",
        "title": "The invoice is not paid",
        "status": 409,
        "detail": "invoice 123 is 'sent'; only paid ones are booked",
        "instance": "/api/invoice/123/sync-to-cfo",
        "code": "not-paid",
        "invoice_id": 123,
    },
    ("sync-invoice", "422"): {
        "type": "urn:cfo-sync:problem:amount-missing",
        "title": "The invoice cannot be booked as it stands",
        "status": 422,
        "detail": "amount_usd is empty",
        "instance": "/api/invoice/123/sync-to-cfo",
        "code": "amount-missing",
        "invoice_id": 123,
        "errors": [
            {
                "field": "amount_usd",
                "found": "amount_usd is empty",
                "allowed": "a number above 0, exact to the cent",
            }
        ],
    },
    ("remap-invoice", "200"): {
        "success": True,
        "invoice_id": 123,
        "cfo_transaction_id": 45678,
        "old": {"entity": "Delta Mining Paraguay S.A."},
        "new": {"entity": "Delta Hosting S.A."},
    },
    ("readiness", "200"): {"ready": True, "dependencies": {"invoice database": "ok", "kafka": "ok", "topics": "ok"}},
    ("readiness", "503"): {
        "ready": False,
        "dependencies": {
            "invoice database": "ok",
            "kafka": "no Kafka broker answers: Local: Broker transport failure",
            "topics": "unknown: no Kafka broker answers",
        },
    },
}
REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "remap-invoice": {"entity": "Delta Hosting S.A.", "business_unit": "Paraguay Hosting"},
    "discard-dead-letter": {"reason": "test invoice, cancelled by finance"},
}
