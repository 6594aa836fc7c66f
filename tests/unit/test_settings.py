"""Every variable with a good and a bad value; a refusal names the variable and never repeats a secret."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from consumer.settings import PREFIX, SECRETS_DIR, Settings, SettingsError, load, parse_duration

DSN = "postgresql://cfo:hunter2@localhost:5432/invoicing"
OTHER_DSN = "host=ledger dbname=cfo user=cfo password=hunter2"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable but those of the test, and no .env file."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.delenv(SECRETS_DIR, raising=False)
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", DSN)
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


GOOD: dict[str, list[tuple[str, Any]]] = {
    "INVOICE_DSN": [(DSN, SecretStr(DSN)), (OTHER_DSN, SecretStr(OTHER_DSN))],
    "CFO_DSN": [(OTHER_DSN, SecretStr(OTHER_DSN))],
    "KAFKA_BOOTSTRAP_SERVERS": [("a:9092,b:9092", "a:9092,b:9092")],
    "KAFKA_CONFIG_FILE": [("kafka.properties", Path("kafka.properties"))],
    "SOURCE_TOPIC": [("a.b-c_D9", "a.b-c_D9")],
    "GROUP_ID": [("another", "another")],
    "TOPIC_PREFIX": [("team.cfo", "team.cfo")],
    "RETRY_DELAYS": [
        ("1m,5m,15m", (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))),
        (" 250ms, 1s ,2 ", (timedelta(milliseconds=250), timedelta(seconds=1), timedelta(seconds=2))),
    ],
    "MAPPING_FILE": [("mapping.toml", Path("mapping.toml"))],
    "BATCH_SIZE": [("1", 1), ("20000", 20_000)],
    "SWEEP_INTERVAL": [("90s", timedelta(seconds=90))],
    "SWEEP_GRACE": [("1.5m", timedelta(seconds=90))],
    "APPLY_CONNECTIONS": [("1", 1), ("2", 2)],
    "SILENCE_ECHO": [("true", True), ("false", False), ("0", False)],
    "REPLICATION_SLOT": [("north_cfo_sync", "north_cfo_sync")],
    "PUBLICATION": [("north", "north")],
    "BREAKER_CONSECUTIVE_FAULTS": [("2", 2)],
    "API_HOST": [("0.0.0.0", "0.0.0.0")],  # noqa: S104
    "API_PORT": [("0", 0), ("65535", 65535)],
    "API_TOKEN": [("hunter2", SecretStr("hunter2"))],
    "MONITOR_INTERVAL": [("15s", timedelta(seconds=15))],
    "RECONCILE_INTERVAL": [("1h", timedelta(hours=1))],
    "METRICS_HOST": [("127.0.0.1", "127.0.0.1")],
    "METRICS_PORT": [("0", 0)],
    "LOG_LEVEL": [("DEBUG", "DEBUG"), ("ERROR", "ERROR")],
    "LOG_FORMAT": [("human", "human")],
}

BAD: dict[str, list[str]] = {
    "INVOICE_DSN": ["postgresql:/hunter2", "hunter2", "host=x password=hunter2 bogus=1", "mysql://u:hunter2@h/d"],
    "CFO_DSN": ["hunter2", "postgresql://u:hunter2@[::1/x"],
    "SOURCE_TOPIC": ["a b", "a/b", "ä", "x" * 231],
    "TOPIC_PREFIX": ["a b", "x" * 231],
    "RETRY_DELAYS": ["1m", "1m,5m", "1m,5m,15m,1h", "a,b,c", "1m,,5m", "-1m,5m,15m", "1m,5m,99999999999d"],
    "BATCH_SIZE": ["0", "20001", "many", "1.5", "-1"],
    "SWEEP_INTERVAL": ["0", "0s", "-5m", "soon", "5 minutes", "1e3", "99999999999d", "9" * 400],
    "SWEEP_GRACE": ["0", "x"],
    "APPLY_CONNECTIONS": ["0", "3", "x"],
    "SILENCE_ECHO": ["perhaps", "2"],
    "BREAKER_CONSECUTIVE_FAULTS": ["1", "0", "x"],
    "API_PORT": ["-1", "65536", "http"],
    "MONITOR_INTERVAL": ["0", "x"],
    "RECONCILE_INTERVAL": ["0", "never"],
    "METRICS_PORT": ["-1", "65536", "x"],
    "LOG_LEVEL": ["info", "TRACE", "10"],
    "LOG_FORMAT": ["text", "JSON"],
}
# Any text will do for these; whether the file is there and the host answers is found out later.
FREE = {
    "KAFKA_BOOTSTRAP_SERVERS",
    "KAFKA_CONFIG_FILE",
    "GROUP_ID",
    "REPLICATION_SLOT",
    "PUBLICATION",
    "MAPPING_FILE",
    "API_HOST",
    "API_TOKEN",
    "METRICS_HOST",
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, found in table.items()
        for number, case in enumerate(found)
    ]


def test_every_variable_is_tested() -> None:
    names = {name.upper() for name in Settings.model_fields}
    assert set(GOOD) == names
    assert set(BAD) | FREE == names


@pytest.mark.parametrize(("name", "case"), cases(GOOD))
def test_a_good_value_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, case: tuple[str, Any]) -> None:
    text, value = case
    monkeypatch.setenv(PREFIX + name, text)
    assert getattr(load(), name.lower()) == value


@pytest.mark.parametrize(("name", "text"), cases(BAD))
def test_a_bad_value_is_refused_in_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    [line] = refusal(monkeypatch, **{name: text}).splitlines()
    assert line.startswith(f"{PREFIX}{name}: ")
    assert len(line) > len(f"{PREFIX}{name}: ")


def test_all_mistakes_are_told_at_once_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(monkeypatch, INVOICE_DSN="hunter2", API_PORT="x", RETRY_DELAYS="1m", LOG_LEVEL="loud")
    assert [line.partition(":")[0].removeprefix(PREFIX) for line in told.splitlines()] == [
        "INVOICE_DSN",
        "RETRY_DELAYS",
        "API_PORT",
        "LOG_LEVEL",
    ]


def test_the_one_variable_that_must_be_set_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PREFIX + "INVOICE_DSN")
    assert refusal(monkeypatch) == (
        "CFO_SYNC_INVOICE_DSN: is not set: write CFO_SYNC_INVOICE_DSN=postgresql://user:password@host/dbname"
        " into the environment or ./.env"
    )


def test_defaults_are_the_guide_s_and_the_design_s() -> None:
    settings = load()
    assert settings.source_topic == "invoicing.public.crypto_invoices"
    assert settings.group_id == "cfo-sync"
    assert settings.retry_topics == ("cfo-sync.retry.1", "cfo-sync.retry.2", "cfo-sync.retry.3")
    assert (settings.dlq_topic, settings.replay_topic) == ("cfo-sync.dlq", "cfo-sync.replay")
    assert settings.retry_delays == (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
    assert settings.sweep_interval == timedelta(minutes=5)
    assert (settings.api_port, settings.metrics_port) == (8080, 9108)
    assert (settings.mapping_file, settings.kafka_config_file, settings.api_token) == (None, None, None)


def test_own_topics_follow_their_prefix() -> None:
    settings = load(topic_prefix="team")
    assert [*settings.retry_topics, settings.dlq_topic, settings.replay_topic] == [
        "team.retry.1",
        "team.retry.2",
        "team.retry.3",
        "team.dlq",
        "team.replay",
    ]


@pytest.mark.parametrize(("cfo_dsn", "one"), [(None, True), (DSN, True), (OTHER_DSN, False)])
def test_one_database_unless_the_cfo_s_is_another(cfo_dsn: str | None, one: bool) -> None:
    assert load(cfo_dsn=cfo_dsn).is_one_database is one


@pytest.mark.parametrize("name", ["CFO_DSN", "KAFKA_CONFIG_FILE", "MAPPING_FILE", "API_TOKEN", "RETRY_DELAYS"])
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compose files and Kubernetes templates set variables to nothing when they mean nothing."""
    monkeypatch.setenv(PREFIX + name, "")
    assert getattr(load(), name.lower()) == Settings.model_fields[name.lower()].default


