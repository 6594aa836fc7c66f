"""Change events as Debezium writes them, made by hand, and those captured from the real one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SOURCE: Final[dict[str, Any]] = {
    "version": "3.6.3.Final",
    "connector": "postgresql",
    "name": "invoicing",
    "ts_ms": 1761141600500,
    "snapshot": "false",
    "db": "invoicing",
    "schema": "public",
    "table": "crypto_invoices",
    "txId": 881,
    "lsn": 145654296,
    "xmin": None,
}


def row(invoice_id: Any = 42, status: Any = "paid", **columns: Any) -> dict[str, Any]:
    """A row of crypto_invoices as an event shows it; also the whole value of a flattened event."""
    return {
        "id": invoice_id,
        "invoice_number": "DPY-2025-10-0042",
        "status": status,
        "updated_at": 1761141600500000,
        "paid_at": 1761141600000000,
    } | columns


def envelope(op: Any = "u", after: Any = "a paid row", **fields: Any) -> dict[str, Any]:
    """Debezium's envelope, without the schema wrapper."""
    return {
        "before": None,
        "after": row() if after == "a paid row" else after,
        "source": dict(SOURCE),
        "transaction": None,
        "op": op,
        "ts_ms": 1761141600510,
    } | fields


def wrapped(payload: Any) -> dict[str, Any]:
    """The same value as Kafka Connect writes it with `schemas.enable=true`."""
    return {"schema": {"type": "struct", "fields": [], "optional": False, "name": "invoicing"}, "payload": payload}


def encoded(document: Any) -> bytes:
    """A record's value."""
    return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Captured:
    """A record that the real Debezium wrote."""

    name: str
    key: bytes | None
    value: bytes | None


def captured() -> list[Captured]:
    """Every captured record, by file name."""
    folder = Path(__file__).parents[1] / "fixtures" / "debezium"
    return [_captured(path) for path in sorted(folder.glob("*.json"))]


def _captured(path: Path) -> Captured:
    document = json.loads(path.read_text(encoding="utf-8"))
    key, value = document["key"], document["value"]
    return Captured(path.stem, None if key is None else key.encode(), None if value is None else value.encode())
