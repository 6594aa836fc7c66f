"""Who a token belongs to, and how often a wrong one may be tried: for bearers, sign-ins and sessions alike."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter

from consumer.attempts import Attempts
from consumer.problems import Problem
from consumer.tokens import SHORT, Actor, Tokens

T = TypeVar("T")

_LOG: Final = structlog.get_logger("api")


class Admission:
    """Looks tokens up, and counts the wrong ones by the client's address.

    Many clients may share one address (a proxy's, a company's), so a limit on everything that comes from it would let
    anybody there lock the operators out. But a limit that looks at the token first would stop no guess: the right one
    would pass. What can be guessed at all is a short token: beyond the limit these are refused unseen, right or wrong
    alike, while long ones are still looked up, since no number of tries finds them. Thread-safe.
    """

    def __init__(self, tokens: Tokens, refused: Counter) -> None:
        """`refused` counts by reason: missing, unknown, limited."""
        self._tokens = tokens
        self._refused = refused
        self._attempts = Attempts()
        self._lock = threading.Lock()

    def of_token(self, presented: bytes | None, address: str | None) -> Actor:
        """Whose token this is. Raises `Problem`."""
        if presented is None:
            self._refused.labels("missing").inc()
            challenge = 'Bearer realm="cfo-sync"'
            raise Problem(
                401, "unauthorized", "send Authorization: Bearer <token>", headers={"WWW-Authenticate": challenge}
            )
        actor = self.find(lambda: self._tokens.actor_of(presented), address, guessable=len(presented) < SHORT)
        if actor is None:
            challenge = 'Bearer realm="cfo-sync", error="invalid_token"'
            raise Problem(401, "unauthorized", "the token is not known", headers={"WWW-Authenticate": challenge})
        return actor

    def find(self, look: Callable[[], T | None], address: str | None, *, guessable: bool) -> T | None:
        """What `look` finds; None, and counted against the address, when it finds nothing.

        Raises `Problem` when too much came from there already.
        """
        # Held while it looks: of many guesses at the same time no more may pass than one after another.
        with self._lock:
            now = time.monotonic()
            wait = self._attempts.wait(address, now)
            found = None if wait > 0 and guessable else look()
            if found is None and wait > 0:
                self._refused.labels("limited").inc()
                raise Problem(
                    429,
                    "too-many-attempts",
                    "too many wrong tokens came from this address",
                    retry_after=math.ceil(wait),
                )
            if found is None:
                self._refused.labels("unknown").inc()
                self._attempts.note(address, now)
                if self._attempts.wait(address, now) > 0:
                    _LOG.warning("too many wrong tokens", address=address)
        return found
