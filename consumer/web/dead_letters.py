"""The dead letters: found by the command line's filters, looked at, replayed and given up, one or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from consumer import dlq_arguments
from consumer.api_models import MAX_INVOICE_ID, MAX_OFFSET, MAX_PARTITION
from consumer.deadletters import STATES, Filter, Place
from consumer.dlq import DeadLetterQueue
from consumer.problems import Problem
from consumer.selections import Discarded, Replayed, Selection
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.web import readings
from consumer.web.desk import Desk, Notice

T = TypeVar("T")

PAGE: Final = 50
_LONGEST: Final = 200
_LONGEST_REASON: Final = 500
_NAMES: Final = ("state", "code", "kind", "text", "invoice", "since", "until", "partition", "offsets")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form or address asks for; `given` is how it was written, `wrong` says by field what cannot be read."""

    wanted: Filter
    given: Mapping[str, str]
    wrong: Mapping[str, str] = field(default_factory=dict)


def add(app: FastAPI, desk: Desk, pool: Pool[CFOSyncService], queues: Pool[DeadLetterQueue]) -> None:
    """Add them to the app."""

    @app.get("/dead-letters", include_in_schema=False)
    def dead_letters(request: Request) -> Response:
        desk.visitor(request)
        asked = read_filter(request.query_params)
        entries = []
        if not asked.wrong:
            with queues.lend() as letters:
                entries = letters.entries(asked.wanted)
        first = _whole(request.query_params.get("from", "0"), 10**9) or 0
        return desk.page(
            request, "dead_letters.html", asked=asked, entries=entries[first : first + PAGE], total=len(entries),
            first=first, page=PAGE, states=(*STATES, "all"),
        )  # fmt: skip

    @app.get("/dead-letters/preview", include_in_schema=False)
    def preview(request: Request) -> Response:
        desk.visitor(request)
        query = request.query_params
        asked = read_filter(query)
        if asked.wrong:
            return RedirectResponse(f"/dead-letters?{request.url.query}", 303)
        asked, is_replay, force = _fixed(asked), query.get("act") != "discard", query.get("force") == "1"
        with queues.lend() as letters:
            selection = _select(letters, asked, is_replay=is_replay, force=force)
        return _preview(request, asked, selection, is_replay=is_replay, force=force)

    @app.post("/dead-letters/replay", include_in_schema=False)
    def replay_many(request: Request) -> Response:
        actor, fields = desk.acting(request)
        asked = _fixed(_need(read_filter(fields)))
        force, reason = fields.get("force") == "1", _reason(fields)
        request.state.details = {"filter": dict(asked.given), "force": force}
        with queues.lend() as letters:
            selection = _select(letters, asked, is_replay=True, force=force)
            if fields.get("seen") != _mark(selection):
                return _preview(request, asked, selection, is_replay=True, force=force, is_other=True)
            done = letters.replay(_these(asked, selection), by=actor.name, reason=reason or None, force=force)
        request.state.outcome = f"replayed {done.published + done.settled}"
        return desk.page(request, "dead_letters_done.html", replayed=done, discarded=None, asked=asked)

    @app.post("/dead-letters/discard", include_in_schema=False)
    def discard_many(request: Request) -> Response:
        actor, fields = desk.acting(request)
        asked, reason = _fixed(_need(read_filter(fields))), _needed_reason(fields)
        request.state.details = {"filter": dict(asked.given), "reason": reason}
        with queues.lend() as letters:
            selection = _select(letters, asked, is_replay=False, force=False)
            if fields.get("seen") != _mark(selection):
                return _preview(request, asked, selection, is_replay=False, force=False, is_other=True)
            done = letters.discard(_these(asked, selection), by=actor.name, reason=reason)
        request.state.outcome = f"discarded {done.discarded}"
        return desk.page(request, "dead_letters_done.html", replayed=None, discarded=done, asked=asked)

    @app.get("/dead-letters/{partition}/{offset}", include_in_schema=False)
    def dead_letter(request: Request, partition: str, offset: str) -> Response:
        desk.visitor(request)
        return _page(request, _place(partition, offset))

    @app.post("/dead-letters/{partition}/{offset}/replay", include_in_schema=False)
    def replay(request: Request, partition: str, offset: str) -> Response:
        actor, fields = desk.acting(request)
        place, force = _place(partition, offset), fields.get("force") == "1"
        request.state.details = {"dead_letter": str(place), "force": force}
        with queues.lend() as letters:
            done = letters.replay(_only(place), by=actor.name, reason=_reason(fields) or None, force=force)
        request.state.outcome = "replayed" if done.published + done.settled else "dead-letter-refused"
        return _page(request, place, _of_replay(done))

    @app.post("/dead-letters/{partition}/{offset}/discard", include_in_schema=False)
    def discard(request: Request, partition: str, offset: str) -> Response:
        actor, fields = desk.acting(request)
        place, reason = _place(partition, offset), _needed_reason(fields)
        request.state.details = {"dead_letter": str(place), "reason": reason}
        with queues.lend() as letters:
            done = letters.discard(_only(place), by=actor.name, reason=reason)
        request.state.outcome = "discarded" if done.discarded else "dead-letter-refused"
        return _page(request, place, _of_discard(done))

    @app.get("/dead-letters/{action}", include_in_schema=False)
    @app.get("/dead-letters/{partition}/{offset}/{action}", include_in_schema=False)
    def reload(request: Request, action: str, partition: str = "", offset: str = "") -> Response:
        desk.visitor(request)
        if action not in ("replay", "discard"):
            raise Problem(404, "not-found", "there is no such path")
        return RedirectResponse(
            f"/dead-letters/{_place(partition, offset)}".replace(":", "/") if offset else "/dead-letters", 303
        )

    def _preview(
        request: Request, asked: Asked, selection: Selection, *, is_replay: bool, force: bool, is_other: bool = False
    ) -> Response:
        """What an action would do. `is_other`: than was looked at, so that nothing was done."""
        if is_other:
            request.state.outcome = "selection-changed"
        return desk.page(
            request, "dead_letters_preview.html", status=409 if is_other else 200, asked=asked, selection=selection,
            seen=_mark(selection), is_replay=is_replay, force=force, is_other=is_other,
        )  # fmt: skip

    def _page(request: Request, place: Place, notice: Notice | None = None) -> Response:
        with queues.lend() as letters:
            detail = letters.show(place.partition, place.offset)
        if detail is None:
            raise Problem(
                404, "dead-letter-unknown", f"No dead letter stands at {place}: the topic may have dropped it."
            )
        failure_id = detail.entry.letter.failure_id
        with pool.lend() as service:
            actions = service.read(lambda connection: readings.actions_of_failure(connection, failure_id))
        status = 200 if notice is None or notice.good else 409
        return desk.page(request, "dead_letter.html", status=status, detail=detail, actions=actions, notice=notice)


