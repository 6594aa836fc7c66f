"""What the API says when it cannot do what was asked: RFC 9457 problem details, one shape for every error.

`type` is a URN made from `code`, both stable; `title` belongs to the type, `detail` to the occurrence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumer import sessions
from consumer.faults import Outage
from consumer.service_pool import Busy
from consumer.sessions import Verdict

MEDIA_TYPE: Final = "application/problem+json"
URN: Final = "urn:cfo-sync:problem:"

TITLES: Final[Mapping[str, str]] = {
    "unauthorized": "A valid bearer token is needed",
    "too-many-attempts": "Too many wrong tokens",
    "forbidden": "The token's role does not allow this",
    "cross-site": "Requests from other sites are refused",
    "form-expired": "This form is not valid any more",
    "host-not-local": "Only requests to this machine's own names are answered",
    "not-found": "There is no such path",
    "method-not-allowed": "The path does not have this method",
    "request-too-large": "The request is too large",
    "request-too-slow": "The request took too long to arrive",
    "validation": "The request is not valid",
    "invoice-unknown": "There is no such invoice",
    "not-paid": "The invoice is not paid",
    "retries-used-up": "The invoice's retries are used up",
    "not-booked": "The invoice is not booked",
    "adopted": "The transaction was made by another hand",
    "dead-letter-unknown": "There is no such dead letter",
    "dead-letter-refused": "The dead letter's state does not allow it",
    "publish": "The record could not be published",
    "transaction-missing": "The transaction is gone from the ledger",
    "no-entity-column": "The ledger has no such column",
    "no-business-unit-column": "The ledger has no such column",
    "value-empty": "The value is not allowed",
    "value-too-long": "The value is not allowed",
    "value-invalid": "The value is not allowed",
    "no-reconciliation": "No reconciliation has run yet",
    "busy": "The server is busy",
    "stopping": "The server stops",
    "internal": "The server failed",
}
_INVOICE_FAULT: Final = "The invoice cannot be booked as it stands"
_INVOICE_LATER: Final = "The invoice cannot be booked now"
_OUTAGE: Final = "A dependency cannot be used"

# Faults that pass by themselves, as `faults.Transient` has them; see also `is_passing`.
PASSING: Final = frozenset({"row-locked", "client-not-there", "paid-at-not-there", "connection-breaks"})
_CONFLICTS: Final = frozenset({"not-paid", "retries-used-up", "not-booked", "adopted", "transaction-missing"})
_UNKNOWN: Final = frozenset({"invoice-unknown", "invoice-missing"})

# By the fault's code: which field is to be corrected, and what is allowed there.
_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(
        ("amount-missing", "amount-invalid", "amount-not-positive", "amount-not-cents"),
        ("amount_usd", "a number above 0, exact to the cent"),
    ),
    "paid-at-invalid": ("paid_at", "a time"),
    "client-missing": ("client_id", "the id of a client"),
    "invoice-number-missing": ("invoice_number", "a text that is not empty"),
    **dict.fromkeys(
        ("identifier-taken", "identifier-ambiguous", "transaction-taken"),
        ("invoice_number", "a number that no other invoice and no several transactions bear"),
    ),
    **dict.fromkeys(
        ("value-empty", "value-too-long", "value-invalid"),
        ("entity or business_unit", "1 to 255 characters, none of them a control character"),
    ),
    "no-entity-column": ("entity", "nothing: the ledger has no such column"),
    "no-business-unit-column": ("business_unit", "nothing: the ledger has no such column"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that is wrong."""

    field: str
    found: str
    allowed: str


