"""Mapping files, rules, templates, invoices, filters and settings of any content: a result, or the documented error."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields
from pydantic import ValidationError

from consumer import mapping, settings, templates
from consumer.api_models import DeadLetterPage
from consumer.deadletters import Entry, Filter
from consumer.dlq_arguments import parse_moment, parse_offsets, parse_place
from consumer.faults import Fault, RecordFault, Transient
from consumer.mapping import DEFAULT_FILE, MappingError
from consumer.metrics import FAULT_CODES
from consumer.outcomes import NotPaid, Settled
from consumer.plan import Draft, Invoice, SyncRow, draft, whole_number
from consumer.selections import select_for_discard, select_for_replay
from consumer.settings import PREFIX, Settings, SettingsError
from consumer.templates import FIELDS, FUNCTIONS
from tests.fuzz.effort import effort
from tests.fuzz.strategies import texts, wild_texts
from tests.unit.test_deadletters import letter

GUIDE = mapping.load()
DOCUMENT: dict[str, Any] = tomllib.loads(DEFAULT_FILE.read_text(encoding="utf-8"), parse_float=Decimal)
NOW = datetime(2025, 10, 22, 14, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


# -- rules -------------------------------------------------------------------------------------------------------------


def has_word(text: str, word: str) -> bool:
    """Whether it stands there as a whole word, without a regular expression."""
    start = -1
    while (start := text.find(word, start + 1)) >= 0:
        around = text[start - 1 : start] + text[start + len(word) : start + len(word) + 1]
        if not any(letter.isalnum() or letter == "_" for letter in around):
            return True
    return False


@effort
@given(wild_texts, wild_texts | st.none(), wild_texts | st.none())
def test_every_text_is_classified_by_whole_words(client: str, period: str | None, description: str | None) -> None:
    verdict = GUIDE.classify(client, period, description)
    assert verdict.client_rule is None or verdict.client_rule.casefold() in client.casefold().replace("\xa0", " ")
    for text in filter(None, (period, description)):
        found = [rule.keyword for rule in GUIDE.subcategory if has_word(text.casefold(), rule.keyword)]
        if found:
            assert verdict.keyword == found[0]
            return
    assert verdict.keyword is None


@pytest.mark.parametrize("text", ["mining" * 80_000, " " * 500_000, "mining_ " * 60_000, "\u0130" * 250_000])
def test_half_a_megabyte_of_text_is_classified(text: str) -> None:
    """A pattern that tried more than once from a place would take minutes here."""
    assert GUIDE.classify(text, text, text).keyword is None


# -- mapping files -----------------------------------------------------------------------------------------------------


def toml(value: Any) -> str:
    """A value as TOML."""
    match value:
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(str(name))} = {toml(each)}" for name, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case str():
            quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            return quoted.encode("utf-8", "replace").decode()
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def document_of(tables: Mapping[str, Any]) -> str:
    return "\n".join(f"{json.dumps(name)} = {toml(value)}" for name, value in tables.items())


template_texts = (
    st.lists(
        st.sampled_from([*sorted(FIELDS), *FUNCTIONS, "{", "}", "[", "]", "(", ")", " - ", "{identifier}", "{date("]),
        max_size=8,
    ).map("".join)
    | wild_texts
)
toml_values = st.recursive(
    wild_texts | template_texts | st.booleans() | st.integers() | st.decimals()
    | st.sampled_from([10**200, Decimal("1e400"), Decimal("1e-400"), datetime(2025, 1, 1, tzinfo=UTC)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["name", "id"]), inner),
    max_leaves=5,
)  # fmt: skip


@st.composite
def mutated_mappings(draw: st.DrawFn) -> str:
    """The guide's, with some places of it changed."""
    document = copy.deepcopy(DOCUMENT)
    for _ in range(draw(st.integers(0, 3))):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.integers(0, 5)):
                place = place[key]
                continue
            match draw(st.integers(0, 2)):
                case 0:
                    place[key] = draw(toml_values)
                case 1 if isinstance(place, dict):
                    place[draw(texts)] = draw(toml_values)
                case _:
                    del place[key]
            break
    return document_of(document)


