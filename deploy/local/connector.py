"""Connectors, by Kafka Connect's REST interface."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from deploy.local.errors import StackError


def register_connector(url: str, definition: Mapping[str, Any]) -> None:
    """Create the connector of `definition` (`{"name": …, "config": {…}}`), or give an existing one that configuration.

    Raises StackError with Connect's own words if it refuses.
    """
    path = f"/connectors/{quote(definition['name'])}/config"
    status, answer = request(url, "PUT", path, definition["config"])
    if status not in (200, 201):
        raise StackError(f"Kafka Connect refuses the connector {definition['name']}: {answer.get('message', answer)}")


def delete_connector(url: str, name: str) -> None:
    """Delete it, if it exists. Its replication slot stays in PostgreSQL."""
    status, answer = request(url, "DELETE", f"/connectors/{quote(name)}")
    if status not in (204, 404):
        raise StackError(f"Kafka Connect does not delete the connector {name}: {answer.get('message', answer)}")


def wait_connector_running(url: str, name: str, timeout: float = 60) -> None:
    """Wait until the connector and a task of it are RUNNING.

    Raises StackError with the stack trace if one of them fails, or when the time is over.
    """
    deadline = time.monotonic() + timeout
    while True:
        status, answer = request(url, "GET", f"/connectors/{quote(name)}/status")
        # 404 and 409 pass: a rebalance is going on.
        states = [answer["connector"], *answer["tasks"]] if status == 200 else []
        if len(states) > 1 and all(state["state"] == "RUNNING" for state in states):
            return
        for state in states:
            if state["state"] == "FAILED":
                raise StackError(f"the connector {name} failed: {state.get('trace', answer)}")
        if time.monotonic() > deadline:
            raise StackError(f"the connector {name} is not running after {timeout:.0f} s: {answer}")
        time.sleep(0.1)


def request(url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Ask Connect: the status and what it answered. Asks again while a rebalance goes on. Raises StackError."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise StackError(f"Kafka Connect does not answer at {url}: {error}") from error
        finally:
            connection.close()
        # 409: a rebalance is going on, the same request works afterwards.
        if response.status != 409 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        answer = {"message": text.decode(errors="replace")}
    return response.status, answer if isinstance(answer, dict) else {"answer": answer}
