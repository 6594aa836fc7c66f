"""The command line's exit codes and messages, where no server is needed: 0 fine, 2 usage or settings, 3 unavailable."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from consumer import cli
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
    assert captured.err == "cfo-sync: CFO_SYNC_INVOICE_DSN: is not set\n"
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
