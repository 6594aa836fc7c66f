"""What one would write without this product: `python -m tests.bench.rivals plain|blind`, set as `cfo-sync run` is.

Both hold one connection and write the guide's four rows for each invoice in one transaction of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import psycopg
from confluent_kafka import Consumer

_ENTITY = "Delta Mining Paraguay S.A."


def plain() -> None:
    """The consumer of most tutorials: one record, one transaction, one commit of its offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": os.environ["CFO_SYNC_GROUP_ID"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([os.environ["CFO_SYNC_SOURCE_TOPIC"]])
    with psycopg.connect(os.environ["CFO_SYNC_INVOICE_DSN"], autocommit=True) as connection:
        while True:
            message = consumer.poll(1)
            if message is None or message.error() is not None:
                continue
            event = json.loads(message.value() or b"{}")
            if (event.get("after") or {}).get("status") == "paid":
                book(connection, event["after"]["id"], is_checked=True)
            consumer.commit(message=message, asynchronous=False)


def blind(count: int) -> None:
    """The guide's own insert, called for one invoice after the other: no Kafka, no check, no ON CONFLICT."""
    with psycopg.connect(os.environ["CFO_SYNC_INVOICE_DSN"], autocommit=True) as connection:
        for invoice_id in range(1, count + 1):
            book(connection, invoice_id, is_checked=False)


def book(connection: psycopg.Connection, invoice_id: int, *, is_checked: bool) -> None:
    """The guide's six steps."""
    with connection.transaction():
        if is_checked:
            query = "SELECT sync_status FROM crypto_invoice_cfo_sync WHERE invoice_id = %s"
            found = connection.execute(query, (invoice_id,)).fetchone()
            if found == ("synced",):
                return
        row = connection.execute(
            "SELECT i.invoice_number, i.amount_usd, i.paid_at, i.billing_period, i.crypto_currency, c.name"
            " FROM crypto_invoices i JOIN crypto_clients c ON c.id = i.client_id WHERE i.id = %s",
            (invoice_id,),
        ).fetchone()
        assert row is not None
        number, amount, paid_at, period, currency, client = row
        values: Mapping[str, Any] = {
            "Date": paid_at, "Description": f"Invoice {number} - {client} - {period}", "Amount": amount,
            "classified_entity": _ENTITY, "Business_Unit": "Paraguay Mining", "source_file": f"crypto_invoice_{number}",
            "transaction_type": "Revenue", "confidence": 1,
            "classification_reason": f"Crypto invoice payment from {client}",
            "Origin": "External Account", "Destination": "Delta Paraguay Operations", "Identifier": number,
            "Currency": currency,
        }  # fmt: skip
        inserted = connection.execute(
            f"INSERT INTO transactions ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
            tuple(values.values()),
        ).fetchone()
        assert inserted is not None
        connection.execute(
            "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status, sync_timestamp,"
            " entity_mapped, category_mapped, confidence_score) VALUES (%s, %s, 'synced', now(), %s, 'Revenue', 1.0)",
            (invoice_id, inserted[0], _ENTITY),
        )
        connection.execute(
            "INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status, cfo_transaction_id, request_payload,"
            " response_data) VALUES (%s, 'synced', %s, %s, %s)",
            (invoice_id, inserted[0], json.dumps(values, default=str), json.dumps({"id": inserted[0]})),
        )
        connection.execute("UPDATE crypto_invoices SET status = 'complete' WHERE id = %s", (invoice_id,))


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        plain()
    else:
        blind(int(sys.argv[2]))
