"""What the handlers share: who asks, and how answers are written and documented."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal, InvalidOperation
from typing import Annotated, Any, Final

import msgspec
from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from consumer.tokens import Actor

_NUMBERS: Final = msgspec.json.Encoder(decimal_format="number")
_EXACT: Final = Context(prec=400)
_BEARER: Final = HTTPBearer(
    auto_error=False, scheme_name="token", description="A token of CFO_SYNC_API_TOKEN. A viewer's may GET only."
)


def actor_of(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]) -> Actor:
    """Who asks; `Gate` has made sure of it, and without it this fails."""
    actor: Actor = request.state.actor
    return actor


Who = Annotated[Actor, Security(actor_of)]


def json_answer(body: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, status: int = 200) -> Response:
    """JSON; a Decimal becomes a number with all its digits."""
    return Response(_NUMBERS.encode(body), status, headers, "application/json")


def dollars(value: object) -> Decimal | None:
    """An amount with two decimals, or more if it has more. None for what is no finite number: JSON has no NaN."""
    try:
        amount = Decimal(str(value))
        if not amount.is_finite():
            return None
        cents = amount.quantize(Decimal("0.01"), context=_EXACT)
    except InvalidOperation:
        return None
    return cents if cents == amount else amount


def next_page(path: str, query: str, after: str | None) -> dict[str, str]:
    """RFC 8288: where the next page is, if there is one; the guide's object has no place for it."""
    if after is None:
        return {}
    parts = [part for part in (query, f"after={after}") if part]
    return {"Link": f'<{path}?{"&".join(parts)}>; rel="next"'}


def paged() -> dict[int | str, dict[str, Any]]:
    """The documented answer of a list."""
    link = {"description": 'The next page, `rel="next"`; absent on the last one.', "schema": {"type": "string"}}
    return {200: {"description": "One page.", "headers": {"Link": link}}}


def documented_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documented answers: these, and those that every guarded path has."""
    return {status: {"description": _MEANINGS[status]} for status in sorted({*statuses, 401, 403, 429, 500, 503})}


_MEANINGS: Final = {
    401: "No good token.",
    403: "The token's role does not allow it, or the request comes from another site.",
    404: "There is no such thing.",
    409: "Its state does not allow it.",
    413: "The body is too large.",
    422: "Something is not valid: which field, what was found, what is allowed.",
    429: "Too many wrong tokens came from the client's address.",
    500: "An error that nobody foresaw.",
    503: "Not now: try again after the seconds of Retry-After.",
}
