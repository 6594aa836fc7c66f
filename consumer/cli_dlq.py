"""`cfo-sync dlq`: look at dead letters, replay or discard them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import typer

from consumer.console import FOUND_SOMETHING, AsJson, complain, err, load_settings, print_json, say, user_name
from consumer.faults import Outage

if TYPE_CHECKING:
    from consumer.deadletters import Filter
    from consumer.dlq import DeadLetterQueue
    from consumer.selections import Replayed, Selection

app = typer.Typer(no_args_is_help=True, help="Dead letters: list, show, replay, discard, count.")

_INTERRUPTED: Final = 130

Places = Annotated[list[str] | None, typer.Argument(metavar="P:O", hidden=True)]
ErrorCode = Annotated[
    list[str] | None, typer.Option("--error-code", metavar="CODE", help="This error code; may be repeated.")
]
Kind = Annotated[
    Literal["record", "transient"] | None, typer.Option(help="Never will work as it is, or retries used up.")
]
InMessage = Annotated[
    str | None, typer.Option("--text", metavar="WORDS", help="Occurs in the error message, whatever its case.")
]
Invoice = Annotated[int | None, typer.Option(metavar="INVOICE_ID", min=1, max=2**31 - 1, help="About this invoice.")]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Dead-lettered at this time or later: 2025-10-01T12:00Z, or 2h ago.")
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Dead-lettered before this time.")]
Partition = Annotated[int | None, typer.Option(metavar="N", min=0, max=2**31 - 1, help="In this partition.")]
Offsets = Annotated[
    str | None, typer.Option(metavar="[P:]FIRST-LAST", help="Offsets, of one partition or of all; LAST included.")
]
StateName: TypeAlias = Literal["open", "replayed", "resolved", "discarded", "all"]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who does it; without it, the user of this machine.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it, only tell what would be done.")]


@app.command("list")
def list_(
    error_code: ErrorCode = None,
    kind: Kind = None,
    text: InMessage = None,
    invoice: Invoice = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    offsets: Offsets = None,
    state: Annotated[StateName, typer.Option(help="How they stand.")] = "open",
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The oldest so many; without it, 100, or all with --json and --csv."),
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List dead letters, the oldest first. Exit code 1 if an open one matches."""
    from consumer import dlq_views

    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    wanted = _filter(None, error_code, kind, text, invoice, since, until, partition, offsets, state)
    with _queue() as queue:
        found = queue.entries(wanted)
    shown = found[: limit or (None if as_json or as_csv else 100)]
    if as_json:
        print_json({"count": len(found), "dead_letters": [entry.as_dict() for entry in shown]})
    elif as_csv:
        dlq_views.print_csv(shown)
    else:
        if shown:
            dlq_views.print_entries(shown, with_state=state != "open")
        letters = f"{'' if state == 'all' else f'{state} '}dead letter{'' if len(found) == 1 else 's'}"
        say(f"{len(found):,} {letters}" + (f", the oldest {len(shown)} shown" if len(shown) < len(found) else ""))
    if any(entry.state == "open" for entry in found):
        raise typer.Exit(FOUND_SOMETHING)


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="P:O", hidden=True)],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter, its invoice, and what a replay would do. P:O is its partition and offset, like 3:120.

    Exit code 1 if there is no such record.
    """
    from consumer import dlq_arguments, dlq_views

    where = _parsed("P:O", dlq_arguments.parse_place, place)
    with _queue() as queue:
        detail = queue.show(where.partition, where.offset)
    if detail is None:
        complain(f"there is no dead letter at {where}")
        raise typer.Exit(FOUND_SOMETHING)
    if as_json:
        print_json(detail.as_dict())
    else:
        dlq_views.print_detail(detail)


@app.command()
def replay(
    places: Places = None,
    error_code: ErrorCode = None,
    kind: Kind = None,
    text: InMessage = None,
    invoice: Invoice = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    offsets: Offsets = None,
    state: Annotated[
        StateName | None, typer.Option(help="How they stand: open, unless single records are named.")
    ] = None,
    yes: Yes = False,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0.01, max=100_000, help="Records per second at most.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also after five replays, or if replayed, resolved or discarded.")
    ] = False,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for the record.")] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Put dead letters on the replay topic, to be tried from anew. Tells what it would do; does it with --yes.

    P:O names single records by partition and offset, like 3:120.

    Safe to interrupt and to run again: no record is replayed twice. Exit code 1 if a named record is left alone, Kafka
    refuses one, or --yes finds nothing to do.
    """
    from consumer import dlq_views

    wanted = _filter(places, error_code, kind, text, invoice, since, until, partition, offsets, state)
    with _queue() as queue:
        if not yes:
            selection = queue.select(wanted, force=force)
            if as_json:
                print_json({"dry_run": True} | selection.as_dict())
            else:
                _tell(selection, wanted, "replayed")
            _leave(places, selection.excluded)
            return
        done = _replay(queue, wanted, by or user_name(), reason, force, rate)
    if as_json:
        print_json({"dry_run": False} | done.as_dict())
    elif not done.selected and not done.excluded:
        complain(_no_match(wanted))
    else:
        say(f"{done.published} replayed")
        if done.settled:
            say(f"{done.settled} were replayed already, by a replay that was interrupted")
        dlq_views.print_reasons("left alone", done.excluded)
        dlq_views.print_reasons("refused by Kafka", done.failed)
    if done.not_reached:
        complain(f"stopped: {done.not_reached} of {done.selected} are left; run the same command again to go on")
        raise typer.Exit(_INTERRUPTED)
    if done.failed or not done.published + done.settled:
        raise typer.Exit(FOUND_SOMETHING)
    _leave(places, done.excluded)


