"""Sign-ins: a cookie that says when it began and was last used, and the token that every form of it carries.

Signed with a key made from the presented token, so that every replica knows every session without a common store, and
that a token that is taken from the settings takes its sessions with it.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from consumer.tokens import LOCAL, Actor, Tokens, session_key

LIFETIME: Final = 8 * 3600
"""Seconds from sign-in to the next one: a day at the office."""

IDLE: Final = 3600
"""Seconds without a page: somebody has left."""

_RENEWED_AFTER: Final = 60
_NONCE_BYTES: Final = 18
_MOST_ENDED: Final = 10_000


@dataclass(frozen=True, slots=True)
class WebSession:
    """Somebody who signed in.

    `csrf` is what their forms carry; `expires_at` is seconds since the epoch. `renewed` is a cookie with which it ends
    later, when it is time for one.
    """

    actor: Actor
    csrf: str
    expires_at: int
    renewed: str | None


class Sessions:
    """Begins sessions, recognises and ends them. Thread-safe. Without tokens everybody who reaches this machine gets
    one of its own.

    Which ones were ended is known to this process alone, until it stops: of each token's name the last 10,000.
    """

    def __init__(self, tokens: Tokens, clock: Callable[[], float] = time.time) -> None:
        self.needs_token = bool(tokens)
        self._clock = clock
        # Without tokens nothing is proved by a session, but a form must still come from a page of ours.
        self._local = os.urandom(32)
        self._keys = {short: tokens.session_keys(short=short) for short in (False, True)}
        if not tokens:
            self._keys[False].append((self._local, LOCAL))
        # By name, so that nobody can push another's out: what their forms carried, in their order.
        self._ended: dict[str, dict[str, None]] = {}
        self._lock = threading.Lock()

    def begin(self, presented: bytes | None) -> str:
        """The cookie of a new session that this token begins; it must be a good one, None where none is needed."""
        key = self._local if presented is None else session_key(presented)
        now = int(self._clock())
        return _cookie(key, f"{urlsafe_b64encode(os.urandom(_NONCE_BYTES)).decode()}.{now}", now)

    def find(self, cookie: str, *, short: bool = False) -> WebSession | None:
        """The session that a cookie names, over or not; None for one that is not ours. One that began with a `short`
        token is found only where these are looked for.

        Takes as long for a wrong one as for a right one.
        """
        claim, _, signature = cookie.rpartition(".")
        found: WebSession | None = None
        for key, actor in self._keys[short]:
            if hmac.compare_digest(_sign(key, "sign-in", claim).encode(), signature.encode("utf-8", "replace")):
                found = self._read(claim, key, actor)
        return found

    def _read(self, claim: str, key: bytes, actor: Actor) -> WebSession | None:
        identity, _, last = claim.rpartition(".")
        try:
            begun, seen, now = int(identity.rpartition(".")[2]), int(last), int(self._clock())
        except ValueError:
            return None  # who has the token can sign anything
        renewed = _cookie(key, identity, now) if now - seen >= _RENEWED_AFTER else None
        idle = IDLE if self.needs_token else LIFETIME
        return WebSession(actor, _sign(key, "form", identity), min(begun + LIFETIME, seen + idle), renewed)

    def is_over(self, session: WebSession) -> bool:
        """Whether its time has passed, or it was ended."""
        return self._clock() >= session.expires_at or session.csrf in self._ended.get(session.actor.name, ())

    def end(self, session: WebSession) -> None:
        """End it, whoever else has its cookie."""
        with self._lock:
            ended = self._ended.setdefault(session.actor.name, {})
            ended[session.csrf] = None
            if len(ended) > _MOST_ENDED:
                del ended[next(iter(ended))]


def _cookie(key: bytes, identity: str, seen: int) -> str:
    claim = f"{identity}.{seen}"
    return f"{claim}.{_sign(key, 'sign-in', claim)}"


def _sign(key: bytes, use: str, claim: str) -> str:
    message = f"{use}.{claim}".encode("utf-8", "replace")
    return urlsafe_b64encode(hmac.digest(key, message, "sha256")).decode().rstrip("=")
