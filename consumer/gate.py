"""What every request passes before it reaches a handler: who asks, from where, how much; and what is noted of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumer.admission import Admission
from consumer.problems import Problem, of_exception
from consumer.tokens import LOCAL, bearer, is_loopback

MAX_BODY_BYTES: Final = 64 * 1024
_BODY_SECONDS: Final = 10
GUARDED: Final = "/api/"
"""Paths that begin so need a token; /healthz, /readyz and /metrics are open."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FRAMINGS: Final = frozenset({b"content-length", b"transfer-encoding"})
_LOG: Final = structlog.get_logger("api")


class RequestMetrics:
    """What the API exports about its own requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Requests answered, by the route's template (`other` for none), the method and the status.
        self.requests = Counter(
            "cfo_sync_api_requests", "API requests answered.", ("route", "method", "status"), registry=registry
        )
        # Seconds from the request's head to the end of the answer.
        self.seconds = Histogram(
            "cfo_sync_api_request_seconds",
            "Duration of API requests.",
            ("route", "method"),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        # Requests refused for their token: none there, one that is not known, or too many of those from that address.
        self.refused = Counter(
            "cfo_sync_api_refused_tokens", "API requests refused for their token.", ("reason",), registry=registry
        )
        for reason in ("missing", "unknown", "limited"):
            self.refused.labels(reason)

    def expect(self, route: str, method: str, statuses: Iterable[str]) -> None:
        """Begin these series at 0."""
        self.seconds.labels(route, method)
        for status in statuses:
            self.requests.labels(route, method, status)


class Gate:
    """ASGI middleware around the whole app.

    Refuses what is too large, comes from another site's page, has no good token or not the role; gives the others
    `request.state.actor`. Turns what nobody foresaw into a problem without insides. Counts every request, and logs one
    line for each that would change something: who, what, outcome.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        needs_token: bool,
        metrics: RequestMetrics,
        answer: Callable[[Scope, Problem], Response],
    ) -> None:
        """Without `needs_token` only this machine's own names are served. `answer` makes a problem a response."""
        self._app = app
        self._admission = admission
        self._needs_token = needs_token
        self._metrics = metrics
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = [
            (name, _without_escapes(value) if name == b"cookie" else value) for name, value in scope["headers"]
        ]
        began = time.monotonic()
        state: dict[str, Any] = scope.setdefault("state", {})
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if {name for name, _ in scope["headers"]} >= _FRAMINGS:
                    # A proxy may see the end of such a request elsewhere: what follows it is nobody's (RFC 9112, 6.1).
                    headers["Connection"] = "close"
            await send(message)

        try:
            body = state["body"] = await self._admit(scope, receive, state)
            await self._app(scope, _replaying(body, receive), send_noting)
        except asyncio.CancelledError:
            # The server stops, and this request has taken longer than it waits.
            if status:
                raise
            state["outcome"] = "stopping"
            stopping = Problem(503, "stopping", "the server stops; ask again what became of this", retry_after=5)
            await self._answer(scope, stopping)(scope, receive, send_noting)
        except Exception as error:
            problem = of_exception(error)
            state["outcome"] = problem.code
            if problem.status == 500:
                _LOG.exception("request failed", method=scope["method"], path=scope["path"][:200])
            if status:
                raise  # half an answer is out: the server closes the connection
            await self._answer(scope, problem)(scope, receive, send_noting)
        finally:
            self._note(scope, state, status, time.monotonic() - began)

    async def _admit(self, scope: Scope, receive: Receive, state: dict[str, Any]) -> bytes:
        """Who asks goes into the state; gives the request's body. Raises `Problem`."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._needs_token:
            # A page whose name was made to resolve to 127.0.0.1 sends its own name as Host.
            if not is_loopback(_host_name(headers.get("host", ""))):
                raise Problem(403, "host-not-local", "ask by 127.0.0.1, [::1] or localhost, or set CFO_SYNC_API_TOKEN")
            state["actor"] = LOCAL
        if scope["method"] not in _SAFE and _is_cross_site(headers):
            raise Problem(403, "cross-site", "a page of another site sent this request")
        if self._needs_token and scope["path"].startswith(GUARDED):
            actor = self._admission.of_token(bearer(scope["headers"]), address_of(scope))
            state["actor"] = actor
            if scope["method"] not in _SAFE and not actor.may_act:
                raise Problem(403, "forbidden", "a viewer's token may only read")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                return await _read_body(receive, headers.get("content-length", ""))
        except TimeoutError:
            raise Problem(408, "request-too-slow", f"the body took longer than {_BODY_SECONDS} s") from None

    def _note(self, scope: Scope, state: Mapping[str, Any], status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route, method).observe(seconds)
        if scope["method"] not in _SAFE:
            actor = state.get("actor")
            _LOG.info(
                "request",
                by=actor.name if actor is not None else None,
                method=method,
                path=scope["path"][:200],
                status=status,
                outcome=state.get("outcome", "done"),
                **state.get("details", {}),
                seconds=round(seconds, 3),
            )


def _without_escapes(cookies: bytes) -> bytes:
    """Only those cookies without a backslash, as ours are: Python before 3.11.10 and 3.12.6 takes seconds to read a
    long one with many (CVE-2024-7592), and FastAPI reads all cookies of every request."""
    return cookies if b"\\" not in cookies else b";".join(each for each in cookies.split(b";") if b"\\" not in each)


def address_of(scope: Scope) -> str | None:
    """Where a request comes from."""
    client = scope.get("client")
    return client[0] if client else None


async def _read_body(receive: Receive, declared: str) -> bytes:
    """The whole body, of at most `MAX_BODY_BYTES`. Raises `Problem`."""
    too_large = Problem(413, "request-too-large", f"a request's body has at most {MAX_BODY_BYTES} bytes")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client is gone
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def _replaying(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _is_cross_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent this for a page of another origin. Programs other than browsers send neither header."""
    fetched = headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched.lower() not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def _host_name(host: str) -> str:
    """A Host header without its port and brackets; empty when it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or "" if "@" not in host and "/" not in host else ""
    except ValueError:
        return ""