@app.command()
def discard(
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it shall not be booked, for the record.")],
    places: Places = None,
    error_code: ErrorCode = None,
    kind: Kind = None,
    text: InMessage = None,
    invoice: Invoice = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    offsets: Offsets = None,
    state: Annotated[
        Literal["open", "replayed", "all"] | None,
        typer.Option(help="How they stand: open, unless single records are named."),
    ] = None,
    yes: Yes = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Mark dead letters as not to be booked; nothing is deleted. Tells what it would do; does it with --yes.

    P:O names single records by partition and offset, like 3:120.

    Exit code 1 if a named record is left alone, or --yes finds nothing to do.
    """
    from consumer import dlq_views

    if not reason.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    wanted = _filter(places, error_code, kind, text, invoice, since, until, partition, offsets, state)
    with _queue() as queue:
        if not yes:
            selection = queue.select_discard(wanted)
            if as_json:
                print_json({"dry_run": True} | selection.as_dict())
            else:
                _tell(selection, wanted, "discarded")
            _leave(places, selection.excluded)
            return
        done = queue.discard(wanted, by=by or user_name(), reason=reason)
    if as_json:
        print_json({"dry_run": False} | done.as_dict())
    elif not done.discarded and not done.excluded:
        complain(_no_match(wanted))
    else:
        say(f"{done.discarded} discarded")
        dlq_views.print_reasons("left alone", done.excluded)
    if not done.discarded:
        raise typer.Exit(FOUND_SOMETHING)
    _leave(places, done.excluded)


@app.command()
def stats(as_json: AsJson = False) -> None:
    """Count dead letters. Exit code 1 if any is open."""
    from consumer import dlq_views

    with _queue() as queue:
        found = queue.stats()
    if as_json:
        print_json(found.as_dict())
    else:
        dlq_views.print_stats(found)
    if found.by_state["open"]:
        raise typer.Exit(FOUND_SOMETHING)


@contextmanager
def _queue() -> Iterator[DeadLetterQueue]:
    from consumer.dlq import DeadLetterQueue
    from consumer.service import CFOSyncService

    settings = load_settings()
    # An outage is told once, in a line, not at every try of the client.
    log = logging.getLogger("kafka")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with CFOSyncService(settings) as service, DeadLetterQueue(settings, service) as queue:
            yield queue
    finally:
        log.setLevel(level)


def _filter(
    places: list[str] | None,
    error_codes: list[str] | None,
    kind: str | None,
    text: str | None,
    invoice_id: int | None,
    since: str | None,
    until: str | None,
    partition: int | None,
    offsets: str | None,
    state: StateName | None,
) -> Filter:
    from consumer.deadletters import Filter
    from consumer.dlq_arguments import parse_moment, parse_offsets, parse_place

    now = datetime.now(UTC)
    first = last = None
    if offsets is not None:
        named, first, last = _parsed("--offsets", parse_offsets, offsets)
        if named is not None and partition not in (None, named):
            raise typer.BadParameter(f"--offsets names partition {named}, --partition says {partition}")
        partition = named if named is not None else partition
    from_, to = (
        None if moment is None else _parsed(name, lambda text: parse_moment(text, now), moment)
        for name, moment in (("--since", since), ("--until", until))
    )
    if from_ is not None and to is not None and from_ >= to:
        raise typer.BadParameter(f"--since, {from_:%Y-%m-%dT%H:%M:%SZ}, is not before --until, {to:%Y-%m-%dT%H:%M:%SZ}")
    return Filter(
        state=state or ("all" if places else "open"),
        places=frozenset(_parsed("P:O", parse_place, place) for place in places or ()),
        error_codes=frozenset(error_codes or ()),
        kind=kind,
        text=text,
        invoice_id=invoice_id,
        since=from_,
        until=to,
        partition=partition,
        first_offset=first,
        last_offset=last,
    )


def _parsed(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=name) from None


def _tell(selection: Selection, wanted: Filter, verb: str) -> None:
    """What would be done."""
    from consumer import dlq_views

    if not selection.entries and not selection.excluded:
        say(_no_match(wanted))
        return
    dlq_views.print_selection(selection, verb)
    if selection.entries:
        say("nothing was done; --yes does it")


def _no_match(wanted: Filter) -> str:
    return f"no {'' if wanted.state == 'all' else f'{wanted.state} '}dead letter matches"


def _leave(places: list[str] | None, excluded: object) -> None:
    """Records that were named and left alone are something found."""
    if places and excluded:
        raise typer.Exit(FOUND_SOMETHING)


def _replay(
    queue: DeadLetterQueue, wanted: Filter, by: str, reason: str | None, force: bool, rate: float | None
) -> Replayed:
    """Replay with a progress bar; a signal ends it after the chunk in hand, a second one at once."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def asked(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    reached = (0, 0)
    with Progress(*columns, console=err(), disable=not err().is_terminal, transient=True) as bar:
        task = bar.add_task("replaying", total=None)

        def progress(done: int, total: int) -> None:
            nonlocal reached
            reached = (done, total)
            bar.update(task, completed=done, total=total)

        try:
            for number in before:
                signal.signal(number, asked)
            return queue.replay(wanted, by=by, reason=reason, force=force, rate=rate, progress=progress, stop=stop)
        except Outage:
            bar.stop()
            done, total = reached
            if total:
                complain(f"{done} of {total} are done; run the same command again to go on")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
