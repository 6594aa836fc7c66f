"""Somebody with a browser at the console of a test: cookies, forms, pages. No script runs here."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Mapping

import httpx

from tests.integration.web import Web


class Visitor:
    """Asks for pages as a browser does, and keeps its cookies. Redirects are not followed."""

    def __init__(self, web: Web, *, address: str = "10.9.0.1") -> None:
        self.web = web
        self.cookies = httpx.Cookies()
        self._address = address

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Load a page."""
        return self._ask("GET", path, headers, None)

    def post(self, path: str, fields: Mapping[str, str] | None = None, **headers: str) -> httpx.Response:
        """Send a form of this visitor's session."""
        return self.send(path, {"form_token": self.form_token(), **(fields or {})}, **headers)

    def send(self, path: str, fields: Mapping[str, str], **headers: str) -> httpx.Response:
        """Send these fields and no others."""
        return self._ask("POST", path, headers, fields)

    def sign_in(self, token: str) -> Visitor:
        """Sign in; it must be allowed."""
        assert self.send("/sign-in", {"token": token}).status_code == 303
        return self

    def form_token(self) -> str:
        """What the forms of this session carry."""
        for path in ("/mapping", "/reconciliation"):  # where nobody signs in, nobody signs out
            if found := re.search(r'name="form_token" value="([^"]+)"', self.get(path).text):
                return found[1]
        raise AssertionError("no form on these pages")

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], fields: Mapping[str, str] | None
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.web.app, client=(self._address, 1))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:8080", cookies=self.cookies
            ) as client:
                response = await client.request(method, path, headers={"Accept": "text/html", **headers}, data=fields)
                self.cookies = client.cookies
                return response

        response = asyncio.run(send())
        is_page = response.headers.get("content-type", "").startswith("text/html")
        assert is_page or response.status_code in (303, 401) or path.startswith(("/static", "/reconciliation.csv"))
        return response


def text_of(response: httpx.Response) -> str:
    """What a page says, without its markup."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", response.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
