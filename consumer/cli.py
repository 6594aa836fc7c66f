"""The command line: reads the settings, builds what a command needs, says what happened. The composition root.

Exit codes: 0 fine, 1 found something, 2 usage or settings, 3 unavailable.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from consumer import cli_dlq, cli_reconcile
from consumer.console import (
    FOUND_SOMETHING,
    UNAVAILABLE,
    USAGE,
    AsJson,
    Commands,
    InvoiceId,
    complain,
    fail,
    load_settings,
    out,
    print_json,
    say,
    user_name,
)
from consumer.faults import Outage

app = typer.Typer(
    name="cfo-sync",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Books every paid crypto invoice as one CFO revenue transaction. Settings: CFO_SYNC_* variables or .env.",
)
topics_app = typer.Typer(no_args_is_help=True, help="Kafka topics.")
app.add_typer(topics_app, name="topics")
app.add_typer(cli_dlq.app, name="dlq")
app.command()(cli_reconcile.reconcile)


def _version(asked: bool) -> None:
    if asked:
        from consumer.pipeline import VERSION

        typer.echo(f"cfo-sync {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command()
def run() -> None:
    """Consume paid invoices until stopped (SIGTERM finishes the batch, a second signal leaves at once)."""
    from consumer import running

    running.run(load_settings())


@app.command()
def api() -> None:
    """Serve the HTTP API, /healthz, /readyz and /metrics, and watch the pipeline, until stopped."""
    from consumer import serving

    serving.serve(load_settings())


@app.command()
def migrate() -> None:
    """Create or update our tables, views and function in the invoice database. Safe to run again."""
    from consumer import migrations

    applied = migrations.migrate(load_settings().invoice_dsn.get_secret_value())
    for name in applied:
        say(f"applied {name}")
    if not applied:
        out().print("nothing to do, all migrations are applied")


@topics_app.command("create")
def topics_create(
    partitions: Annotated[
        int, typer.Option(metavar="N", min=1, help="Partitions of the source topic, if it is new.")
    ] = 8,
) -> None:
    """Create the topics that are missing: the source topic, three retry topics, dead letters, replay."""
    from consumer import broker, topics

    settings = load_settings()
    admin = broker.make_admin(settings, _kafka_log())
    existing = topics.describe(admin)
    source_bytes = topics.max_message_bytes(admin, settings.source_topic) if settings.source_topic in existing else None
    plans = topics.plan(settings, existing, source_bytes or topics.DEFAULT_MAX_MESSAGE_BYTES, partitions)
    created = topics.create(admin, plans, existing)
    for plan in plans:
        state = "created" if plan.name in created else "exists"
        say(f"{state:8} {plan.name}")


@app.command()
def check(
    as_json: AsJson = False,
    api: Annotated[
        bool, typer.Option("--api", help="Also the privileges that `api` and the operators' commands need.")
    ] = False,
) -> None:
    """Look at everything that `run` needs, and say how to mend what is wrong.

    Exit code 1 if anything is, also if a database or the brokers are down.
    """
    from consumer import checks

    findings = checks.check(load_settings(), _kafka_log(), operators=api)
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            say(f"{'ok  ' if finding.good else 'BAD '} {finding.what}: {finding.found}")
            if finding.fix:
                say(f"     fix: {finding.fix}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(FOUND_SOMETHING)


@app.command()
def sync(
    invoice_id: InvoiceId,
    force: Annotated[bool, typer.Option("--force", help="Also if its retries are used up; counts anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sync one invoice now. Exit code 1 if it was not booked."""
    from consumer.service import CFOSyncService

    with CFOSyncService(load_settings()) as service:
        answer = service.sync_invoice_to_cfo(invoice_id, force_retry=force)
        row = service.status(invoice_id) if answer["success"] else None
    if as_json:
        print_json(answer)
    elif answer["success"]:
        # A ledger whose key is no number is known by its Identifier.
        key = answer["cfo_transaction_id"] or (row or {}).get("cfo_identifier")
        say(f"invoice {invoice_id} is booked as transaction {key}")
    else:
        complain(f"invoice {invoice_id} was not booked: {answer['error']}")
    if not answer["success"]:
        raise typer.Exit(FOUND_SOMETHING)


