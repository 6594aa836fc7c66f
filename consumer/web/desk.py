"""What every page passes: who asks, whether a form is theirs, and how answers and errors are rendered."""

from __future__ import annotations

import hmac
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import FastAPI, Request
from jinja2 import Environment
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from consumer.admission import Admission
from consumer.gate import GUARDED, address_of
from consumer.problems import Problem
from consumer.tokens import Actor
from consumer.web.sessions import LIFETIME, Sessions, WebSession

# No script, style or frame but our own files, and no form that sends anything elsewhere.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # With `no-referrer` browsers name no origin for a form either; by plain HTTP nothing else tells that it is ours.
    "Referrer-Policy": "same-origin",
}
_COOKIE: Final = "cfo-sync-session"
_PROBES: Final = ("/healthz", "/readyz", "/metrics")
_MOST_FIELDS: Final = 100
FRAGMENT: Final = "x-fragment"
"""The header with which the script of a page asks for a part of it."""


class SignInNeeded(Exception):
    """Nobody is signed in; `expired` says that somebody was."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__()
        self.expired = expired


@dataclass(frozen=True, slots=True)
class Notice:
    """What came of an action."""

    good: bool
    text: str


class Desk:
    """Knows the visitors, and hands out the pages."""

    def __init__(self, sessions: Sessions, admission: Admission, environment: Environment) -> None:
        self._sessions = sessions
        self._admission = admission
        self._environment = environment
        environment.globals |= {"asset": _assets()}

    # -- who asks ------------------------------------------------------------------------------------------------------

    def visitor(self, request: Request) -> WebSession:
        """Who asks. Raises `SignInNeeded`, and `Problem` when too many forged cookies came from there."""
        session = self._session(request.scope)
        if not self._sessions.needs_token and (session is None or self._sessions.is_over(session)):
            request.state.cookie = self._sessions.begin(None)
            session = self._sessions.find(request.state.cookie)
        if session is None:
            raise SignInNeeded
        request.state.actor = session.actor
        if self._sessions.is_over(session):
            raise SignInNeeded(expired=True)
        request.state.session = session
        if session.renewed is not None:
            request.state.cookie = session.renewed
        return session

    def acting(self, request: Request) -> tuple[Actor, Mapping[str, str]]:
        """Who sends a form, and its fields. Raises `SignInNeeded`; `Problem` for a viewer's and for one that no page
        of this session made."""
        session, fields = self.visitor(request), form(request)
        _check(session, fields)
        if not session.actor.may_act:
            raise Problem(403, "forbidden", "a viewer's token may only read")
        return session.actor, fields

    def sign_in(self, request: Request, presented: str, onward: str) -> Response:
        """Begin a session with this token. Raises `Problem`."""
        token = presented.strip().encode("utf-8", "replace")
        request.state.actor = self._admission.of_token(token, address_of(request.scope))
        response = RedirectResponse(local_path(onward), 303, dict(_HEADERS))
        self._set_cookie(request, response, self._sessions.begin(token))
        return response

    def sign_out(self, request: Request) -> Response:
        """End the session, of a viewer too. Raises as `acting` does."""
        session = self._session(request.scope)
        if session is None:
            raise SignInNeeded
        # Over or not: of a sign-in that ended here for want of a page somebody else may have a newer cookie.
        request.state.actor = session.actor
        _check(session, form(request))
        self._sessions.end(session)
        response = RedirectResponse("/sign-in?was=out", 303, dict(_HEADERS))
        self._set_cookie(request, response, "")
        return response

    @property
    def needs_token(self) -> bool:
        """Whether people sign in here at all."""
        return self._sessions.needs_token

    def _session(self, scope: Scope) -> WebSession | None:
        headers = Headers(scope=scope)
        cookie = cookie_parser(headers.get("cookie", "")).get(_cookie_name(headers), "")
        if not cookie:
            return None
        found = self._sessions.find(cookie)
        if found is not None or not self._sessions.needs_token:
            return found  # without tokens one of before a restart is no attempt at anything
        return self._admission.find(lambda: self._sessions.find(cookie, short=True), address_of(scope), guessable=True)

    # -- answers -------------------------------------------------------------------------------------------------------

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page, or the part of one that its script asks for."""
        session: WebSession | None = getattr(request.state, "session", None)
        text = self._environment.get_template(template).render(
            session=session,
            may_act=session is not None and session.actor.may_act,
            here=request.url.path,
            needs_token=self._sessions.needs_token,
            **values,
        )
        response = Response(text, status, dict(_HEADERS), "text/html; charset=utf-8")
        is_over = session is not None and self._sessions.is_over(session)  # signed out while the page was made
        if (cookie := getattr(request.state, "cookie", None)) is not None and not is_over:
            self._set_cookie(request, response, cookie)
        return response

    def answer(self, scope: Scope, problem: Problem) -> Response:
        """A problem as a page where people look, else as JSON."""
        if not is_for_people(scope):
            return problem.response(scope["path"])
        request = Request(scope)
        response = self.page(request, "problem.html", status=problem.status, problem=problem, body=problem.body(""))
        if problem.retry_after is not None:
            response.headers["Retry-After"] = str(problem.retry_after)
        return response

    def to_sign_in(self, request: Request, error: Exception) -> Response:
        """Where somebody goes who is not signed in, and from where they come back."""
        request.state.outcome = "sign-in-needed"
        if FRAGMENT in request.headers:
            return Response(status_code=401, headers=dict(_HEADERS))
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        asked = {"next": here} if here != "/" else {}
        if isinstance(error, SignInNeeded) and error.expired:
            asked["was"] = "expired"
        return RedirectResponse(f"/sign-in{'?' + urlencode(asked) if asked else ''}", 303, dict(_HEADERS))

    def _set_cookie(self, request: Request, response: Response, value: str) -> None:
        # A proxy that ends TLS says so; who lies about it harms nobody but themselves.
        name = _cookie_name(request.headers)
        response.set_cookie(
            name,
            value,
            max_age=LIFETIME if value else 0,
            path="/",
            secure=name.startswith("__Host-"),
            httponly=True,
            samesite="strict",
        )


