"""What the commands share: printing, exit codes, settings.

This, `cli` and `cli_*` are loaded for every `--help`: what takes long to import is imported where it is used.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from consumer.texts import printable, utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from consumer.settings import Settings

FOUND_SOMETHING: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# Hidden: the usage line names an argument, and the list below it would add nothing but Python's name of its type.
InvoiceId = Annotated[int, typer.Argument(metavar="INVOICE_ID", min=1, max=2**31 - 1, hidden=True)]


class Commands(TyperGroup):
    """The root of the commands; says of a wrong value only what is wrong with it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # the validator's own words
            raise


@cache
def out() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console()


@cache
def err() -> Console:
    """Standard error."""
    from rich.console import Console

    return Console(stderr=True)


def load_settings() -> Settings:
    """Settings from the environment, with logging set up as they say. Raises `SettingsError`."""
    from consumer import logs
    from consumer import settings as settings_module

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
    out().print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print a line to standard error, as it is."""
    err().print(text, highlight=False, markup=False, soft_wrap=True)


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


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """A name and its value a line; what is None is left out. Texts may come from anybody: nothing in them acts."""
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        if value is not None:
            say(f"  {printable(name):{width}}  {printable(_shown(value))}")


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return utc_text(value)
    return f"{value:,}" if isinstance(value, Decimal) else value


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """The heads, and a line for each row, in columns that nothing cuts; those named in `right` stand right."""
    from rich.cells import cell_len

    lines = [heads, *rows]
    widths = [max(cell_len(line[number]) for line in lines) for number in range(len(heads))]

    def aligned(head: str, text: str, width: int) -> str:
        blanks = " " * (width - cell_len(text))
        return blanks + text if head in right else text + blanks

    return [
        "  ".join(aligned(head, text, width) for head, text, width in zip(heads, line, widths, strict=True)).rstrip()
        for line in lines
    ]