def judge_file(path: Path, content: bytes) -> mapping.Mapping | None:
    path.write_bytes(content)
    try:
        return mapping.load(path)
    except MappingError as error:
        lines = str(error).split("\n")
        assert all(line.startswith(f"mapping file {path}: ") and line.isprintable() for line in lines)
        assert max(map(len, lines)) < 1000
        return None


def test_the_guide_s_file_written_anew_is_the_guide_s(folder: Path) -> None:
    assert judge_file(folder / "same.toml", document_of(DOCUMENT).encode()) == GUIDE


@effort
@given(content=mutated_mappings())
def test_a_mapping_file_of_any_content_is_a_mapping_that_works_or_an_error(folder: Path, content: str) -> None:
    rules = judge_file(folder / "any.toml", content.encode())
    if rules is not None:
        found = draft(PAID, None, rules)
        assert isinstance(found, Draft)
        assert "\0" not in "".join(value or "" for value in found.values.values()) + found.classification.entity


@effort
@given(data=st.data())
def test_a_mapping_file_with_damaged_bytes_is_a_mapping_or_an_error(folder: Path, data: st.DataObject) -> None:
    content = bytearray(DEFAULT_FILE.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b"[" * 100_000, b"9" * 5000, b"1e" + b"9" * 30, b"a." * 500, b'"""'])
        )
    judge_file(folder / "damaged.toml", bytes(content))


@effort
@given(template_texts, st.dictionaries(st.sampled_from(sorted(FIELDS)), texts | st.none()))
def test_a_template_is_refused_or_renders_any_invoice(text: str, values: dict[str, str | None]) -> None:
    try:
        template = templates.parse(text)
    except ValueError as error:
        assert len(str(error)) < 1000  # noqa: PT017  (it need not be raised)
        return
    rendered = template.render(dict.fromkeys(FIELDS) | values)
    assert rendered is None or (isinstance(rendered, str) and "\0" not in rendered)


# -- invoices ----------------------------------------------------------------------------------------------------------

PAID = Invoice(
    1, "paid", "N-1", "1", "Alps Blockchain", "100.00", "2025-10-22 14:30:00", None, None, "USDT", "100", "TRC20",
    None, "0x1", None, None,
)  # fmt: skip
number_texts = st.sampled_from([
    "NaN", "sNaN", "Infinity", "-Infinity", "0", "-0.00", "0.001", "1e2", "1e999999999", "1e-999999999", "9" * 131_072,
    "0." + "0" * 16_383 + "1", "100.000", "1_0", "١٢", " 5 ", "",
])  # fmt: skip
time_texts = st.sampled_from([
    "infinity", "-infinity", "0001-01-01 00:00:00 BC", "294276-12-31 23:59:59", "0001-01-01 00:00:00+14",
    "9999-12-31 23:59:59.999999-14", "2025-02-30", "", "20251022", "2025-W43-3",
])  # fmt: skip
any_invoice = st.builds(
    Invoice,
    **{
        each.name: {
            "id": st.integers(1, 2**31 - 1),
            "status": st.sampled_from(["paid", "PAID", "complete", "sent", None]) | texts,
            "amount_usd": st.just("100.00") | number_texts | st.decimals(places=2).map(str) | st.none() | wild_texts,
            "paid_at": st.just("2025-10-22 14:30:00") | time_texts | st.datetimes().map(str) | st.none() | wild_texts,
        }.get(each.name, st.none() | texts)
        for each in fields(Invoice)
    },
)
any_sync = st.none() | st.builds(
    SyncRow,
    st.sampled_from(["synced", "failed", "retry", "pending"]) | texts,
    st.none() | st.integers(1, 2**63 - 1), st.none() | texts, st.booleans(), st.integers(0, 3), texts, st.none(),
)  # fmt: skip


