"""What the pages read in the invoice database, beyond what the services give. Reads only, and never for long.

Like `store`: statements on a connection that is given; errors are psycopg's. Texts of amounts and times are
PostgreSQL's, so that no value of one invoice breaks a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from consumer.monitor_store import limit_patience
from consumer.sql import statement

_MOST_EVENTS: Final = 200


_TOTALS: Final = statement("web_totals")
_HOURS: Final = statement("web_hours")
_LAG: Final = statement("web_lag")
_INVOICE: Final = statement("web_invoice")


@dataclass(frozen=True, slots=True)
class Totals:
    """Paid and booked, in count and USD; `month` is 30 days."""

    paid_today: int
    paid_today_usd: Decimal
    paid_month: int
    paid_month_usd: Decimal
    booked_today: int
    booked_today_usd: Decimal
    booked_month: int
    booked_month_usd: Decimal


@dataclass(frozen=True, slots=True)
class Hour:
    """The bookings of one hour; `lags` in seconds, of half, 95 % and 99 % of them."""

    start: datetime
    booked: int
    usd: Decimal
    lags: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Lag:
    """Seconds from payment to booking over 24 hours; None when nothing was booked."""

    mean: float | None
    percentiles: tuple[float, float, float] | None


def totals(connection: Connection) -> Totals:
    """Of today and of 30 days."""
    [row] = _read(connection, _TOTALS)
    return Totals(*row)


def hours(connection: Connection) -> list[Hour]:
    """Of the last 48 hours, those in which something was booked."""
    return [Hour(start, booked, usd, lags and tuple(lags)) for start, booked, usd, lags in _read(connection, _HOURS)]


def lag(connection: Connection) -> Lag:
    """Of the last 24 hours."""
    [[mean, percentiles]] = _read(connection, _LAG)
    return Lag(mean, percentiles and tuple(percentiles))


def invoice(connection: Connection, invoice_id: int) -> dict[str, Any] | None:
    """One invoice; None when there is none."""
    return next(iter(_rows(connection, _INVOICE, {"id": invoice_id})), None)


def payments(connection: Connection, invoice_id: int) -> list[dict[str, Any]]:
    """Its payments, oldest first."""
    return _rows(
        connection,
        b"SELECT transaction_hash::text, amount_received::text, currency::text, status::text, detected_at::text,"
        b" confirmed_at::text FROM crypto_payment_transactions WHERE invoice_id = %(id)s ORDER BY id LIMIT 100",
        {"id": invoice_id},
    )


def log(connection: Connection, invoice_id: int) -> list[dict[str, Any]]:
    """What the sync tried, newest first."""
    return _rows(
        connection,
        b"SELECT id, sync_attempt_timestamp AS at, sync_status::text, error_message, cfo_transaction_id,"
        b" request_payload, response_data FROM crypto_cfo_sync_log WHERE invoice_id = %(id)s"
        b" ORDER BY id DESC LIMIT %(most)s",
        {"id": invoice_id, "most": _MOST_EVENTS},
    )


def actions_of_invoice(connection: Connection, invoice_id: int) -> list[dict[str, Any]]:
    """What people did about it, newest first."""
    return _actions(connection, b"invoice_id", invoice_id)


def actions_of_failure(connection: Connection, failure_id: str) -> list[dict[str, Any]]:
    """What people did about a dead letter, newest first."""
    return _actions(connection, b"failure_id", failure_id)


def _actions(connection: Connection, column: bytes, value: int | str) -> list[dict[str, Any]]:
    return _rows(
        connection,
        b"SELECT id, at, done_by, action::text, reason, details FROM cfo_sync_actions WHERE "
        + column
        + b" = %(value)s ORDER BY id DESC LIMIT %(most)s",
        {"value": value, "most": _MOST_EVENTS},
    )


def _read(connection: Connection, query: bytes) -> list[Any]:
    limit_patience(connection)
    return connection.execute(query).fetchall()


def _rows(connection: Connection, query: bytes, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    limit_patience(connection)
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()
