"""The dead-letter endpoints: list, replay, discard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from consumer import api_models as models
from consumer.api_answers import Who, documented_problems, json_answer, next_page, paged
from consumer.deadletters import Entry, Filter, Place
from consumer.dlq import DeadLetterQueue
from consumer.problems import Problem
from consumer.service_pool import Pool


def add_dead_letters(app: FastAPI, queues: Pool[DeadLetterQueue]) -> None:
    """Add them to the app."""

    @app.get(
        "/api/cfo-sync/dlq",
        operation_id="dead-letters",
        summary="Dead letters and how they stand, oldest first",
        response_model=models.DeadLetters,
        responses=paged() | documented_problems(422),
        tags=["dead letters"],
    )
    def dead_letters(request: Request, page: Annotated[models.DeadLetterPage, Query()], _: Who) -> Response:
        with queues.lend() as letters:
            entries = letters.entries(page.wanted())
        after = page.after and tuple(int(part) for part in page.after.split("-"))
        left = [entry for entry in entries if not after or _cursor(entry) > after]
        shown = left[: page.limit]
        following = "-".join(map(str, _cursor(shown[-1]))) if len(left) > page.limit else None
        query = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "after"])
        body = {"count": len(entries), "entries": [entry.as_dict() for entry in shown]}
        return json_answer(body, next_page("/api/cfo-sync/dlq", query, following))

    @app.post(
        "/api/cfo-sync/dlq/{partition}/{offset}/replay",
        operation_id="replay-dead-letter",
        summary="Try one dead letter again",
        description="Publishes the original record to the replay topic, once; the consumer books it from there.",
        response_model=models.Replayed,
        response_description="It is on the replay topic.",
        responses=documented_problems(404, 409, 422),
        tags=["dead letters"],
    )
    def replay(
        request: Request,
        partition: models.Partition,
        offset: models.Offset,
        query: Annotated[models.ForceReplay, Query()],
        actor: Who,
    ) -> Response:
        place = Place(partition, offset)
        request.state.details = {"dead_letter": str(place), "force": query.force}
        with queues.lend() as letters:
            entry = _entry(letters, place)
            done = letters.replay(_only(place), by=actor.name, force=query.force) if entry else None
            entry = _entry(letters, place) or entry
        if entry is None or done is None:
            raise _no_letter(place)
        if not done.published + done.settled:
            if done.failed:
                reason = next(iter(done.failed))
                raise Problem(503, "publish", f"the record could not be published: {reason}", retry_after=30)
            raise _refused(place, "not replayed", done.excluded)
        request.state.outcome = "replayed"
        return json_answer({"replayed": True, "entry": entry.as_dict()})

    @app.post(
        "/api/cfo-sync/dlq/{partition}/{offset}/discard",
        operation_id="discard-dead-letter",
        summary="Give one dead letter up",
        description="It is not to be booked; that is final.",
        response_model=models.DiscardedLetter,
        response_description="It is discarded.",
        responses=documented_problems(404, 409, 413, 422),
        tags=["dead letters"],
    )
    def discard(
        request: Request, partition: models.Partition, offset: models.Offset, body: models.Discard, actor: Who
    ) -> Response:
        place = Place(partition, offset)
        request.state.details = {"dead_letter": str(place), "reason": body.reason}
        with queues.lend() as letters:
            entry = _entry(letters, place)
            done = letters.discard(_only(place), by=actor.name, reason=body.reason) if entry else None
            entry = _entry(letters, place) or entry
        if entry is None or done is None:
            raise _no_letter(place)
        if not done.discarded:
            raise _refused(place, "not discarded", done.excluded)
        request.state.outcome = "discarded"
        return json_answer({"discarded": True, "entry": entry.as_dict()})


def _only(place: Place) -> Filter:
    return Filter(state="all", places=frozenset({place}))


def _entry(letters: DeadLetterQueue, place: Place) -> Entry | None:
    return next(iter(letters.entries(_only(place))), None)


def _cursor(entry: Entry) -> tuple[int, int, int]:
    """Where an entry stands in the list's order: when it was dead-lettered (ms), then its place."""
    at = entry.letter.dead_lettered_at
    return round(at.timestamp() * 1000) if at is not None else 0, entry.partition, entry.offset


def _no_letter(place: Place) -> Problem:
    detail = f"no dead letter stands at {place}, or a newer one of the same failure has taken its place"
    return Problem(404, "dead-letter-unknown", detail)


def _refused(place: Place, what: str, excluded: Mapping[str, int]) -> Problem:
    reason = next(iter(excluded), "somebody else is busy with it")
    return Problem(
        409, "dead-letter-refused", f"{place} was {what}: {reason}", "The dead letter's state does not allow it"
    )
