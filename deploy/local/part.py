"""One server of the stack: its process, its port, its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from deploy.local.errors import StackError
from deploy.local.ports import choose_port, is_free
from deploy.local.processes import (
    Launch,
    birth,
    descendants,
    signal_all,
    spawn,
    spawn_guarded,
    wait_gone,
)

_PORT_ATTEMPTS = 5


class Part(ABC):
    """A server that can be started, stopped, killed, paused and started again on the same port with the same data.

    Not detached: the server ends when this Python process ends, in whatever way. Detached: it lives on, and another
    process finds it by the same folder.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM
    orphan_signal: ClassVar[int] = signal.SIGKILL
    port_names: ClassVar[Sequence[str]] = ("port",)

    def __init__(self, folder: Path, *, detached: bool) -> None:
        self.folder = folder / self.name
        self.log = folder / "logs" / f"{self.name}.log"
        self.detached = detached
        self._pid_file = folder / "run" / f"{self.name}.pid"
        self._ports_file = folder / "run" / f"{self.name}.ports.json"
        self._process: subprocess.Popen[bytes] | None = None  # the server if detached, else its guardian
        self._log_start = 0
        self._busy = threading.RLock()

    # -- what a server is made of --

    @abstractmethod
    def _prepare(self) -> None:
        """Create what the server needs before its first start; called before every start."""

    @abstractmethod
    def _launch(self) -> Launch: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server can be used now; must return within a few seconds."""

    # -- its life --

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1. Chosen when first asked for, and kept."""
        return self._ports()[self.port_names[0]]

    @property
    def pid(self) -> int | None:
        """Of the running server; None if it does not run."""
        known = self._identity()
        return known[0] if known is not None and birth(known[0]) == known[1] else None

    @property
    def is_running(self) -> bool:
        """Whether its process exists, paused or not."""
        return self.pid is not None

    def settle_ports(self) -> None:
        """Choose other ports if it never served on its own and somebody has taken them since they were chosen."""
        with self._busy:
            if not self._served and not self.is_running and not all(map(is_free, self._ports().values())):
                self._ports_file.unlink()
                self._ports()

    def start(self) -> None:
        """Start it, if it does not run; use `wait_ready` before using it."""
        with self._busy:
            if self.is_running:
                return
            self._reap()
            for folder in (self.folder, self.log.parent, self._pid_file.parent):
                folder.mkdir(parents=True, exist_ok=True)
            self.log.touch()
            self._prepare()
            self._log_start = self.log.stat().st_size
            launch = self._launch()
            if self.detached:
                self._process = spawn(launch)
                pid = self._process.pid
            else:
                self._process, pid = spawn_guarded(launch)
            self._pid_file.write_text(f"{pid} {birth(pid)}\n")

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until it answers.

        If it ended because its port is taken, it is started again: on another port if it never served on this one
        (then `port` changes), else on the same one. Raises StackError, with the end of its log, if it ended for
        another reason or does not answer within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        attempts = 0
        while not self._answers_as_ours():
            if not self.is_running:
                attempts += 1
                if not self._port_was_taken() or attempts >= _PORT_ATTEMPTS:
                    raise StackError(f"{self.title} ended while starting.{self._log_tail()}")
                if not self._served:
                    self._ports_file.unlink()
                else:
                    time.sleep(1)
                self.start()
            if time.monotonic() > deadline:
                raise StackError(f"{self.title} does not answer after {timeout:.0f} s.{self._log_tail()}")
            time.sleep(0.05)
        self._served = True

    def stop(self, timeout: float = 20) -> None:
        """End it in order, its data complete on disk; kill it if that takes longer than `timeout` seconds."""
        with self._busy:
            known = self._identity()
            if known is not None and birth(known[0]) == known[1]:
                tree = [known[0], *descendants(known[0])]
                signal_all([known[0]], self.stop_signal)
                signal_all(tree, signal.SIGCONT)  # a paused process would not see the signal
                if not wait_gone(*known, timeout):
                    self.kill()
            self._forget()

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a crash would."""
        with self._busy:
            known = self._identity()
            if known is not None and birth(known[0]) == known[1]:
                tree = self._freeze(known[0])
                signal_all(tree, signal.SIGKILL)
                for pid in tree:
                    if (born := known[1] if pid == known[0] else birth(pid)) is not None:
                        wait_gone(pid, born, 10)
            self._forget()

    def pause(self) -> None:
        """SIGSTOP to all its processes: connections stay open and nothing answers."""
        if (pid := self.pid) is not None:
            self._freeze(pid)

    def resume(self) -> None:
        """Undo `pause`."""
        if (pid := self.pid) is not None:
            signal_all([*descendants(pid), pid], signal.SIGCONT)

    # -- the rest is ours --

    def _freeze(self, pid: int) -> list[int]:
        """Stop the tree, until nothing new appears in it; return it."""
        tree: list[int] = []
        while new := [member for member in [pid, *descendants(pid)] if member not in tree]:
            signal_all(new, signal.SIGSTOP)
            tree += new
        return tree

    def _ports(self) -> dict[str, int]:
        with self._busy:
            try:
                ports = json.loads(self._ports_file.read_text())
            except FileNotFoundError:
                ports = {name: choose_port() for name in self.port_names}
                self._ports_file.parent.mkdir(parents=True, exist_ok=True)
                self._write_ports(ports)
            return {name: int(ports[name]) for name in self.port_names}

    def _write_ports(self, ports: dict[str, int]) -> None:
        self._ports_file.write_text(json.dumps(ports))

    @property
    def _served_file(self) -> Path:
        return self._ports_file.with_name(f"{self.name}.served")

    @property
    def _served(self) -> bool:
        """Whether it ever answered on its port: from then on others know the port."""
        return self._served_file.exists()

    @_served.setter
    def _served(self, value: bool) -> None:
        if value and not self._served:
            self._served_file.touch()

    def _answers_as_ours(self) -> bool:
        # What answers on the port of an ended process is a stranger.
        return self.is_running and self._answers() and self.is_running

    def _port_was_taken(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().lower()
        taken = b"address already in use" in text or b"failed to bind" in text
        return taken or not all(is_free(port) for port in self._ports().values())

    def _log_tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").splitlines()[-15:]
        return f" The end of {self.log}:\n" + "\n".join(f"  {line}" for line in lines)

    def _identity(self) -> tuple[int, str] | None:
        with suppress(FileNotFoundError):
            pid, _, born = self._pid_file.read_text().strip().partition(" ")
            if born:
                return int(pid), born
        return None

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None

    def _forget(self) -> None:
        self._reap()
        self._pid_file.unlink(missing_ok=True)


def clean_environment(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Our environment without the variables that would change what the server does."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
