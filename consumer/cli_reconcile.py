"""`cfo-sync reconcile`: prove that invoices and ledger agree, and mend what can be mended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from consumer.console import AsJson, load_settings, user_name


def reconcile(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what is dated since then: 2025-10-01, UTC.")
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the differences as CSV.")] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Differences shown in the report.")] = 20,
    repair: Annotated[bool, typer.Option("--repair", help="Show what can be mended, ask, and mend it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: do not ask.")] = False,
    acknowledge: Annotated[
        int | None, typer.Option(metavar="INVOICE_ID", min=1, max=2**31 - 1, help="Accept what differs, as it is.")
    ] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="With --acknowledge: why.")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who decided; without it, the user of this machine.")
    ] = None,
) -> None:
    """Compare every invoice with the ledger, and the ledger with the invoices. Exit code 1 if something differs."""
    moment = _parse_since(since)
    if as_json and as_csv:
        raise typer.BadParameter("--json or --csv, not both")
    if yes and not repair:
        raise typer.BadParameter("--yes goes with --repair")
    if (acknowledge is None) != (reason is None) or (reason is not None and not reason.strip()):
        raise typer.BadParameter("--acknowledge INVOICE_ID and --reason TEXT go together")
    if acknowledge is not None and (repair or as_csv or since):
        raise typer.BadParameter("--acknowledge goes with --reason, --by and --json only")
    from consumer import reconcile_command

    settings = load_settings()
    who = by or user_name()
    if acknowledge is not None and reason is not None:
        reconcile_command.acknowledge(settings, acknowledge, reason.strip(), who, as_json=as_json)
    else:
        reconcile_command.compare(
            settings, moment, who, limit=limit, as_json=as_json, as_csv=as_csv, repair=repair, yes=yes
        )


def _parse_since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("--since takes a day or a time like 2025-10-01 or 2025-10-01T12:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
