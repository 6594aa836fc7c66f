"""What the tests share: the guide's helper functions, and the rows they look at."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.roles import as_owner

_numbers = itertools.count(1)


class InvoiceSystem:
    """The invoice system of a test: writes its three tables as its services would, each call one transaction."""

    def __init__(self, dsn: str) -> None:
        self.dsn = as_owner(dsn)
        self.connection = psycopg.connect(self.dsn, autocommit=True, options="-c TimeZone=UTC")

    def close(self) -> None:
        self.connection.close()

    def reconnect(self) -> None:
        """After the server was down."""
        self.connection.close()
        self.connection = psycopg.connect(self.dsn, autocommit=True, options="-c TimeZone=UTC")

    def client(self, name: str) -> int:
        """The client's id; the client is made if it is new."""
        return self._one_id(
            "INSERT INTO crypto_clients (name) VALUES (%s)"
            " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
            name,
        )

    def create_test_invoice(
        self,
        client: str = "Alps Blockchain",
        amount: Decimal | float | None = Decimal("100.00"),
        currency: str | None = "USDT",
        network: str | None = "TRC20",
        **columns: Any,
    ) -> int:
        """The guide's helper: a sent invoice; gives its id. `columns` are further columns of crypto_invoices."""
        row = {
            "invoice_number": f"DPY-2025-10-{next(_numbers):04d}-{uuid.uuid4().hex[:6]}",
            "client_id": self.client(client),
            "status": "sent",
            "amount_usd": amount,
            "crypto_currency": currency,
            "crypto_network": network,
        } | columns
        names = ", ".join(row)
        marks = ", ".join(["%s"] * len(row))
        return self._one_id(f"INSERT INTO crypto_invoices ({names}) VALUES ({marks}) RETURNING id", *row.values())

    def mark_invoice_as_paid(
        self, invoice_id: int, tx_hash: str | None = None, paid_at: datetime | None = None
    ) -> None:
        """The guide's helper: a confirmed payment, then the invoice paid, in one transaction."""
        with self.connection.transaction():
            self.connection.execute(
                "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency,"
                " network, status, confirmations, confirmed_at)"
                " SELECT id, %s, amount_usd, crypto_currency, crypto_network, 'confirmed', 20, now()"
                " FROM crypto_invoices WHERE id = %s",
                (tx_hash or f"0x{uuid.uuid4().hex}", invoice_id),
            )
            self.connection.execute(
                "UPDATE crypto_invoices SET status = 'paid', paid_at = coalesce(%s, now() AT TIME ZONE 'UTC'),"
                " updated_at = now() AT TIME ZONE 'UTC' WHERE id = %s",
                (paid_at, invoice_id),
            )

    def paid_invoice(self, **arguments: Any) -> int:
        """A new invoice that is paid."""
        invoice_id = self.create_test_invoice(**arguments)
        self.mark_invoice_as_paid(invoice_id)
        return invoice_id

    def paid_invoices(self, count: int, *, amount: str = "100.00", client: str = "Alps Blockchain") -> list[int]:
        """Many paid invoices by one statement, without payments; their ids in order."""
        rows = self.connection.execute(
            "INSERT INTO crypto_invoices (invoice_number, client_id, status, amount_usd, crypto_currency, paid_at)"
            " SELECT %s || '-' || n, %s, 'paid', %s, 'USDT', now() AT TIME ZONE 'UTC' FROM generate_series(1, %s) n"
            " RETURNING id",
            (f"BULK-{uuid.uuid4().hex[:8]}", self.client(client), amount, count),
        ).fetchall()
        return sorted(row[0] for row in rows)

    def update(self, invoice_id: int, **columns: Any) -> None:
        """Change columns of an invoice."""
        sets = ", ".join(f"{name} = %s" for name in columns)
        self.connection.execute(f"UPDATE crypto_invoices SET {sets} WHERE id = %s", (*columns.values(), invoice_id))

    def delete(self, invoice_id: int) -> None:
        """Delete an invoice."""
        self.connection.execute("DELETE FROM crypto_invoices WHERE id = %s", (invoice_id,))

    # -- what stands there ---------------------------------------------------------------------------------------------

    def invoice(self, invoice_id: int) -> dict[str, Any]:
        """The invoice's row."""
        [row] = self.rows("SELECT * FROM crypto_invoices WHERE id = %s", invoice_id)
        return row

    def sync_row(self, invoice_id: int) -> dict[str, Any] | None:
        """The invoice's mapping row, or None."""
        rows = self.rows("SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = %s", invoice_id)
        return rows[0] if rows else None

    def log(self, invoice_id: int) -> list[dict[str, Any]]:
        """The invoice's log rows, oldest first."""
        return self.rows("SELECT * FROM crypto_cfo_sync_log WHERE invoice_id = %s ORDER BY id", invoice_id)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Run a query."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), parameters or None).fetchall()

    def value(self, query: str, *parameters: Any) -> Any:
        """The single value of a query."""
        return self._one(query, *parameters)

    def _one_id(self, query: str, *parameters: Any) -> int:
        return int(self._one(query, *parameters))

    def _one(self, query: str, *parameters: Any) -> Any:
        row = self.connection.execute(query.encode(), parameters or None).fetchone()
        assert row is not None
        return row[0]


class LedgerView:
    """The CFO's table of a test."""

    def __init__(self, dsn: str) -> None:
        self.dsn = as_owner(dsn)
        self.connection = psycopg.connect(self.dsn, autocommit=True, options="-c TimeZone=UTC")

    def close(self) -> None:
        self.connection.close()

    def of(self, identifier: str) -> list[dict[str, Any]]:
        """The transactions with this Identifier, oldest first."""
        return self.rows("SELECT * FROM transactions WHERE identifier = %s ORDER BY id", identifier)

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Run a query."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), parameters or None).fetchall()

    def execute(self, query: str, *parameters: Any) -> None:
        """Run a statement."""
        self.connection.execute(query.encode(), parameters or None)

    def count(self) -> int:
        """How many transactions stand there."""
        row = self.connection.execute("SELECT count(*) FROM transactions").fetchone()
        assert row is not None
        return int(row[0])

    def insert(self, columns: Iterable[str], *values: Any) -> int:
        """Another hand's transaction; gives its id."""
        names = list(columns)
        marks = ", ".join(["%s"] * len(names))
        row = self.connection.execute(
            f"INSERT INTO transactions ({', '.join(names)}) VALUES ({marks}) RETURNING id".encode(), values
        ).fetchone()
        assert row is not None
        return int(row[0])
