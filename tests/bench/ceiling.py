"""The limit: the product's own four writes, replayed on a fresh copy from the very parameters it once sent.

The statements are recorded from a run of the product's service, whatever they are at the time. Replayed are the inserts
into ledger, mapping and log and the update of the invoices, by as many connections as wanted, a batch in one
transaction and one round trip. There is no Kafka, no decoding, no reading, no row lock taken first, no Python but the
loop: nothing that writes these rows with these statements can be faster.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from unittest.mock import patch

import psycopg

from consumer import origins
from consumer.service import CFOSyncService
from tests.bench.bed import Bed

Statement: TypeAlias = tuple[Any, Any, dict[str, Any]]
Batch: TypeAlias = list[Statement]

_TABLES: Final = ("transactions", "crypto_invoice_cfo_sync", "crypto_cfo_sync_log", "crypto_invoices")
_WRITE: Final = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:INSERT\s+INTO|UPDATE)\s+\"?(\w+)\"?", re.IGNORECASE)


def record(bed: Bed, template: str, count: int, batch_size: int) -> list[Batch]:
    """Book the template's invoices with the product's service on a copy; gives what it wrote, batch by batch."""
    batches: list[Batch] = []
    one = {"CFO_SYNC_APPLY_CONNECTIONS": "1"}  # so that a batch is one transaction
    with (
        bed.scene(template, partitions=1, environment=one) as scene,
        CFOSyncService(scene.settings) as service,
    ):
        for first in range(1, count + 1, batch_size):
            with _recording() as written:
                service.sync(dict.fromkeys(range(first, min(first + batch_size, count + 1)), 0))
            batches += written
    tables = {tuple(sorted(_table(query) or "" for query, _, _ in batch)) for batch in batches}
    if tables != {tuple(sorted(_TABLES))}:
        raise RuntimeError(f"a booking writes something else than four tables once each: {tables}")
    return batches


@contextmanager
def _recording() -> Iterator[list[Batch]]:
    """What is written to the four tables meanwhile, split where a connection starts anew with the same table."""
    written: list[Batch] = []
    current: dict[int, Batch] = {}
    real = psycopg.Cursor.execute

    def execute(cursor: psycopg.Cursor[Any], query: Any, params: Any = None, **options: Any) -> Any:
        text = query.as_string(cursor) if hasattr(query, "as_string") else query
        text = text.decode() if isinstance(text, bytes) else text
        if (table := _table(text)) in _TABLES:
            batch = current.get(id(cursor.connection))
            if batch is None or table in {_table(each) for each, _, _ in batch}:
                batch = current[id(cursor.connection)] = []
                written.append(batch)
            batch.append((text.encode(), params, options))
        return real(cursor, query, params, **options)

    with patch.object(psycopg.Cursor, "execute", execute):
        yield written


def _table(query: Any) -> str | None:
    found = _WRITE.match(query.decode() if isinstance(query, bytes) else query)
    return None if found is None else found[1]


def replay(dsn: str, batches: Sequence[Batch], connections: int, *, is_silent: bool = False) -> float:
    """Write all of it, marked if it shall be silent; gives the seconds from the first statement to the last commit."""
    sessions = [psycopg.connect(dsn, autocommit=True, options="-c TimeZone=UTC") for _ in range(connections)]
    if is_silent and not all(origins.mark(session) for session in sessions):
        raise RuntimeError("the sessions cannot be marked")
    waiting = iter(batches)
    lock, start, failures = threading.Lock(), threading.Barrier(connections + 1), list[BaseException]()

    def write(session: psycopg.Connection) -> None:
        start.wait()
        try:
            while True:
                with lock:
                    batch = next(waiting, None)
                if batch is None:
                    return
                with session.pipeline(), session.transaction():
                    for query, params, options in batch:
                        session.execute(query, params, **options)
        except BaseException as error:  # raised below, in the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=write, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    for session in sessions:
        session.close()
    if failures:
        raise failures[0]
    return took