@dataclass(eq=False)  # not frozen: Python notes the traceback on it
class Problem(Exception):
    """Raised, or made from another exception, and answered. `retry_after` in seconds."""

    status: int
    code: str
    detail: str
    title: str | None = None
    invoice_id: int | None = None
    errors: Sequence[FieldError] = ()
    retry_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> dict[str, Any]:
        """The members of the problem object, for the request to this path."""
        body: dict[str, Any] = {
            "type": URN + self.code,
            "title": self.title or TITLES.get(self.code, _INVOICE_FAULT),
            "status": self.status,
            "detail": _printable(self.detail),
            "instance": quote(path, safe="/:@!$&'()*+,;=~", errors="replace"),
            "code": self.code,
        }
        if self.invoice_id is not None:
            body["invoice_id"] = self.invoice_id
        if self.errors:
            body["errors"] = [
                {"field": each.field, "found": _printable(each.found), "allowed": each.allowed} for each in self.errors
            ]
        return body

    def response(self, path: str) -> Response:
        """The answer to the request to this path."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return Response(msgspec.json.encode(self.body(path)), self.status, headers, MEDIA_TYPE)


def of_refusal(answer: Mapping[str, Any]) -> Problem:
    """Why the service did not do it, from an answer whose `success` is false."""
    code, message, invoice_id = str(answer["error_code"]), str(answer["error"]), int(answer["invoice_id"])
    if code in _UNKNOWN:
        return Problem(404, "invoice-unknown", f"there is no invoice {invoice_id}", invoice_id=invoice_id)
    if code in _CONFLICTS:
        return Problem(409, code, message, invoice_id=invoice_id)
    if is_passing(code):
        wait = 5 if code == "row-locked" else 60
        return Problem(503, code, message, _INVOICE_LATER, invoice_id, retry_after=wait)
    name, allowed = _FIELDS.get(code, ("transaction", "what the ledger's columns, constraints and triggers accept"))
    return Problem(422, code, message, None, invoice_id, [FieldError(name, message, allowed)])


def is_passing(code: str) -> bool:
    """Whether an invoice with this fault may be booked later without anybody correcting it."""
    if code.startswith("sqlstate-"):
        state = code.removeprefix("sqlstate-").upper()
        for key in (state, state[:3], state[:2]):
            if key in sessions.SQLSTATES:
                return sessions.SQLSTATES[key].verdict is not Verdict.RECORD
        return True
    return code in PASSING


def of_exception(error: Exception) -> Problem:
    """The problem that an exception stands for; one that nobody foresaw tells nothing of the inside."""
    match error:
        case Problem():
            return error
        case Outage():
            # In one line: libpq's messages have several.
            return Problem(503, f"outage-{error.reason}", " ".join(error.message.split()), _OUTAGE, retry_after=30)
        case Busy():
            return Problem(503, "busy", "all connections are in use, try again in a moment", retry_after=1)
        case RequestValidationError():
            return Problem(
                422, "validation", "the request is not valid", errors=[_field_error(e) for e in error.errors()]
            )
        case HTTPException(status_code=404):
            return Problem(404, "not-found", "there is no such path")
        case HTTPException(status_code=405):
            return Problem(405, "method-not-allowed", "see Allow", headers=error.headers or {})
        case HTTPException(status_code=400):  # FastAPI's for a body that is no UTF-8, or nested too deeply
            wrong = FieldError("body", "something that cannot be read", "a JSON object")
            return Problem(422, "validation", "the request is not valid", errors=[wrong])
        case _:
            return Problem(500, "internal", "an error that nobody foresaw; the server's log has it")


Where = Literal["path", "query", "body", "header"]


def _field_error(error: Mapping[str, Any]) -> FieldError:
    where, *names = (str(part) for part in error["loc"])
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind == "json_invalid":
        return FieldError("body", "text that is no JSON", "a JSON object")
    name = ".".join([where, *names])
    if kind == "missing":
        return FieldError(name, "nothing", "it is required")
    if kind == "extra_forbidden":
        return FieldError(name, "a name that is not known", "leave it away, or correct its name")
    return FieldError(name, _shown(error.get("input")), _allowed(str(error["msg"]), kind, context))


def _allowed(message: str, kind: str, context: Mapping[str, Any]) -> str:
    if "error" in context:  # a validator of ours says it
        return str(context["error"])
    if kind in ("model_attributes_type", "dict_type", "model_type"):
        return "a JSON object, sent as application/json"
    return re.sub(r"^(Input|Value|String) should ", "it should ", message)


def _shown(value: object) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        text = repr(value) if isinstance(value, str | int | float | bytes) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:99]}…"


def _printable(text: str) -> str:
    """Without lone surrogates, which no UTF-8 holds."""
    return text.encode("utf-8", "replace").decode()
