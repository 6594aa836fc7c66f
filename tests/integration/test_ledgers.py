"""Ledgers that are not the guide's: other names, other types, other keys, reached by a mapping file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from consumer import mapping
from consumer.faults import Outage, RecordFault
from consumer.outcomes import Booked, Faulted, Outcome
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import booked, grant_ledger, write_mapping
from tests.support import InvoiceSystem, LedgerView

NUMBER = "DPY-2025-10-0001"
KEY = hashlib.sha256(NUMBER.encode()).hexdigest()


class Variant:
    """A ledger made for a test, and what it takes to book into it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.invoices = InvoiceSystem(settings.invoice_dsn.get_secret_value())
        self.ledger = LedgerView((settings.cfo_dsn or settings.invoice_dsn).get_secret_value())

    def close(self) -> None:
        self.invoices.close()
        self.ledger.close()

    def use(self, *edits: tuple[str, str]) -> None:
        """A mapping file that differs from the guide's by these edits."""
        self.settings = self.settings.model_copy(update={"mapping_file": write_mapping(self.folder, *edits)})

    def sync(self, *ids: int) -> dict[int, Outcome]:
        """By a new service."""
        grant_ledger(self.settings)
        with CFOSyncService(self.settings) as service:
            return service.sync(dict.fromkeys(ids, 0))

    def fault(self, invoice_id: int) -> RecordFault:
        """Why this invoice can never be booked."""
        outcome = self.sync(invoice_id)[invoice_id]
        assert isinstance(outcome, Faulted)
        assert isinstance(outcome.fault, RecordFault)
        return outcome.fault

    def book(self, invoice_id: int) -> Booked:
        """It can."""
        outcome = self.sync(invoice_id)[invoice_id]
        assert isinstance(outcome, Booked)
        return outcome

    def reopen(self, invoice_id: int) -> Booked:
        """Book it again with another amount, and then again without a change."""
        self.invoices.update(invoice_id, status="paid", amount_usd="150.00")
        again = self.book(invoice_id)
        self.invoices.update(invoice_id, status="paid")
        assert self.book(invoice_id).result == "unchanged"
        return again


@pytest.fixture
def variant(two_databases: Settings, tmp_path: Path) -> Iterator[Variant]:
    """With the ledger in a database of its own: its statements are the same in both layouts."""
    variant = Variant(two_databases, tmp_path)
    yield variant
    variant.close()


@pytest.fixture
def variant_of_both_layouts(settings: Settings, tmp_path: Path) -> Iterator[Variant]:
    """For what the two sides have to agree on."""
    variant = Variant(settings, tmp_path)
    yield variant
    variant.close()


def test_a_schema_qualified_table_with_names_of_its_own(variant_of_both_layouts: Variant) -> None:
    variant = variant_of_both_layouts
    variant.ledger.execute('CREATE SCHEMA "Finance"')
    variant.ledger.execute(
        'CREATE TABLE "Finance"."Ledger Entries" ("Entry No" bigserial PRIMARY KEY, "when" timestamp, "Text" text,'
        ' "Amount" numeric(18,2), "order" text, ref text UNIQUE, "src file" text, entity text)'
    )
    variant.use(
        ('table = "transactions"', 'table = "Finance.Ledger Entries"'),
        ('id = "id"', 'id = "Entry No"'),
        ('identifier = "identifier"', 'identifier = "ref"'),
        ('identifier = "{identifier}"', 'ref = "{identifier}"'),
        ('source = "source_file"', 'source = "src file"'),
        ("source_file = ", '"src file" = '),
        ("unique_where", "# unique_where"),
        ('entity = "classified_entity"', 'entity = "entity"'),
        ('business_unit = "business_unit"', ""),
        ('date = "{paid_at}"', '"when" = "{paid_at}"'),
        ("description = ", '"Text" = '),
        ('amount = "{amount_usd}"', '"Amount" = "{amount_usd}"'),
        ('currency = "{crypto_currency}"', '"order" = "{crypto_currency}"'),
        ('classified_entity = "{entity}"', 'entity = "{entity}"'),
        ('business_unit = "{business_unit}"', ""),
        ('classification_reason = "Crypto invoice payment from {client_name}"', ""),
        ('transaction_type = "{category}"', ""),
        ('confidence = "1.0"', ""),
        ('origin = "External Account"', ""),
        ('destination = "Delta Paraguay Operations"', ""),
    )
    invoice_id = variant.invoices.paid_invoice(invoice_number=NUMBER)
    key = variant.book(invoice_id).cfo_transaction_id
    assert variant.reopen(invoice_id).result == "refreshed"
    [row] = variant.ledger.rows('SELECT * FROM "Finance"."Ledger Entries"')
    assert (row["Entry No"], row["ref"], row["Amount"], row["order"]) == (key, NUMBER, Decimal(150), "USDT")
    assert row["src file"] == f"crypto_invoice_{NUMBER}"


