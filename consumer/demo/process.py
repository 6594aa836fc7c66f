"""The consumer of the demo: `cfo-sync run` as a process of its own, which never outlives the demo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from consumer import mapping
from consumer.settings import PREFIX, Settings

# The same schedule as in production, in seconds.
RETRY_DELAYS: Final = "2s,4s,6s"
_LOOPBACK: Final = "127.0.0.1"
_STOP_SECONDS: Final = 10.0

# Linux ends the program with its parent, whatever way that ends. Set by a program between the two and not in a fork of
# ours: Kafka's clients have threads, and a fork of a program with threads may hang before it becomes another program.
_TETHERED: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "consumer", "run"])
"""


class ConsumerProcess:
    """Starts when entered, is stopped when left. `log` is the file that holds its JSON lines.

    The log is removed in the end, unless `keep_log` is set or an error ended the demo.
    """

    def __init__(self, settings: Settings) -> None:
        with socket.create_server((_LOOPBACK, 0)) as free:
            self.port: int = free.getsockname()[1]
        self._environment = os.environ | {PREFIX + name: value for name, value in _overrides(settings).items()}
        self._environment[f"{PREFIX}METRICS_PORT"] = str(self.port)
        handle, name = tempfile.mkstemp(prefix="cfo-sync-demo-", suffix=".log")
        os.close(handle)
        self.log = Path(name)
        self.keep_log = False
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TETHERED, str(os.getpid())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which stops its consumer in order
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        # Being interrupted is no error.
        if not self.keep_log and (kind is None or not issubclass(kind, Exception)):
            self.log.unlink(missing_ok=True)

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def health(self) -> dict[str, Any]:
        """What its /readyz says; `ready` is false while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{_LOOPBACK}:{self.port}/readyz", timeout=2) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as refusal:
            with refusal:
                return dict(json.load(refusal))
        except (OSError, ValueError):
            return {"ready": False}

    def stop(self) -> int:
        """SIGTERM, after ten seconds SIGKILL; gives the exit code, 0 when it left in order. Safe to call again."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            except BaseException:
                process.kill()
                raise
        return process.wait()

    def last_words(self, lines: int = 3) -> list[str]:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]


def _overrides(settings: Settings) -> dict[str, str]:
    """What the demo looks at, wherever its settings came from, and what makes the story short."""
    given = {
        "INVOICE_DSN": settings.invoice_dsn.get_secret_value(),
        "CFO_DSN": (settings.cfo_dsn or settings.invoice_dsn).get_secret_value(),
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "SOURCE_TOPIC": settings.source_topic,
        "GROUP_ID": settings.group_id,
        "TOPIC_PREFIX": settings.topic_prefix,
        # The guide's rules: the promises are about its tables.
        "MAPPING_FILE": str(mapping.DEFAULT_FILE),
        "RETRY_DELAYS": RETRY_DELAYS,
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "json",
        "METRICS_HOST": _LOOPBACK,
    }
    if settings.kafka_config_file is not None:
        given["KAFKA_CONFIG_FILE"] = str(settings.kafka_config_file.resolve())
    return given


def wait_ready(process: ConsumerProcess, timeout: float) -> bool:
    """Until it consumes from at least one partition; False when it ended, or took longer than `timeout` seconds.

    A replica of a larger group may be given none: then being ready is enough, after half the time.
    """
    began = time.monotonic()
    while process.exit_code is None and (spent := time.monotonic() - began) < timeout:
        health = process.health()
        if health["ready"] and (health.get("assigned_partitions") or spent > timeout / 2):
            return True
        time.sleep(0.05)
    return False
