"""`python -m deploy.local up|down|status|clean|demo|lock`, as the Makefile runs it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from deploy.local.downloads import REPOSITORY, locked, write_locks
from deploy.local.errors import StackError
from deploy.local.preparation import prepare
from deploy.local.stack import Stack

_FOLDER = REPOSITORY / ".local"


def main() -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    commands = {"up": up, "down": down, "status": status, "clean": clean, "demo": demo, "lock": lock}
    parser.add_argument("command", choices=commands)
    # Make ends its children with SIGTERM: clean up as for Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return commands[parser.parse_args().command]()
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def up() -> int:
    """Start the stack of this clone in the background and prepare everything but the consumer."""
    stack = Stack(_FOLDER, detached=True)
    began = time.monotonic()
    with locked(_FOLDER / "run" / "up.lock", "another make up is under way"):
        print("starting PostgreSQL, Kafka and Kafka Connect", flush=True)
        stack.up()
        print("creating tables, topics and the connector", flush=True)
        prepare(stack)
        file = stack.write_environment()
    _show(stack)
    settings = file.relative_to(REPOSITORY)
    print(f"ready after {time.monotonic() - began:.0f} s. Settings: {settings}, logs: .local/logs")
    print(f"use it: set -a; . {settings}; set +a; .venv/bin/cfo-sync check")
    return 0


def down() -> int:
    """Stop it; the data stays."""
    if _FOLDER.exists():
        Stack(_FOLDER, detached=True).down()
    print("the stack is down")
    return 0


def status() -> int:
    """Show what runs. To look is no failure: 0 also when nothing does."""
    if not _FOLDER.exists():
        print("not running: there is no stack here; make up starts one")
    elif not _show(Stack(_FOLDER, detached=True)):
        print("not running, or not all of it; make up starts it")
    return 0


def clean() -> int:
    """Stop it and delete its data."""
    Stack(_FOLDER, detached=True).remove()
    print("the stack and its data are gone")
    return 0


def demo() -> int:
    """Play the story on a stack of its own, and remove that stack in any case; the exit code is the story's."""
    with tempfile.TemporaryDirectory(prefix="cfo-sync-demo-") as folder:
        stack = Stack(Path(folder) / "stack", detached=False)
        try:
            print("starting PostgreSQL, Kafka and Kafka Connect", flush=True)
            stack.up()
            print("creating tables, topics and the connector", flush=True)
            environment = prepare(stack)
            command = [sys.executable, "-m", "consumer", "demo"]
            with subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment) as story:
                try:
                    return story.wait()
                except KeyboardInterrupt:
                    story.terminate()
                    raise
        finally:
            stack.remove()


def lock() -> int:
    """Write the locks of the Java parts."""
    write_locks()
    return 0


def _show(stack: Stack) -> bool:
    addresses = {
        "postgres": f"127.0.0.1:{stack.postgres.port}",
        "kafka": stack.kafka.bootstrap_servers,
        "connect": stack.connect.url,
    }
    for part in stack.parts:
        state = f"running, pid {part.pid}" if part.is_running else "stopped"
        print(f"  {part.title:<14} {addresses[part.name]:<24} {state}")
    return all(part.is_running for part in stack.parts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
