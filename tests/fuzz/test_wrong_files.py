"""A wrong mapping file or variable: one line that says where, what was found, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumer import broker, mapping, settings
from consumer.mapping import DEFAULT_FILE, MAX_BYTES, MappingError
from consumer.settings import PREFIX, SettingsError

DSN = "postgresql://cfo:hunter2@localhost/x"
GUIDE = DEFAULT_FILE.read_text(encoding="utf-8")

# By what is replaced in the guide's file, and by what: where, what was found, what is allowed.
FILES = [
    ('category = "Revenue"', "category = ", "line 11, column 12", "'category = '", "Invalid value"),
    ('category = "Revenue"', 'category = "Revenue', "line 11, column 20", "'category = \"Rev", "Illegal character"),
    ('category = "Revenue"', "category = 1e99999999999999999999", "not TOML", "1e99999999999999999999", "held"),
    ('category = "Revenue"', f"category = {'9' * 5000}", "not TOML", "5000 digits", "limit (4300 digits)"),
    ('category = "Revenue"', f"category = {'[' * 5000}", "not a mapping", "too deep", "brackets"),
    ('category = "Revenue"', "category = 2025-02-30", "line 11", "2025-02-30", "Invalid date"),
    ('category = "Revenue"', 'category = "R"\ncategory = "S"', "line 12", 'category = "S"', "Cannot overwrite"),
    ('category = "Revenue"', 'category = "\\ud800"', "line 11", "ud800", "not a Unicode scalar value"),
    ('category = "Revenue"', "", "category", "is missing", 'write category = "…"'),
    ('category = "Revenue"', "category = 7", "category", "found 7", "must be text"),
    ('category = "Revenue"', 'category = "  "', "category", "found '", "a text that is not blank"),
    ('category = "Revenue"', 'category = "a\\u0000b"', "category", "found 'a\\x00b'", "without the character NUL"),
    ('category = "Revenue"', 'categry = "R"', "categry", "is no key", "category, client, other"),
    ('category = "Revenue"', '"\\u001b[31m" = 1\ncategory = "R"', "\\x1b[31m", "is no key", "category, client, other"),
    ("[other]", "[others]", "other", "is missing", "write a table [other]"),
    ("[default]", "[[default]]", "default", "found [{", "must be a table"),
    ("aliases = []", 'aliases = "x"', "client.2.aliases", "found 'x'", "must be a list"),
    ("aliases = []", "aliases = [1]", "client.2.aliases.0", "found 1", "must be text"),
    ("aliases = []", 'alias = ["x"]', "client.2.alias", "is no key", "entity, business_unit, name, aliases"),
    ("aliases = []", 'aliases = ["exos  CAPITAL"]', "the whole", "'exos  CAPITAL'", "stands in two rules"),
    ('entity = "Delta Mining Paraguay S.A."', "", "client.0.entity", "is missing", 'write entity = "…"'),
    ('keyword = "mining"', 'keyword = "HOSTING"', "the whole", "'hosting'", "stands in two rules"),
    ('keyword = "mining"', 'keyword = "\\u001c"', "subcategory.1.keyword", "found '\\x1c'", "not blank"),
    ('keyword = "mining"', "keyword = true", "subcategory.1.keyword", "found True", "must be text"),
    ('table = "transactions"', 'table = "a.b.c"', "target.table", "found 'a.b.c'", "write table or schema.table"),
    ('table = "transactions"', f'table = "{"ä" * 32}"', "target.table", "found 'ää", "1 to 63 bytes"),
    ('id = "id"', f'id = "{"x" * 64}"', "target.id", "found 'xx", "1 to 63 bytes"),
    ('origin = "External', '"" = "External', "target.fixed..[key]", "found ''", "the name of a column"),
    ('date = "{paid_at}"', "date = 2025-01-01", "target.facts.date", "found datetime.date", "text, a number or true"),
    ('date = "{paid_at}"', "date = inf", "target.facts.date", "found Infinity", "a number of at most 100 digits"),
    ('date = "{paid_at}"', "date = 1e9999999", "target.facts.date", "found 1E+9999999", "at most 100 digits"),
    ('date = "{paid_at}"', f"date = 0x{'f' * 5000}", "target.facts.date", "too long to print", "100 digits"),
    ('date = "{paid_at}"', 'date = "{paid}"', "target.facts.date", "no field 'paid'", "there are amount_received"),
    ('date = "{paid_at}"', 'date = "{eval(paid_at)}"', "target.facts.date", "no function 'eval'", "there are date"),
    ('date = "{paid_at}"', 'date = "{paid_at.x}"', "target.facts.date", "found '{paid_at.x}'", "is written {name}"),
    ('date = "{paid_at}"', 'date = "[a[b]]"', "target.facts.date", "found '[a[b]]'", "cannot be nested"),
    ('date = "{paid_at}"', 'date = "x\\u0000"', "target.facts.date", "found 'x\\x00'", "without the character NUL"),
    ('date = "{paid_at}"', 'origin = "x"', "target", "'origin'", "is filled twice"),
    ('identifier = "{identifier}"', 'identifier = "x"', "target", "[target.fixed]", 'say identifier = "{identifier}"'),
    ('entity = "classified_entity"', 'entity = "nowhere"', "target", "'nowhere'", "that no template fills"),
    ('source_file = "crypto_invoice_{identifier}"', 'source_file = "x"', "target", "source_file", "of {identifier}"),
]  # fmt: skip

# By variable and value; what was found is told of all but secrets.
VARIABLES = [
    ("INVOICE_DSN", "mysql://cfo:hunter2@h/d", None, "write postgresql://user:password@host/dbname"),
    ("INVOICE_DSN", "host=x\0 password=hunter2", None, "write postgresql://"),
    ("CFO_DSN", "host=x password=hunter2\udcff", None, "write postgresql://"),
    ("KAFKA_BOOTSTRAP_SERVERS", "a:9092\nb:9092", "found 'a:9092\\nb:9092'", "one line without control characters"),
    ("KAFKA_CONFIG_FILE", "a\0b", "found 'a\\x00b'", "write the path of a file"),
    ("SOURCE_TOPIC", "a b", "found 'a b'", "A-Z a-z 0-9 . _ -"),
    ("TOPIC_PREFIX", "\x1b[31m", "found '\\x1b[31m'", "A-Z a-z 0-9 . _ -"),
    ("GROUP_ID", "\u202e", "found '\\u202e'", "one line without control characters"),
    ("RETRY_DELAYS", "1m,5m", "found '1m,5m'", "write exactly 3 durations, like 1m,5m,15m"),
    ("RETRY_DELAYS", "1m,soon,2m", "found '1m,soon,2m'", "write a duration like 30s, 5m or 1h"),
    ("MAPPING_FILE", "a\0b", "found 'a\\x00b'", "write the path of a file"),
    ("BATCH_SIZE", "many", "found 'many'", "must be a valid integer"),
    ("BATCH_SIZE", "9" * 10_000, "found '999", "as an integer, exceeded maximum size"),
    ("BATCH_SIZE", "20001", "found '20001'", "less than or equal to 20000"),
    ("SWEEP_INTERVAL", "0", "found '0'", "write a duration above 0"),
    ("SWEEP_INTERVAL", "2d", "found '2d'", "at most 1d"),
    ("API_HOST", "\r\n", "found '\\r\\n'", "one line without control characters"),
    ("API_PORT", "65536", "found '65536'", "less than or equal to 65535"),
    ("LOG_LEVEL", "TRACE", "found 'TRACE'", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ("LOG_FORMAT", "xml", "found 'xml'", "'json' or 'human'"),
]


@pytest.mark.parametrize(("old", "new", "place", "found", "allowed"), FILES, ids=map(str, range(len(FILES))))
def test_a_wrong_mapping_file_is_told_place_found_and_allowed(
    tmp_path: Path, old: str, new: str, place: str, found: str, allowed: str
) -> None:
    path = tmp_path / "mapping.toml"
    assert old in GUIDE
    path.write_text(GUIDE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MappingError) as caught:
        mapping.load(path)
    line = next(line for line in str(caught.value).splitlines() if place in line)
    assert line.startswith(f"mapping file {path}: ")
    assert found in line
    assert allowed in line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'a = "x"\nb = "\xfc"\n', "line 2 is not UTF-8: byte 0xfc"),
        (b"#" * (MAX_BYTES + 1), "larger than 4,194,304 bytes"),
        (b"", "category: is missing"),
    ],
    ids=["latin-1", "large", "empty"],
)
def test_a_file_that_is_no_toml_is_told_why(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mapping.toml"
    path.write_bytes(content)
    with pytest.raises(MappingError) as caught:
        mapping.load(path)
    assert says in str(caught.value)


def test_ten_thousand_clients_are_compared_in_one_pass(tmp_path: Path) -> None:
    """Comparing each with each would take a minute."""
    rules = "".join(f'[[client]]\nname = "c{n}"\nentity = "e"\nbusiness_unit = "b"\n' for n in range(10_000))
    (tmp_path / "mapping.toml").write_text(GUIDE + rules, encoding="utf-8")
    assert len(mapping.load(tmp_path / "mapping.toml").client) == 10_003


@pytest.mark.parametrize(("name", "value", "found", "allowed"), VARIABLES, ids=map(str, range(len(VARIABLES))))
def test_a_wrong_variable_is_told_by_name_with_found_and_allowed(
    name: str, value: str, found: str | None, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(_env_file=None, **{"invoice_dsn": DSN, name.lower(): value})
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{PREFIX}{name}: ")
    assert allowed in line
    assert (found in line) if found else ("found" not in line)
    assert line.isprintable()
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"acks=0\n", "line 1: acks is fixed, remove the line"),
        (b"# x\nsasl.password hunter2\n", "line 2: write name=value"),
        (b"sasl.password=hunter2\xff\n", "cannot read"),
    ],
    ids=["protected", "no-equals", "latin-1"],
)
def test_a_wrong_properties_file_is_told_by_line_and_without_its_secrets(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "kafka.properties"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        broker.client_config(settings.load(_env_file=None, invoice_dsn=DSN, kafka_config_file=path))
    assert f"{PREFIX}KAFKA_CONFIG_FILE: " in str(caught.value)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