def test_a_column_name_with_a_percent_sign(variant: Variant) -> None:
    variant.ledger.execute('ALTER TABLE transactions RENAME amount TO "amount (100 %)"')
    variant.use(("amount = ", '"amount (100 %)" = '))
    invoice_id = variant.invoices.paid_invoice()
    variant.book(invoice_id)
    variant.reopen(invoice_id)
    assert booked(variant.invoices, variant.ledger, invoice_id)["amount (100 %)"] == Decimal(150)


def test_a_not_null_column_that_the_guide_does_not_know_is_filled_by_the_mapping_file(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions ADD COLUMN tenant_id uuid NOT NULL")
    invoice_id = variant.invoices.paid_invoice()
    assert variant.fault(invoice_id).code == "sqlstate-23502"
    variant.use(("[target.fixed]", '[target.fixed]\ntenant_id = "0c4d7c3c-95a4-4f43-9a51-5d2b6d1c4c8e"'))
    variant.book(invoice_id)
    booked(variant.invoices, variant.ledger, invoice_id)


def test_a_subcategory_column_is_filled_when_the_table_has_one(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions ADD COLUMN subcategory text")
    variant.use(("[target.judgements]", '[target.judgements]\nsubcategory = "{subcategory}"'))
    invoice_id = variant.invoices.paid_invoice(description="Colocation")
    variant.book(invoice_id)
    assert booked(variant.invoices, variant.ledger, invoice_id)["subcategory"] == "Colocation Revenue"
    [entry] = variant.invoices.log(invoice_id)
    assert entry["request_payload"]["subcategory"] == "Colocation Revenue"


@pytest.mark.parametrize(
    ("kind", "function", "unique"),
    [("text", "sha256", True), ("text", "sha256", False), ("char(64)", "sha256", True), ("uuid", "uuid5", True)],
)
def test_a_key_that_is_not_a_number_leaves_cfo_transaction_id_empty_and_keeps_the_identifier(
    variant_of_both_layouts: Variant, kind: str, function: str, unique: bool
) -> None:
    variant = variant_of_both_layouts
    variant.ledger.execute("ALTER TABLE transactions DROP COLUMN id")
    variant.ledger.execute(f"ALTER TABLE transactions ADD COLUMN txn {kind} PRIMARY KEY")
    if not unique:
        variant.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    variant.use(('id = "id"', 'id = "txn"'), ("[target.fixed]", f'[target.fixed]\ntxn = "{{{function}(identifier)}}"'))
    invoice_id = variant.invoices.paid_invoice(invoice_number=NUMBER)

    assert variant.book(invoice_id).cfo_transaction_id is None
    [row] = variant.ledger.rows("SELECT * FROM transactions")
    if function == "sha256":
        assert row["txn"] == KEY
    sync = variant.invoices.sync_row(invoice_id)
    assert sync is not None
    assert (sync["sync_status"], sync["cfo_transaction_id"], sync["cfo_identifier"]) == ("synced", None, NUMBER)

    variant.invoices.update(invoice_id, invoice_number="DPY-2025-10-0099")
    assert variant.reopen(invoice_id).result == "refreshed"
    [again] = variant.ledger.rows("SELECT * FROM transactions")
    assert (again["txn"], again["amount"]) == (row["txn"], Decimal(150))
    with CFOSyncService(variant.settings) as service:
        answer = service.sync_invoice_to_cfo(invoice_id)
    assert (answer["success"], answer["cfo_transaction_id"], answer["sync_status"]) == (True, None, "synced")


def test_a_row_adopted_by_a_key_that_is_not_a_number_is_not_changed_later(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions DROP COLUMN id")
    variant.ledger.execute("ALTER TABLE transactions ADD COLUMN txn text PRIMARY KEY")
    variant.use(('id = "id"', 'id = "txn"'), ("[target.fixed]", '[target.fixed]\ntxn = "{sha256(identifier)}"'))
    variant.ledger.execute(
        "INSERT INTO transactions (txn, date, amount, identifier) VALUES ('x', now(), 99, %s)", NUMBER
    )
    before = variant.ledger.rows("SELECT * FROM transactions")
    invoice_id = variant.invoices.paid_invoice(invoice_number=NUMBER)
    assert variant.book(invoice_id).result == "adopted"
    variant.invoices.update(invoice_id, status="paid", amount_usd="150.00")
    variant.book(invoice_id)
    assert variant.ledger.rows("SELECT * FROM transactions") == before


def test_a_ledger_without_a_source_column_is_ours_by_the_mapping_row_alone(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions DROP COLUMN source_file")
    variant.ledger.execute("CREATE UNIQUE INDEX ON transactions (identifier)")
    variant.use(
        ('source = "source_file" ', "#"), ("unique_where", "# unique_where"), ("source_file = ", "# source_file = ")
    )
    invoice_id = variant.invoices.paid_invoice(invoice_number=NUMBER)
    variant.ledger.insert(("date", "amount", "identifier"), "2025-10-01", "99.00", "DPY-2025-10-0002")
    foreign = variant.invoices.paid_invoice(invoice_number="DPY-2025-10-0002")
    assert variant.book(foreign).result == "adopted"
    assert variant.book(invoice_id).result == "inserted"
    assert variant.reopen(invoice_id).result == "refreshed"
    variant.invoices.update(foreign, status="paid", amount_usd="150.00")
    variant.book(foreign)
    assert [row["amount"] for row in variant.ledger.of("DPY-2025-10-0002")] == [Decimal(99)]


def test_without_a_unique_key_bookings_are_serialised_and_never_doubled(variant_of_both_layouts: Variant) -> None:
    variant = variant_of_both_layouts
    variant.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    invoices = variant.invoices
    invoices.connection.execute("ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_invoice_number_key")
    # Two invoices with one number have no row lock in common: only the ledger's can keep them apart.
    pairs = [[invoices.paid_invoice(invoice_number=f"DPY-{n}") for _ in range(2)] for n in range(10)]
    with CFOSyncService(variant.settings) as one, CFOSyncService(variant.settings) as other:
        services = (one, other)
        with ThreadPoolExecutor(2) as pool:
            for pair in pairs:
                running = [pool.submit(service.sync, {each: 0}) for service, each in zip(services, pair, strict=True)]
                outcomes = [each.result() for each in running]
                kinds = sorted(type(each).__name__ for found in outcomes for each in found.values())
                assert kinds == ["Booked", "Faulted"]
    assert variant.ledger.count() == 10


@pytest.mark.parametrize(
    ("column", "kind"), [("identifier", "varchar"), ("description", "char"), ("origin", "varchar")]
)
def test_a_text_that_is_too_long_for_its_column_is_a_fault_and_never_cut(
    variant: Variant, column: str, kind: str
) -> None:
    variant.ledger.execute(f"ALTER TABLE transactions ALTER {column} TYPE {kind}(3)")
    assert variant.fault(variant.invoices.paid_invoice()).code == "sqlstate-22001"
    assert variant.ledger.count() == 0


def test_columns_of_fixed_width_are_padded_and_found_again(variant: Variant) -> None:
    for column in ("identifier", "currency", "description", "classified_entity"):
        variant.ledger.execute(f"ALTER TABLE transactions ALTER {column} TYPE char(80)")
    invoice_id = variant.invoices.paid_invoice(invoice_number=NUMBER)
    assert variant.book(invoice_id).result == "inserted"
    assert variant.reopen(invoice_id).result == "refreshed"
    assert variant.ledger.count() == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("date", date(2025, 10, 22)),
        ("timestamptz", datetime.fromisoformat("2025-10-22T23:30:00+00:00")),
        ("timestamp", datetime.fromisoformat("2025-10-22T23:30:00")),
        ("text", "2025-10-22 23:30:00+00:00"),
    ],
)
def test_dates_are_utc_whatever_the_columns_type_and_the_servers_time_zone(
    variant: Variant, kind: str, expected: object
) -> None:
    variant.ledger.execute(f"ALTER TABLE transactions ALTER date TYPE {kind} USING date::{kind}")
    for view in (variant.ledger, variant.invoices):
        name = view.connection.info.dbname
        view.connection.execute(f"ALTER DATABASE {name} SET TimeZone = 'America/Asuncion'".encode())
        view.connection.execute(f"ALTER DATABASE {name} SET DateStyle = 'SQL, DMY'".encode())
    invoice_id = variant.invoices.paid_invoice()
    variant.invoices.update(invoice_id, paid_at="2025-10-22 23:30:00")
    variant.book(invoice_id)
    assert variant.reopen(invoice_id).result == "refreshed"
    assert booked(variant.invoices, variant.ledger, invoice_id)["date"] == expected


@pytest.mark.parametrize("kind", ["numeric", "numeric(20,4)", "text"])
def test_amounts_stay_exact_whatever_the_columns_type(variant: Variant, kind: str) -> None:
    variant.ledger.execute(f"ALTER TABLE transactions ALTER amount TYPE {kind}")
    invoice_id = variant.invoices.paid_invoice(amount="9007199254740993.01")
    variant.book(invoice_id)
    found = booked(variant.invoices, variant.ledger, invoice_id)["amount"]
    assert Decimal(found) == Decimal("9007199254740993.01")
    variant.reopen(invoice_id)


@pytest.mark.parametrize("kind", ["numeric(18,1)", "bigint", "real"])
def test_an_amount_column_that_cannot_hold_cents_exactly_is_an_outage_and_never_rounded_into(
    variant: Variant, kind: str
) -> None:
    variant.ledger.execute(f"ALTER TABLE transactions ALTER amount TYPE {kind}")
    invoice_id = variant.invoices.paid_invoice(amount="100.55")
    with pytest.raises(Outage, match="amount"):
        variant.sync(invoice_id)
    assert variant.ledger.count() == 0


def test_a_mapping_file_that_names_a_missing_column_is_an_outage_that_names_it(variant: Variant) -> None:
    variant.use(("currency = ", "ccy = "))
    with pytest.raises(Outage, match="no column ccy"):
        variant.sync(variant.invoices.paid_invoice())


def test_a_deferrable_unique_key_on_the_identifier_is_no_obstacle(variant: Variant) -> None:
    variant.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    variant.ledger.execute("ALTER TABLE transactions ADD UNIQUE (identifier) DEFERRABLE INITIALLY DEFERRED")
    invoice_id = variant.invoices.paid_invoice()
    variant.book(invoice_id)
    booked(variant.invoices, variant.ledger, invoice_id)


def test_a_partitioned_ledger(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions RENAME TO old")
    variant.ledger.execute(
        "CREATE TABLE transactions (LIKE old INCLUDING DEFAULTS INCLUDING GENERATED, PRIMARY KEY (id, date))"
        " PARTITION BY RANGE (date)"
    )
    variant.ledger.execute("CREATE TABLE t PARTITION OF transactions DEFAULT")
    invoice_id = variant.invoices.paid_invoice()
    variant.book(invoice_id)
    variant.reopen(invoice_id)
    assert booked(variant.invoices, variant.ledger, invoice_id)["amount"] == Decimal(150)


def test_a_view_with_triggers_or_an_updatable_view_as_the_ledger(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions RENAME TO entries")
    variant.ledger.execute("CREATE VIEW transactions AS SELECT * FROM entries")
    invoice_id = variant.invoices.paid_invoice()
    variant.book(invoice_id)
    assert variant.reopen(invoice_id).result == "refreshed"
    booked(variant.invoices, variant.ledger, invoice_id)


def test_an_identity_column_as_key(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions ALTER id DROP DEFAULT")
    variant.ledger.execute("ALTER TABLE transactions ALTER id TYPE bigint")
    variant.ledger.execute("ALTER TABLE transactions ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 5000000000)")
    invoice_id = variant.invoices.paid_invoice()
    assert variant.book(invoice_id).cfo_transaction_id == 5_000_000_000
    assert variant.reopen(invoice_id).cfo_transaction_id == 5_000_000_000


def test_triggers_of_the_ledger_see_our_rows_and_may_complete_them(variant: Variant) -> None:
    variant.ledger.execute("ALTER TABLE transactions ADD COLUMN period text NOT NULL DEFAULT ''")
    variant.ledger.execute(
        "CREATE FUNCTION complete_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.period = to_char(NEW.date, 'YYYY-MM'); RETURN NEW; END $$"
    )
    variant.ledger.execute(
        "CREATE TRIGGER complete_it BEFORE INSERT OR UPDATE ON transactions FOR EACH ROW EXECUTE FUNCTION complete_it()"
    )
    invoice_id = variant.invoices.paid_invoice()
    variant.invoices.update(invoice_id, paid_at="2025-10-22")
    variant.book(invoice_id)
    variant.reopen(invoice_id)
    assert booked(variant.invoices, variant.ledger, invoice_id)["period"] == "2025-10"


def test_the_rules_can_be_replaced_without_touching_what_is_booked(variant: Variant) -> None:
    old, new = variant.invoices.paid_invoice(), variant.invoices.paid_invoice()
    variant.book(old)
    variant.use(('business_unit = "Paraguay Mining"', 'business_unit = "Chile Mining"'))
    variant.invoices.update(old, status="paid")
    variant.sync(old, new)
    assert booked(variant.invoices, variant.ledger, old)["business_unit"] == "Paraguay Mining"
    assert booked(variant.invoices, variant.ledger, new)["business_unit"] == "Chile Mining"
    assert mapping.load().classify("Alps Blockchain", None, None).business_unit == "Paraguay Mining"
