"""After the story: a consumer and the console, left running for people to look around."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Final

from rich.console import Console
from rich.text import Text

from consumer.demo.process import ConsumerProcess
from consumer.faults import Outage
from consumer.settings import PREFIX, Settings

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 12.0


def keep(settings: Settings, out: Console) -> None:
    """Run both until interrupted, and say where the console is. Raises `Outage` when it does not start."""
    port = settings.api_port or _free_port()
    url = f"http://{settings.api_host}:{port}/"
    with ConsumerProcess(settings) as consumer, consumer.log.open("ab") as log:
        api = subprocess.Popen(
            [sys.executable, "-m", "consumer", "api"],
            env=os.environ | {f"{PREFIX}API_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends both in order
        )
        try:
            _wait_for(api, settings.api_host, port, consumer)
            out.print()
            out.print(Text(f"The console: {url}"), soft_wrap=True)
            out.print(Text("It and a consumer run until Ctrl-C."), soft_wrap=True)
            api.wait()
        finally:
            api.terminate()
            try:
                api.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                api.kill()


def _wait_for(api: subprocess.Popen[bytes], host: str, port: int, consumer: ConsumerProcess) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, port), 2).close()
        except OSError:
            pass
        else:
            return
        if api.poll() is not None or time.monotonic() > deadline:
            raise Outage("console", "the console does not start:\n" + "\n".join(consumer.last_words()))
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
