"""How often a wrong token may be tried: a limit for each client network, in bounded memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

_BURST: Final = 10
_SECONDS_EACH: Final = 10.0
_MOST_NETWORKS: Final = 4096


@dataclass(slots=True)
class Attempts:
    """A token bucket for each network: ten wrong tokens at once, then one every ten seconds. Not thread-safe.

    Times are seconds of any clock that does not go back. Of the 4096 networks that failed last one number each is kept;
    whoever has more networks starts anew with the ones that were forgotten.
    """

    _full_at: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """When the network's bucket will be full again."""

    def wait(self, address: str | None, now: float) -> float:
        """Seconds until this client may try a wrong token again; 0 when it may now."""
        full_at = self._full_at.get(_network(address), now)
        return max(0.0, full_at - now - (_BURST - 1) * _SECONDS_EACH)

    def note(self, address: str | None, now: float) -> None:
        """This client tried a wrong token."""
        network = _network(address)
        self._full_at[network] = max(self._full_at.get(network, now), now) + _SECONDS_EACH
        self._full_at.move_to_end(network)
        if len(self._full_at) > _MOST_NETWORKS:
            self._full_at.popitem(last=False)


def _network(address: str | None) -> str:
    """What one client has for itself: an IPv4 address, or 64 bits of IPv6."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
