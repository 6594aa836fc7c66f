"""TCP ports on the loopback interface."""

import random
import socket

LOOPBACK = "127.0.0.1"
# Below the range from which Linux takes the ports of outgoing connections: such a connection could otherwise take a
# port while its server restarts.
_RANGE = range(20_000, 32_000)


def choose_port() -> int:
    """A port that is free now. Somebody may take it before it is used: be ready to try another."""
    for _ in range(1000):
        port = random.choice(_RANGE)  # noqa: S311 - not a secret
        if is_free(port):
            return port
    raise OSError("no free TCP port between 20000 and 32000")


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def is_open(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0