def test_an_empty_dsn_does_not_lead_to_whatever_database_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, INVOICE_DSN="").startswith("CFO_SYNC_INVOICE_DSN: ")


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"CFO_SYNC_GROUP_ID=file\nCFO_SYNC_API_PORT=81\nCFO_SYNC_INVOICE_DSN={OTHER_DSN}\nANOTHER=1\nCFO_SYNC_UNKNOWN=1\n"
    )
    monkeypatch.setenv(PREFIX + "GROUP_ID", "environment")
    settings = load()
    assert (settings.group_id, settings.api_port) == ("environment", 81)
    assert settings.invoice_dsn.get_secret_value() == DSN


def test_a_dotenv_file_that_is_not_utf_8_is_a_settings_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CFO_SYNC_API_TOKEN=hunter2\xfc\n")
    assert ".env" in refusal(monkeypatch)


def test_no_secret_is_printed() -> None:
    settings = load(cfo_dsn=OTHER_DSN, api_token="hunter2")
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


# -- durations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("15m", 900),
        ("1h", 3600),
        ("250ms", 0.25),
        ("1d", 86400),
        ("0", 0),
        (" 5 M ", 300),
        ("2 h", 7200),
        (7, 7),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
    ],
    ids=repr,
)
def test_a_duration_is_read(text: object, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "-1s", "+1s", "1.s", ".5s", "1w", "1m30s", "1e3", "inf", "nan", "1,5m", None, [], True]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="write a duration"):
        parse_duration(text)


@given(st.text() | st.from_regex(r"\d{1,25}(ms|s|m|h|d)?", fullmatch=True))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)


def test_a_secret_is_read_from_its_file_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    (tmp_path / "cfo_sync_invoice_dsn").write_text(OTHER_DSN + "\n")
    (tmp_path / "cfo_sync_api_token").write_text("hunter2\n")
    assert load().invoice_dsn == SecretStr(DSN)
    monkeypatch.delenv(PREFIX + "INVOICE_DSN")
    assert (load().invoice_dsn, load().api_token) == (SecretStr(OTHER_DSN), SecretStr("hunter2"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cfo_sync_cfo_dsn", b"mysql://u:hunter2@h/d", "CFO_SYNC_CFO_DSN: not a PostgreSQL connection string"),
        ("cfo_sync_api_token", b"hunter2\xff", "not UTF-8 text"),
    ],
)
def test_a_wrong_secret_file_is_told_without_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refusal(monkeypatch, SECRETS_DIR=str(tmp_path))


def test_a_folder_of_secrets_that_is_not_there_is_a_settings_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="CFO_SYNC_SECRETS_DIR: write the path of a folder that is there"):
        load()
