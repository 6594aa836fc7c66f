"""What a client may do with a connection to the API before and between its requests: not much, and not for long."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST: Final = 500
"""Connections at once; a process may often have 1024 files open."""

_SECONDS: Final = 10.0
"""How long a client may take to send a request's head, or the rest of a body that was answered already, or to read."""


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, for strangers: it has no limits of its own for a client that is slow on purpose.

    A connection on which no request runs is cut after ten seconds, whatever trickles in; so is one whose client does
    not read its answer. When there are too many, the one that has been without a request for longest makes room, so
    that probes and people get in while somebody holds all the others open.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cut: asyncio.TimerHandle | None = None  # set while the client is waited for
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > _MOST:
            others = (each for each in self.connections if isinstance(each, Connection))
            min((each for each in others if not each.transport.is_closing()), key=Connection._due).transport.abort()

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A request was answered; another one may have come with it."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._unread = self.loop.call_later(_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        for timer in (self._cut, self._unread):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._cut is not None and is_answering:
            self._cut.cancel()
            self._cut = None
        elif self._cut is None and not is_answering:
            self._cut = self.loop.call_later(_SECONDS, self.transport.abort)

    def _due(self) -> float:
        return self._cut.when() if self._cut is not None else float("inf")
