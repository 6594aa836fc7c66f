"""Programs that are measured: started with a scene's settings, watched, and ended with the scene."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.local.ports import choose_port
from tests.bench.bed import Scene, merged, wait_until

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Program:
    """A Python program as a process of its own, its output in a file."""

    def __init__(self, scene: Scene, arguments: Sequence[str], environment: Mapping[str, str], name: str) -> None:
        self.log = scene.folder / f"{name}-{scene.number}-{time.monotonic_ns()}.log"
        with self.log.open("ab") as stream:
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, *arguments], env=merged(environment), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream,
            )  # fmt: skip
        scene.cleanup.callback(self.stop)

    def stop(self) -> None:
        """SIGTERM; SIGKILL if that does not help."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def check(self) -> None:
        """Raises RuntimeError, with the end of its output, when it has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"the process ended with {code}:\n{self.log.read_text()[-2000:]}")

    @property
    def cpu_seconds(self) -> float:
        """Of user and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, name: str = "VmRSS") -> float:
        """Resident now (VmRSS) or at most so far (VmHWM), in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(each for each in status.splitlines() if each.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024


class ConsumerProgram(Program):
    """`cfo-sync run`."""

    def __init__(self, scene: Scene, environment: Mapping[str, str] | None = None) -> None:
        self.port = choose_port()
        port = {"CFO_SYNC_METRICS_PORT": str(self.port), "CFO_SYNC_METRICS_HOST": "127.0.0.1"}
        super().__init__(scene, ["-m", "consumer", "run"], {**scene.environment, **(environment or {}), **port}, "run")

    def wait_ready(self, timeout: float = 30) -> float:
        """Until it consumes; gives the seconds since its start."""

        def is_ready() -> bool:
            self.check()
            return bool(self.readiness().get("ready"))

        wait_until(is_ready, "the consumer to be ready", timeout, every=0.01)
        return time.monotonic() - self.started

    def readiness(self) -> dict[str, Any]:
        """What /readyz says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                return dict(json.load(error))
        except OSError:
            return {}