@effort
@given(any_invoice, any_sync, st.booleans())
def test_an_invoice_of_any_content_is_booked_to_the_cent_or_a_fault_that_says_why(
    invoice: Invoice, sync: SyncRow | None, repair: bool
) -> None:
    try:
        found = draft(invoice, sync, GUIDE, repair=repair)
    except (RecordFault, Transient) as error:
        fault: Fault = error
        assert fault.code in FAULT_CODES
        assert len(fault.message) < 1000
        return
    assert isinstance(found, Draft | Settled | NotPaid)
    if isinstance(found, Draft):
        assert found.amount == Decimal(invoice.amount_usd or "") > 0
        assert found.amount.as_tuple().exponent == -2
        assert found.values["identifier"] == found.identifier != ""
        assert (invoice.client_name or "") in (found.values["description"] or "")


@effort
@given(wild_texts | st.integers().map(str))
def test_a_key_is_a_whole_number_or_none(key: str) -> None:
    assert whole_number(key) is None or abs(whole_number(key) or 0) < 2**63


# -- filters -----------------------------------------------------------------------------------------------------------

argument_texts = wild_texts | st.from_regex(r"[0-9]{0,30}[:smhdw-]?[0-9]{0,30}-?[0-9]{0,30}", fullmatch=True)


@effort
@given(argument_texts)
def test_what_people_write_to_mean_dead_letters_is_understood_or_a_value_error(text: str) -> None:
    for parse in (parse_place, parse_offsets, lambda text: parse_moment(text, NOW)):
        try:
            parse(text)
        except ValueError as error:
            assert len(str(error)) < 200  # noqa: PT017


ENTRIES = [
    Entry(letter("0:1"), "open"),
    Entry(letter("1:2", failure_id="g", dead_lettered_at=None, invoice_id=None), "replayed"),
    Entry(letter("2:3", failure_id="h", error_message="\0\ud800", code=""), "discarded"),
]


@effort
@given(
    st.dictionaries(
        st.sampled_from(sorted(DeadLetterPage.model_fields)),
        argument_texts | st.integers() | st.lists(argument_texts, max_size=3) | st.none() | st.floats()
        | st.sampled_from(["open", "all", "record", "1", "2025-10-22T14:00:00Z", "1-2-3"]),
    ),
    st.booleans(),
)  # fmt: skip
def test_a_filter_is_refused_or_selects_without_losing_one(query: dict[str, Any], force: bool) -> None:
    try:
        wanted = DeadLetterPage.model_validate(query).wanted()
    except ValidationError:
        return
    assert isinstance(wanted, Filter)
    for selection in (select_for_replay(ENTRIES, wanted, force=force), select_for_discard(ENTRIES, wanted)):
        assert len(selection.entries) + sum(selection.excluded.values()) <= len(ENTRIES)
        json.dumps(selection.as_dict())


# -- settings ----------------------------------------------------------------------------------------------------------

NAMES = sorted(Settings.model_fields)


@effort
@given(st.dictionaries(st.sampled_from(NAMES), wild_texts | argument_texts | st.integers() | st.none() | st.binary()))
def test_settings_of_any_content_are_taken_or_refused_by_name(values: dict[str, Any]) -> None:
    secrets = {name: f"hunter2 {value}" for name, value in values.items() if name.endswith("_dsn")}
    try:
        taken = settings.load(_env_file=None, **{"invoice_dsn": "host=x"} | values | secrets)
    except SettingsError as error:
        lines = str(error).split("\n")
        assert {line.partition(":")[0].removeprefix(PREFIX).lower() for line in lines} <= set(NAMES)
        assert all(line.isprintable() and len(line) < 500 for line in lines)
        assert "hunter2" not in str(error)  # noqa: PT017
    else:
        assert all(delay >= timedelta(0) for delay in taken.retry_delays)
        assert taken.group_id.isprintable()


@effort
@given(content=st.binary() | st.lists(st.tuples(st.sampled_from(NAMES), wild_texts)).map(
    lambda pairs: "\n".join(f"{PREFIX}{name}={text}" for name, text in pairs).encode("utf-8", "surrogatepass")
))  # fmt: skip
def test_a_dotenv_file_of_any_bytes_is_taken_or_refused(folder: Path, content: bytes) -> None:
    path = folder / ".env"
    path.write_bytes(content)
    try:
        settings.load(_env_file=path)
    except SettingsError as error:
        lines = str(error).split("\n")
        assert all(line.startswith((PREFIX, ".env: ")) and line.isprintable() for line in lines)
