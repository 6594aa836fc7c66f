"""The API of a test, in this process: real databases, no socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import unquote

import httpx
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from consumer import mapping, tokens
from consumer.api import create_app
from consumer.api_models import ProblemDetails
from consumer.problems import MEDIA_TYPE, URN
from consumer.readiness import Readiness
from consumer.service import CFOSyncService
from consumer.service_pool import OwnQueue, Pool
from consumer.settings import Settings
from tests.roles import API, settings_as

OPERATOR = "operators-token-of-this-test"
VIEWER = "viewers-token-of-this-test"
TOKENS = f"treasury:operator:{OPERATOR},audit:viewer:{VIEWER}"


class Web:
    """The app, and a client that asks it as `http://127.0.0.1`; every error that it gives is a proper problem."""

    def __init__(self, settings: Settings, *, token: str | None = None, pool: Pool[Any] | None = None) -> None:
        settings = settings_as(API, settings)
        rules = mapping.load(settings.mapping_file)

        def make_service() -> CFOSyncService:
            return CFOSyncService(settings, rules=rules)

        self.pool = pool or Pool(make_service, size=8, patience=0.5)
        self.queues = pool or Pool[Any](lambda: OwnQueue(settings, make_service()), size=2, patience=0.5)
        self.registry = CollectorRegistry()
        self._addresses = (str(IPv4Address(number)) for number in itertools.count(int(IPv4Address("10.0.0.1"))))
        self.app = create_app(
            self.pool,
            self.queues,
            look=Readiness(settings, rules.target).look,
            registry=self.registry,
            tokens=tokens.parse(token),
            settings=settings,
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        host: str = "127.0.0.1:8080",
        address: str | None = None,
        json: Any = None,
        content: bytes | Callable[[], Iterator[bytes]] | None = None,
    ) -> httpx.Response:
        """One request, from this address; each from another one unless it is told."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers or [])
        if token is not None:
            pairs.append(("Authorization", f"Bearer {token}"))

        async def stream() -> Any:
            assert callable(content)
            for chunk in content():
                yield chunk

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address or next(self._addresses), 1))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                body = stream() if callable(content) else content
                return await client.request(method, path, headers=pairs, json=json, content=body)

        response = asyncio.run(send())
        if response.status_code >= 400 and path != "/readyz":
            check_problem(response)
        return response

    async def app_for_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app, each of whose requests comes from another address."""
        await self.app({**scope, "client": (next(self._addresses), 1)}, receive, send)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        """GET."""
        return self.ask("GET", path, **arguments)

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        """POST."""
        return self.ask("POST", path, **arguments)

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()
        self.queues.close()


def check_problem(response: httpx.Response) -> None:
    """It is what RFC 9457 and our document say."""
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    ProblemDetails.model_validate(body, strict=True)
    assert None not in body.values()
    assert body["status"] == response.status_code
    assert body["type"] == URN + body["code"]
    assert unquote(body["instance"]) == response.request.url.path
    assert (response.status_code in (429, 503)) == ("retry-after" in response.headers)
    assert (response.status_code == 401) == ("www-authenticate" in response.headers)
    assert (response.status_code == 405) == ("allow" in response.headers)


@contextmanager
def serving(settings: Settings, **arguments: Any) -> Iterator[Web]:
    """An API whose connections end with the block."""
    web = Web(settings, **arguments)
    try:
        yield web
    finally:
        web.close()
