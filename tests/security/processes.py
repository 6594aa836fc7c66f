"""`cfo-sync` as its users run it: what it says, and that it never says a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.local.ports import choose_port
from tests.e2e.harness import wait_until


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end; neither a traceback nor a secret is in what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        env=os.environ | dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert "secret-of-" not in done.stdout + done.stderr
    return done


class Process:
    """`cfo-sync run` or `cfo-sync api`."""

    def __init__(self, command: str, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.port = choose_port()
        ports = dict.fromkeys(("CFO_SYNC_METRICS_PORT", "CFO_SYNC_API_PORT"), str(self.port))
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumer", command],
                env=os.environ | dict(environment) | ports,
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip

    def get(self, path: str) -> str:
        """What it answers, well or not; empty while it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read(), "utf-8")
        except OSError:
            return ""

    def ready(self) -> dict[str, Any]:
        """What /readyz says; empty while it does not."""
        return dict(json.loads(self.get("/readyz") or "{}"))

    def wait_ready(self) -> None:
        """Until it works."""
        wait_until(lambda: self.ready().get("ready"), "readiness", 40)

    def wait_hold(self, reason: str, *named: str) -> None:
        """Until it holds for this reason, and names these things."""

        def holds() -> bool:
            ready = self.ready()
            return ready.get("hold") == reason and all(each in ready["detail"] for each in named)

        wait_until(holds, f"hold {reason} with {named}", 40)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log with this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]
