"""Who may use the API: bearer tokens from the settings, and what their holders may do."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, TypeAlias, get_args

from consumer.settings import PREFIX, SettingsError

Role: TypeAlias = Literal["viewer", "operator"]

_VARIABLE: Final = f"{PREFIX}API_TOKEN"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN: Final = re.compile(r"[!-~]+")  # what a header can carry
SHORT: Final = 16
"""Characters; a token with fewer can be guessed."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. A viewer may look, an operator may also act; the name goes into logs and audit rows."""

    name: str
    role: Role

    @property
    def may_act(self) -> bool:
        """Whether it may change something."""
        return self.role == "operator"


LOCAL: Final = Actor("local", "operator")
"""Everybody who reaches the API of a machine that has no tokens: it listens on loopback only."""


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    actor: Actor
    is_short: bool

    @classmethod
    def of(cls, token: bytes, actor: Actor) -> _Known:
        return cls(sha256(token).digest(), actor, len(token) < SHORT)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that are good now, known by their hashes only."""

    _known: tuple[_Known, ...]

    def __bool__(self) -> bool:
        return bool(self._known)

    def actor_of(self, presented: bytes) -> Actor | None:
        """Whose token this is, or None. Takes as long for a wrong one as for a right one."""
        digest = sha256(presented).digest()
        found: Actor | None = None
        for known in self._known:
            if hmac.compare_digest(known.digest, digest):
                found = known.actor  # and go on: the time taken must not tell which it was
        return found

    @property
    def has_short(self) -> bool:
        """Whether one of them is short enough to be guessed."""
        return any(known.is_short for known in self._known)

    def session_keys(self, *, short: bool) -> list[tuple[bytes, Actor]]:
        """What signs the console's sessions of each token, of short ones or of the others: the same in every replica,
        and void without the token."""
        return [(_session_key(known.digest), known.actor) for known in self._known if known.is_short == short]


def session_key(presented: bytes) -> bytes:
    """What signs the sessions that begin with this token."""
    return _session_key(sha256(presented).digest())


def _session_key(digest: bytes) -> bytes:
    return hmac.digest(digest, b"cfo-sync console session", "sha256")


NO_TOKENS: Final = Tokens(())


def parse(text: str | None) -> Tokens:
    """Read `CFO_SYNC_API_TOKEN`: one bare token, or `name:role:token`, several separated by commas or white space.

    A bare token is an operator's, named `operator`. A name may have several tokens, so that one can be replaced
    without an interruption. Raises `SettingsError`, naming the position and never repeating a token.
    """
    if text is None:
        return NO_TOKENS
    entries = [entry for entry in re.split(r"[,\s]+", text) if entry]
    if not entries:
        raise SettingsError(f"{_VARIABLE}: holds no token; leave the variable away to serve this machine only")
    if len(entries) == 1 and ":" not in entries[0]:
        token = _checked(entries[0], "the token")
        return Tokens((_Known.of(token, Actor("operator", "operator")),))
    found: dict[bytes, _Known] = {}
    roles: dict[str, Role] = {}
    for position, entry in enumerate(entries, 1):
        where = f"token {position} of {len(entries)}"
        actor, token = _entry(entry, where)
        if roles.setdefault(actor.name, actor.role) != actor.role:
            raise SettingsError(f"{_VARIABLE}: {where}: a name that has two roles")
        known = _Known.of(token, actor)
        if known.digest in found:
            raise SettingsError(f"{_VARIABLE}: {where}: stands there before")
        found[known.digest] = known
    return Tokens(tuple(found.values()))


def _entry(entry: str, where: str) -> tuple[Actor, bytes]:
    parts = entry.split(":")
    # A misplaced token may stand anywhere in the entry, so that no part of it is repeated.
    if len(parts) != 3:
        raise SettingsError(f"{_VARIABLE}: {where}: write name:role:token")
    name, role, token = parts
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{_VARIABLE}: {where}: write a name of letters, digits and ._@- (at most 64)")
    for known in get_args(Role):
        if role == known:
            return Actor(name, known), _checked(token, where)
    raise SettingsError(f"{_VARIABLE}: {where}: its role is neither viewer nor operator")


def _checked(token: str, where: str) -> bytes:
    if not _TOKEN.fullmatch(token):
        raise SettingsError(f"{_VARIABLE}: {where}: a token has visible ASCII characters only, at least one")
    return token.encode("ascii")


def need_loopback(host: str, tokens: Tokens) -> None:
    """Without tokens the API serves this machine only. Raises `SettingsError` for any other address."""
    if not tokens and not is_loopback(host):
        raise SettingsError(
            f"{PREFIX}API_HOST: without {_VARIABLE} the API listens on loopback only (127.0.0.1, ::1 or localhost);"
            " set a token to serve other machines"
        )


def is_loopback(host: str) -> bool:
    """Whether this name or address, without brackets or port, is this machine and no other."""
    if host.casefold() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # newer Pythons look into it themselves


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token of a request's Authorization header; None without one, with several, or with another scheme."""
    found = [value for name, value in headers if name.lower() == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, token = found[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None