def add_files(app: FastAPI) -> None:
    """The style, the script and the icon, under names that change with their content."""
    kinds = {
        "style.css": "text/css; charset=utf-8",
        "app.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml",
    }
    contents = {name: _file(name) for name in kinds}

    @app.get("/static/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in contents:
            raise Problem(404, "not-found", "there is no such path")
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(contents[name], headers=headers, media_type=kinds[name])


def form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent. Raises `Problem`."""
    try:
        text = request.state.body.decode()
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"))
    except ValueError:
        raise Problem(422, "validation", "the form cannot be read") from None


def is_for_people(scope: Scope) -> bool:
    """Whether a browser asks for a page."""
    path = scope["path"]
    return (
        not path.startswith(GUARDED) and path not in _PROBES and "text/html" in Headers(scope=scope).get("accept", "")
    )


def local_path(text: str) -> str:
    """A path on this server, `/` for anything else: nobody is sent elsewhere."""
    is_local = text.startswith("/") and text[1:2] not in ("/", "\\") and text.isprintable()
    return quote(text, safe="/?&=%:,+-_.~") if is_local else "/"


def _check(session: WebSession, fields: Mapping[str, str]) -> None:
    """That a form was made for this session. Raises `Problem`."""
    presented = fields.get("form_token", "").encode("utf-8", "replace")
    if not hmac.compare_digest(presented, session.csrf.encode()):
        raise Problem(403, "form-expired", "it was made for another sign-in: load its page again")


def _cookie_name(headers: Headers) -> str:
    """Browsers hold the cookies of all ports of a machine together: one console must not sign another one out."""
    port = headers.get("host", "").rpartition(":")[2]
    name = f"{_COOKIE}-{port}" if port.isascii() and port.isdecimal() else _COOKIE
    return f"__Host-{name}" if headers.get("x-forwarded-proto", "").lower() == "https" else name


def _file(name: str) -> bytes:
    return resources.files("consumer.web").joinpath("static", name).read_bytes()


def _assets() -> dict[str, str]:
    return {name: f"/static/{name}?{zlib.crc32(_file(name)):08x}" for name in ("style.css", "app.js", "icon.svg")}
