"""Services for the threads of a server: what holds connections belongs to one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from consumer.dlq import DeadLetterQueue
from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.settings import Settings


class Busy(Exception):
    """All were in use for longer than anybody should wait."""


class _Closing(Protocol):
    def close(self) -> None:
        """Close the connections; the next use opens new ones."""


T = TypeVar("T", bound=_Closing)


class Pool(Generic[T]):
    """Lends what `make` makes, at most `size` at a time; each is made when it is first needed, and used again."""

    def __init__(self, make: Callable[[], T], *, size: int, patience: float = 5.0) -> None:
        """`patience`: seconds that a borrower waits for a free one."""
        self._make = make
        self._patience = patience
        self._free = threading.BoundedSemaphore(size)
        self._idle: list[T] = []  # the last one returned is lent first: it knows most, and its connections are warm
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[T]:
        """One for this thread until the block ends. Raises `Busy` when none becomes free in time.

        After an error that is no `Outage` (which has closed what broke) its connections are not used again.
        """
        if not self._free.acquire(timeout=self._patience):
            raise Busy
        try:
            with self._lock:
                lent = self._idle.pop() if self._idle else None
            if lent is None:
                lent = self._make()
            try:
                yield lent
            except Outage:
                raise
            except BaseException:
                lent.close()
                raise
            finally:
                self._take_back(lent)
        finally:
            self._free.release()

    def _take_back(self, lent: T) -> None:
        with self._lock:
            closed = self._closed
            if not closed:
                self._idle.append(lent)
        if closed:
            lent.close()

    def close(self) -> None:
        """Close the idle ones now, and those in use when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()


class OwnQueue(DeadLetterQueue):
    """A dead-letter queue with a service of its own, so that both can be lent and closed as one."""

    def __init__(self, settings: Settings, service: CFOSyncService) -> None:
        super().__init__(settings, service)
        self._own = service

    def close(self) -> None:
        """Close the clients and the connections; the next call opens new ones."""
        super().close()
        self._own.close()