def read_filter(asked: Mapping[str, str]) -> Asked:
    """The filter that the fields of a form ask for; without any, the open ones."""
    given = {name: value for name in _NAMES if (value := asked.get(name, "").replace("\0", "").strip()[:_LONGEST])}
    wrong: dict[str, str] = {}

    def parsed(name: str, parse: Callable[[str], T]) -> T | None:
        try:
            return parse(given[name]) if name in given else None
        except ValueError as error:
            wrong[name] = str(error)
            return None

    now = datetime.now(UTC)
    state = given.get("state", "open")
    partition, first, last = parsed("offsets", dlq_arguments.parse_offsets) or (None, None, None)
    named = parsed("partition", lambda text: _number(text, MAX_PARTITION))
    if named is not None and partition is not None and named != partition:
        wrong["offsets"] = "another partition than the one beside it"
    wanted = Filter(
        state="all" if state == "all" else next((each for each in STATES if each == state), "open"),
        error_codes=frozenset(given.get("code", "").replace(",", " ").split()),
        kind=given.get("kind"),
        text=given.get("text"),
        invoice_id=parsed("invoice", lambda text: _number(text, MAX_INVOICE_ID)),
        since=parsed("since", lambda text: dlq_arguments.parse_moment(text, now)),
        until=parsed("until", lambda text: dlq_arguments.parse_moment(text, now)),
        partition=partition if named is None else named,
        first_offset=first,
        last_offset=last,
    )
    return Asked(wanted, given, wrong)


def _fixed(asked: Asked) -> Asked:
    """The same filter, an hour later too: what is dead-lettered from now on was not looked at, and is not meant."""
    times = {"since": asked.wanted.since, "until": asked.wanted.until or datetime.now(UTC)}
    given = {name: at.isoformat() for name, at in times.items() if at is not None}
    return read_filter({**asked.given, **given})


def _select(letters: DeadLetterQueue, asked: Asked, *, is_replay: bool, force: bool) -> Selection:
    return letters.select(asked.wanted, force=force) if is_replay else letters.select_discard(asked.wanted)


def _mark(selection: Selection) -> str:
    """Tells one selection from another, and from the same one about which something was done."""
    lines = (f"{each.place} {each.letter.failure_id} {each.state} {each.replays}\n" for each in selection.entries)
    return sha256("".join(lines).encode("utf-8", "replace")).hexdigest()


def _these(asked: Asked, selection: Selection) -> Filter:
    """What was selected and nothing else, whatever came between."""
    return replace(asked.wanted, places=frozenset(entry.place for entry in selection.entries))


def _need(asked: Asked) -> Asked:
    """A filter that can be read: what cannot must not be taken for everything. Raises `Problem`."""
    for name, wrong in asked.wrong.items():
        raise Problem(422, "validation", f"{name}: {wrong}")
    return asked


def _number(text: str, most: int) -> int:
    number = _whole(text, most)
    if number is None:
        raise ValueError(f"write a whole number up to {most}")
    return number


def _whole(text: str, most: int) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= most else None


def _place(partition: str, offset: str) -> Place:
    first, second = _whole(partition, MAX_PARTITION), _whole(offset, MAX_OFFSET)
    if first is None or second is None:
        raise Problem(404, "not-found", "there is no such path")
    return Place(first, second)


def _only(place: Place) -> Filter:
    return Filter(state="all", places=frozenset({place}))


def _reason(fields: Mapping[str, str]) -> str:
    return " ".join(fields.get("reason", "").split())[:_LONGEST_REASON]


def _needed_reason(fields: Mapping[str, str]) -> str:
    reason = _reason(fields)
    if not reason:
        raise Problem(422, "validation", "Write why: the reason is kept with the record.")
    return reason


def _of_replay(done: Replayed) -> Notice:
    if done.published + done.settled:
        return Notice(
            True, "Replayed: the consumer tries it again now. What comes of it is shown here when it is known."
        )
    if done.failed:
        return Notice(False, f"It could not be published: {next(iter(done.failed))}.")
    return Notice(False, f"Not replayed: {_first(done.excluded)}.")


def _of_discard(done: Discarded) -> Notice:
    if done.discarded:
        return Notice(True, "Discarded: it is not to be booked. That is final.")
    return Notice(False, f"Not discarded: {_first(done.excluded)}.")


def _first(reasons: Mapping[str, Any]) -> str:
    return next(iter(reasons), "somebody else is busy with it")
