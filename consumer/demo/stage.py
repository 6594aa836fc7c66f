"""The stage of the story: the invoices that it plays with, the databases and topics around them, and the narrator."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, LiteralString, TypeAlias, TypeVar

from psycopg import Connection
from psycopg.rows import dict_row
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from consumer.demo.process import ConsumerProcess
from consumer.demo.tape import Tape
from consumer.dlq import DeadLetterQueue
from consumer.service import CFOSyncService
from consumer.settings import Settings

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]

ENTITY: Final = "Delta Mining Paraguay S.A."  # of every client in the guide's table

_PATIENCE: Final = 20.0
_PATIENCE_AFTER_A_STALL: Final = 4.0
_GLANCE: Final = 0.005


class Stalled(Exception):
    """Something that had to happen did not, in time."""


@dataclass(slots=True)
class Bill:
    """An invoice of the story, what must become of it, and what was seen of it."""

    invoice_id: int
    number: str
    client: str
    amount: Decimal | None  # USD
    unit: str  # as the guide's table says
    subcategory: str
    entity: str = ENTITY
    fate: Literal["booked", "adopted", "unpaid"] = "booked"
    fault: str | None = None  # code of the fault that makes it a dead letter, until people mend it
    failed_as: tuple[str, int] | None = None  # sync_status and retry_count, as the guide's recovery query found it
    is_remapped: bool = False
    waits_for: str | None = None  # code of the fault that sends it to a retry topic
    paid_at: float | None = None  # on the monotonic clock
    seconds: float | None = None  # from the commit of the payment until it was seen complete
    rings: int = 1  # how many events say at least that it is paid
    foreign: str | None = None  # the ledger's row by another hand, as it was before

    @property
    def is_booked(self) -> bool:
        """Whether it must stand in the ledger at the end."""
        return self.fate in ("booked", "adopted")

    @property
    def is_kept(self) -> bool:
        """Whether something keeps it waiting."""
        return self.waits_for is not None or self.fault is not None

    @property
    def short(self) -> str:
        """The end of its number, which tells it from the others."""
        return self.number[-3:]


class Stage:
    """What chapters and promises work with."""

    def __init__(
        self,
        settings: Settings,
        out: Console,
        invoices: Connection,
        ledger: Connection,
        other: Connection,
        tape: Tape,
        consumer: ConsumerProcess,
        service: CFOSyncService,
    ) -> None:
        self.settings = settings
        self.out = out
        self.invoices = invoices
        self.ledger = ledger
        self.tape = tape
        self.consumer = consumer
        self.service = service
        self.queue = DeadLetterQueue(settings, service)
        self.run = uuid.uuid4().hex[:8]
        self.bills: list[Bill] = []
        self._other = other  # the session of somebody else
        self._patience = _PATIENCE

    # -- telling -------------------------------------------------------------------------------------------------------

    def chapter(self, number: int, title: str) -> None:
        """A heading."""
        self.out.print()
        self.out.print(Text(f"{number}. {title}", style="bold"))

    def say(self, text: str) -> None:
        """What happens."""
        self.out.print(Padding.indent(Text(text), 3))

    def see(self, text: str) -> None:
        """What is seen then."""
        self.out.print(Padding.indent(Text(text, style="green"), 6))

    def complain(self, text: str) -> None:
        """What went wrong."""
        self.out.print(Padding.indent(Text(text, style="bold red"), 3))

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, what: str, look: Callable[[], T | None], timeout: float = 0) -> T:
        """Look until there is something; gives it. Raises `Stalled`, after `timeout` seconds or the usual patience."""
        deadline = time.monotonic() + max(timeout, self._patience)
        while not (found := look()):
            if (code := self.consumer.exit_code) is not None:
                raise Stalled(f"the consumer ended with exit code {code} before: {what}")
            if time.monotonic() > deadline:
                raise Stalled(f"did not happen in time: {what}")
            time.sleep(_GLANCE)
        return found

    def lose_patience(self) -> None:
        """After one stall the next ones need not be waited for as long."""
        self._patience = _PATIENCE_AFTER_A_STALL

    def wait_booked(self, bill: Bill, timeout: float = 0) -> Row:
        """Until the invoice is complete; gives its mapping row."""
        self.wait(f"{bill.short} is booked and complete", lambda: self.status(bill) == "complete", timeout)
        if bill.seconds is None and bill.paid_at is not None:
            bill.seconds = time.monotonic() - bill.paid_at
        return self.sync_row(bill)

    # -- the invoice system --------------------------------------------------------------------------------------------

    def client(self, name: str) -> int:
        """The client's id; its row is made if it is new."""
        return int(
            self.value(
                "INSERT INTO crypto_clients (name) VALUES (%s)"
                " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
                name,
            )
        )

    def issue(
        self,
        client: str,
        amount: str | None,
        *,
        unit: str = "Paraguay Operations",
        subcategory: str = "Client Services Revenue",
        period: str = "October 2025",
        currency: str = "USDT",
        network: str = "TRC20",
        client_id: int | None = None,
    ) -> Bill:
        """A new invoice: made as a draft, then sent. With `client_id`, nobody looks whether that client is there."""
        number = f"DPY-{self.run}-{len(self.bills) + 1:02}"
        usd = None if amount is None else Decimal(amount)
        invoice_id = int(
            self.value(
                "INSERT INTO crypto_invoices"
                " (invoice_number, client_id, status, amount_usd, crypto_currency, crypto_amount, crypto_network,"
                " billing_period, issue_date)"
                " VALUES (%s, %s, 'draft', %s, %s, %s, %s, %s, current_date) RETURNING id",
                number, client_id or self.client(client), usd, currency, usd, network, period,
            )
        )  # fmt: skip
        self._update(invoice_id, "status = 'sent'")
        bill = Bill(invoice_id, number, client, usd, unit, subcategory)
        self.bills.append(bill)
        return bill

    def pay(self, bill: Bill, touches: int = 0) -> None:
        """A confirmed payment, and the invoice paid, in one transaction, which goes on to touch it so many times."""
        with self.invoices.transaction():
            self._pay(bill)
            for _ in range(touches):
                self.touch(bill)
        bill.rings += touches
        bill.paid_at = time.monotonic()

    @contextmanager
    def pay_under_lock(self, bill: Bill) -> Iterator[None]:
        """Pay; from the very moment of the commit until the block ends somebody else's session holds the row."""
        with ThreadPoolExecutor(1) as elsewhere:
            self._other.execute("BEGIN")
            try:
                with self.invoices.transaction():
                    self._pay(bill)
                    # It queues behind us, so that nobody can get the row before it does.
                    locking = elsewhere.submit(
                        self._other.execute, "SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE", (bill.invoice_id,)
                    )
                    self.wait("another session queues for the row", lambda: self._queues(self._other))
                locking.result()
                bill.paid_at = time.monotonic()
                yield
            finally:
                self._other.execute("ROLLBACK")

    def touch(self, bill: Bill) -> None:
        """Change something that no booking depends on."""
        self._update(bill.invoice_id, "notes = concat(notes, '.')")

    def reopen(self, bill: Bill) -> None:
        """Set a booked invoice back to paid."""
        self._update(bill.invoice_id, "status = 'paid'")
        bill.rings += 1

    def _pay(self, bill: Bill) -> None:
        self.execute(
            "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency, network,"
            " status, confirmations, required_confirmations, detected_at, confirmed_at)"
            " SELECT id, %s, crypto_amount, crypto_currency, crypto_network, 'confirmed', 20, 19,"
            " clock_timestamp() AT TIME ZONE 'UTC', clock_timestamp() AT TIME ZONE 'UTC'"
            " FROM crypto_invoices WHERE id = %s",
            f"0x{uuid.uuid4().hex}", bill.invoice_id,
        )  # fmt: skip
        self._update(bill.invoice_id, "status = 'paid', paid_at = clock_timestamp() AT TIME ZONE 'UTC'")

    def _update(self, invoice_id: int, changes: LiteralString) -> None:
        self.execute(
            "UPDATE crypto_invoices SET updated_at = clock_timestamp() AT TIME ZONE 'UTC', "  # noqa: S608 - constants
            + changes
            + " WHERE id = %s",
            invoice_id,
        )

    def _queues(self, session: Connection) -> bool:
        return bool(self.value("SELECT cardinality(pg_blocking_pids(%s)) > 0", session.info.backend_pid))

    # -- what stands there ---------------------------------------------------------------------------------------------

    @property
    def ids(self) -> list[int]:
        """The invoices of this run."""
        return [bill.invoice_id for bill in self.bills]

    @property
    def booked(self) -> list[Bill]:
        """Those that must stand in the ledger."""
        return [bill for bill in self.bills if bill.is_booked]

    @property
    def faulty(self) -> list[Bill]:
        """Those that become dead letters."""
        return [bill for bill in self.bills if bill.fault]

    def status(self, bill: Bill) -> str:
        """The invoice's status."""
        return str(self.value("SELECT status FROM crypto_invoices WHERE id = %s", bill.invoice_id))

    def sync_row(self, bill: Bill) -> Row:
        """Its mapping row; empty if there is none."""
        rows = self.rows("SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = %s", bill.invoice_id)
        return rows[0] if rows else {}

    def sync_rows(self) -> dict[int, Row]:
        """The mapping rows of this run, by invoice."""
        rows = self.rows("SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = ANY(%s)", self.ids)
        return {row["invoice_id"]: row for row in rows}

    def log_rows(self) -> list[Row]:
        """The log rows of this run, oldest first."""
        return self.rows("SELECT * FROM crypto_cfo_sync_log WHERE invoice_id = ANY(%s) ORDER BY id", self.ids)

    def transactions(self) -> list[Row]:
        """The ledger's rows with an Identifier of this run. `version` tells whether a row was rewritten."""
        with self.ledger.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                "SELECT t.*, t.xmin::text || ' ' || t::text AS version FROM transactions t"
                " WHERE identifier = ANY(%s) ORDER BY id",
                ([bill.number for bill in self.bills],),
            ).fetchall()

    def rows(self, query: LiteralString, *parameters: object) -> list[Row]:
        """Run a query in the invoice database."""
        with self.invoices.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchall()

    def value(self, query: LiteralString, *parameters: object) -> Any:
        """The first value of a query's first row; None without a row."""
        row = self.invoices.execute(query, parameters).fetchone()
        return row[0] if row else None

    def execute(self, query: LiteralString, *parameters: object) -> None:
        """Run a statement in the invoice database."""
        self.invoices.execute(query, parameters)