@app.command()
def status(invoice_id: InvoiceId, as_json: AsJson = False) -> None:
    """Show how an invoice stands. Exit code 1 if there is no such invoice."""
    from consumer import invoice_views
    from consumer.service import CFOSyncService

    with CFOSyncService(load_settings()) as service:
        row = service.status(invoice_id)
    if row is None:
        complain(f"there is no invoice {invoice_id}")
        raise typer.Exit(FOUND_SOMETHING)
    if as_json:
        print_json(row)
    else:
        invoice_views.print_status(row)


@app.command()
def pending(
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Invoices shown.")] = 100,
    after: Annotated[int, typer.Option(metavar="INVOICE_ID", min=0, help="Only invoices with a higher id.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List paid invoices that are not booked yet, and failed ones. Exit code 1 if there are any."""
    from consumer import invoice_views, status_store
    from consumer.service import CFOSyncService

    with CFOSyncService(load_settings()) as service:
        count, rows = service.pending(after=after, limit=limit)
        counts = {} if as_json else service.read(status_store.count_pending_by_status)
    if as_json:
        print_json({"count": count, "invoices": rows})
    else:
        invoice_views.print_pending(rows, counts, after=after)
    if count:
        raise typer.Exit(FOUND_SOMETHING)


@app.command()
def remap(
    invoice_id: InvoiceId,
    entity: Annotated[str, typer.Option(metavar="NAME", help="The entity it belongs to.")],
    business_unit: Annotated[
        str | None, typer.Option(metavar="NAME", help="The business unit; without it, it stays.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who decided; without it, the user of this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correct the entity of a booked invoice: its transaction and its mapping row. Exit code 1 if it was refused."""
    from consumer.service import CFOSyncService

    for option, value in (("--entity", entity), ("--business-unit", business_unit)):
        if value is not None and not value.strip():
            raise typer.BadParameter("write a name", param_hint=option)
    with CFOSyncService(load_settings()) as service:
        answer = service.remap(invoice_id, entity=entity, business_unit=business_unit, by=by or user_name())
    if as_json:
        print_json(answer)
    elif answer["success"]:
        old, new = answer["old"], answer["new"]
        for name in new:
            say(f"invoice {invoice_id}: {name.replace('_', ' ')} {old[name]!r} → {new[name]!r}")
    else:
        complain(f"invoice {invoice_id} was not remapped: {answer['error']}")
    if not answer["success"]:
        raise typer.Exit(FOUND_SOMETHING)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Afterwards leave a consumer and the console running, until Ctrl-C.")
    ] = False,
) -> None:
    """Play the guide's story on the configured stack, and prove each promise. Only on the reference schema."""
    from consumer import demo as story

    settings = load_settings()
    holds = story.play(settings, out())
    if keep:
        story.keep(settings, out())
    if not holds:
        raise typer.Exit(FOUND_SOMETHING)


def main() -> NoReturn:
    """Entry point of `cfo-sync` and `python -m consumer`. No traceback reaches the user."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        fail(*known)
    sys.exit(0)


def _known(error: Exception) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None for one that no command should raise."""
    import psycopg
    from confluent_kafka import KafkaException

    from consumer.mapping import MappingError
    from consumer.migrations import MigrationError
    from consumer.settings import SettingsError

    match error:
        case SettingsError() | MappingError():
            return str(error), USAGE
        case Outage():
            return error.message, UNAVAILABLE
        case MigrationError():
            return str(error), UNAVAILABLE
        case psycopg.Error():
            return error.diag.message_primary or str(error).strip(), UNAVAILABLE
        case KafkaException():
            return f"Kafka: {error.args[0].str()}", UNAVAILABLE
    return None


def _kafka_log() -> Any:
    import logging

    return logging.getLogger("kafka")
