"""The command line's exit codes and messages, where no server is needed: 0 fine, 2 usage or settings, 3 unavailable."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import structlog

from consumer import checks, cli, invoice_views
from consumer.mapping import DEFAULT_FILE
from consumer.settings import PREFIX, Settings

# Nobody listens on port 1: connections are refused at once.
UNREACHABLE = "postgresql://cfo:hunter2@127.0.0.1:1/invoicing"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    handlers, level = logging.root.handlers, logging.root.level
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", UNREACHABLE)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["cfo-sync", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code or 0
    assert isinstance(code, int)
    return code


def test_python_m_consumer_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "consumer", "--version"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cfo-sync ")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["topics", "create", "--help"]])
def test_help_and_version_need_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 0
    assert capsys.readouterr().err == ""


HEAVY = {
    "asyncio", "confluent_kafka", "consumer.mapping", "consumer.service", "consumer.settings", "fastapi", "msgspec",
    "prometheus_client", "psycopg", "pydantic", "rich", "structlog", "uvicorn", "yoyo",
}  # fmt: skip


def loaded(program: str) -> set[str]:
    """What a program, run by a Python of its own, has imported of what takes long to import."""
    shown = f"{program}\nimport sys; print(); print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", shown], cwd=root, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "typers_own"),
    # To describe the options of a command, Typer itself asks pydantic.
    [(["--help"], set()), (["reconcile", "--help"], {"pydantic"}), (["dlq", "list", "--help"], {"pydantic"})],
)
def test_help_loads_nothing_that_takes_long(arguments: list[str], typers_own: set[str]) -> None:
    asked = f"from consumer.cli import app; app({arguments}, standalone_mode=False)"
    assert loaded(asked) - typers_own == set()


def test_the_consumer_loads_no_web_server_and_no_migrations() -> None:
    assert loaded("import consumer.running") & {"fastapi", "uvicorn", "yoyo"} == set()
    assert "psycopg" in loaded("from consumer import CFOSyncService")


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, "--help")
    told = capsys.readouterr().out
    for command in ("run", "migrate", "check", "topics", "sync", "status", "pending", "demo"):
        assert f"\n  {command} " in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["synchronise"],
        ["--verbose"],
        ["sync"],
        ["sync", "one"],
        ["sync", "0"],
        ["sync", "-1"],
        ["sync", "2147483648"],
        ["sync", "1", "2"],
        ["status", "1.5"],
        ["pending", "--limit", "0"],
        ["pending", "--limit", "1001"],
        ["pending", "--after", "-1"],
        ["topics", "create", "--partitions", "0"],
        ["topics", "delete"],
        ["remap", "2"],
        ["remap", "2", "--entity", ""],
        ["remap", "2", "--entity", " "],
        ["remap", "2", "--entity", "Delta", "--business-unit", ""],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("unreachable")
def test_wrong_usage_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


COMMANDS = [["run"], ["migrate"], ["check"], ["topics", "create"], ["sync", "1"], ["status", "1"], ["pending"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_missing_settings_are_exit_code_2_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "cfo-sync: CFO_SYNC_INVOICE_DSN: is not set:"
        " write CFO_SYNC_INVOICE_DSN=postgresql://user:password@host/dbname into the environment or ./.env\n"
    )
    assert captured.out == ""


def test_every_wrong_setting_is_told_on_a_line_of_its_own_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", "hunter2 [bold]")
    monkeypatch.setenv(PREFIX + "API_PORT", "web")
    assert call(monkeypatch, "pending") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [
        ["cfo-sync", " CFO_SYNC_INVOICE_DSN"],
        ["cfo-sync", " CFO_SYNC_API_PORT"],
    ]
    assert "hunter2" not in "".join(lines)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("arguments", [["sync", "1"], ["status", "1"], ["pending"]], ids=" ".join)
def test_a_wrong_mapping_file_is_exit_code_2_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('category = "Revenue"\n')
    monkeypatch.setenv(PREFIX + "MAPPING_FILE", str(path))
    assert call(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"cfo-sync: mapping file {path}: ") for line in lines)
    assert {line.split(": ")[2] for line in lines} == {"other", "default", "target"}


@pytest.mark.usefixtures("unreachable")
def test_a_missing_mapping_file_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(PREFIX + "MAPPING_FILE", str(tmp_path / "none.toml"))
    assert call(monkeypatch, "pending") == 2
    assert "CFO_SYNC_MAPPING_FILE" in capsys.readouterr().err


@pytest.mark.usefixtures("unreachable")
def test_what_is_wrong_with_a_mapping_file_is_told_without_the_validators_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(DEFAULT_FILE.read_text().replace('table = "transactions"', 'table = "a.b.c"'))
    monkeypatch.setenv(PREFIX + "MAPPING_FILE", str(path))
    assert call(monkeypatch, "pending") == 2
    assert capsys.readouterr().err == (
        f"cfo-sync: mapping file {path}: target.table: write table or schema.table, each 1 to 63 bytes, found 'a.b.c'\n"
    )


def test_a_wrong_choice_is_told_without_the_validators_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "dlq", "list", "--kind", "odd") == 2
    told = capsys.readouterr().err
    assert "'odd' is not one of" in told
    assert "Value error" not in told


@pytest.mark.parametrize(
    ("command", "takes"),
    [
        (["sync"], "INVOICE_ID"),
        (["pending"], "--limit N"),
        (["remap"], "--entity NAME"),
        (["reconcile"], "--since TIME"),
        (["topics", "create"], "--partitions N"),
        (["dlq", "list"], "--error-code CODE"),
        (["dlq", "show"], "P:O"),
        (["dlq", "replay"], "--invoice INVOICE_ID"),
        (["dlq", "discard"], "--reason TEXT"),
    ],
)
def test_help_says_what_is_to_be_written_and_no_python_types(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], takes: str
) -> None:
    call(monkeypatch, *command, "--help")
    told = capsys.readouterr().out
    assert takes in told
    assert re.findall(r"<[a-z\[\] ]+>", told) == []


PENDING = {
    "invoice_id": 2**31 - 1,
    "invoice_number": "DPY-2025-10-0001",
    "client_name": "A client whose name is far too long for a terminal",
    "amount_usd": Decimal("1234567.89"),
    "paid_at": datetime(2025, 10, 22, 14, 0, 7, 123456, tzinfo=UTC),
    "sync_status": "retry",
    "retry_count": 1,
    "sync_error": "row-locked: \x1b[2Jsomebody holds it",
}


def test_pending_cuts_nothing_but_a_clients_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    other = PENDING | {"invoice_id": 7, "amount_usd": None, "paid_at": None, "sync_status": "pending",
                       "retry_count": 0, "sync_error": None, "invoice_number": "N" * 80}  # fmt: skip
    invoice_views.print_pending([PENDING], {"retry": 1}, after=0)
    head, row, error, count = capsys.readouterr().out.splitlines()
    assert head.split() == ["invoice", "number", "USD", "status", "paid", "(UTC)", "client"]
    assert row.startswith("2147483647  DPY-2025-10-0001  1,234,567.89  retry 1  2025-10-22 14:00:07  A cli…")
    assert len(row) == 80
    assert error == "    row-locked: \\x1b[2Jsomebody holds it"
    assert count == "1 not booked: 1 retry"
    invoice_views.print_pending([PENDING, other], {"pending": 1, "retry": 1}, after=0)
    assert "         7  " + "N" * 80 + " " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shown", "counts", "after", "expected"),
    [
        (0, {}, 0, "0 not booked"),
        (2, {"failed": 1, "retry": 1}, 0, "2 not booked: 1 failed, 1 retry"),
        (1, {"failed": 1200, "retry": 1}, 0, "1 shown of 1,201 not booked: 1,200 failed, 1 retry"),
        (0, {"failed": 1}, 9, "none after invoice 9; 1 not booked: 1 failed"),
        (0, {}, 9, "none after invoice 9; 0 not booked"),
    ],
)
def test_pending_says_how_many_there_are_in_all(
    capsys: pytest.CaptureFixture[str], shown: int, counts: dict[str, int], after: int, expected: str
) -> None:
    invoice_views.print_pending([PENDING] * shown, counts, after=after)
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_status_is_a_line_for_each_field(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = {
        "invoice_number": "DPY-2025-10-0001", "sync_status": None, "cfo_transaction_id": None, "adopted": False,
        "retry_count": 0, "sync_timestamp": PENDING["paid_at"], "sync_error": "e" * 100 + "\n[red]",
    }  # fmt: skip
    invoice_views.print_status(row)
    assert capsys.readouterr().out.splitlines() == [
        "  invoice_number      DPY-2025-10-0001",
        "  sync_status         none",
        "  adopted             no",
        "  retry_count         0",
        "  sync_timestamp      2025-10-22T14:00:07Z",
        "  sync_error          " + "e" * 100 + "\\n[red]",
    ]


@pytest.mark.usefixtures("unreachable")
def test_check_wraps_nothing_and_a_database_that_is_down_is_something_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(checks, "_check_topics", lambda *_: iter(()))
    path = tmp_path / ("long" * 20 + ".toml")
    path.write_bytes(DEFAULT_FILE.read_bytes())
    monkeypatch.setenv(PREFIX + "MAPPING_FILE", str(path))
    assert call(monkeypatch, "check") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok   mapping file: {path}"
    assert lines[-1].startswith("     fix: start it, or")


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    "arguments",
    [["migrate"], ["sync", "1"], ["sync", "1", "--force", "--json"], ["status", "1", "--json"], ["pending", "--json"]],
    ids=" ".join,
)
def test_a_database_that_cannot_be_reached_is_exit_code_3_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cfo-sync: ")
    assert "Connection refused" in captured.err
    assert "Traceback" not in captured.err
    assert "hunter2" not in captured.err
