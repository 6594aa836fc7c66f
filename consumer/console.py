"""What the commands share: printing, exit codes, settings."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumer import logs
from consumer import settings as settings_module
from consumer.settings import Settings
from consumer.texts import printable, utc_text

FOUND_SOMETHING: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3

out: Final = Console()
err: Final = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
InvoiceId = Annotated[int, typer.Argument(min=1, max=2**31 - 1, help="Id of the invoice (crypto_invoices.id).")]


def load_settings() -> Settings:
    """Settings from the environment, with logging set up as they say. Raises `SettingsError`."""
    settings = settings_module.load()
    logs.configure(settings.log_level, settings.log_format)
    return settings


def user_name() -> str:
    """Who runs this command, for the record: the machine's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return "unknown"


def say(text: str) -> None:
    """Print a line to standard output, as it is: nothing in it is markup."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a line to standard error, as it is."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, a line each, and leave with this exit code."""
    for line in message.splitlines():
        complain(f"cfo-sync: {line}")
    sys.exit(code)


def print_json(value: object) -> None:
    """Print indented JSON; amounts are strings with two decimals, times ISO 8601 in UTC.

    In ASCII: a terminal finds no control characters in it.
    """
    typer.echo(json.dumps(value, default=_plain, indent=2))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return utc_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value).__name__)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print these columns of the rows; numbers stand right. Texts may come from anybody: nothing in them acts."""
    table = Table()
    for name in columns:
        right = any(isinstance(row.get(name), int | Decimal) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text("" if row.get(name) is None else printable(row[name])) for name in columns))
    out.print(table)
