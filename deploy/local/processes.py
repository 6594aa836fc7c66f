"""Processes: who they are, their whole tree, and a guardian that ends them with their owner.

Run as a script this file is the guardian (see `guard`). It uses the standard library only, so that it starts in a few
milliseconds and needs nothing on its path.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Launch:
    """How one program is started."""

    command: list[str]
    log: str  # stdout and stderr are appended here
    folder: str  # working directory
    environment: dict[str, str]
    user: int | None = None  # run as this uid and `group`; None: as ourselves
    group: int | None = None
    orphan_signal: int = signal.SIGKILL  # sent when the owner is gone
    orphan_folders: list[str] = field(default_factory=list)  # removed when the owner is gone


def spawn(launch: Launch, *, orphan_signal: int | None = None) -> subprocess.Popen[bytes]:
    """Start the program in a session of its own, without a terminal and without any of our open files.

    With `orphan_signal` the kernel sends that signal to it when the calling thread dies; only a guardian may ask for
    this, because in a program with threads the wrong thread may end first.
    """

    def die_with_parent() -> None:
        # Runs after the change of user, which would clear the setting.
        if orphan_signal is not None and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, orphan_signal)

    with Path(launch.log).open("ab") as log:
        return subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=launch.folder,
            env=launch.environment,
            start_new_session=True,
            preexec_fn=None if orphan_signal is None else die_with_parent,  # noqa: PLW1509 - a guardian has one thread
            user=launch.user,
            group=launch.group,
            extra_groups=None if launch.user is None else [],
        )


def spawn_guarded(launch: Launch) -> tuple[subprocess.Popen[bytes], int]:
    """Start the program under a guardian; return the guardian and the program's pid.

    The guardian holds the other end of a pipe of ours: whatever way we end, `kill -9` included, the pipe closes and
    the guardian ends the program and its children. If the guardian itself is killed, the kernel ends the program.
    """
    guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert guardian.stdin is not None and guardian.stdout is not None  # noqa: S101, PT018 - for the type checker
    # Not as an argument: those are public, and the environment holds passwords.
    guardian.stdin.write(json.dumps(asdict(launch)).encode() + b"\n")
    guardian.stdin.flush()
    first_line = guardian.stdout.readline()
    guardian.stdout.close()
    if not first_line:
        guardian.stdin.close()
        guardian.wait()
        raise OSError(f"{launch.command[0]} could not be started, see {launch.log}")
    return guardian, int(first_line)


def guard(launch: Launch) -> int:
    """Run the program until it ends or standard input closes; in the second case end its whole tree."""
    # Ctrl-C at a terminal is for the owner, who decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = spawn(launch, orphan_signal=launch.orphan_signal)
    print(program.pid, flush=True)
    os.close(1)
    while program.poll() is None:
        readable, _, _ = select.select([0, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 512)
        if 0 in readable and not os.read(0, 512):
            end_tree(program, launch.orphan_signal)
            for folder in launch.orphan_folders:
                shutil.rmtree(folder, ignore_errors=True)
    return 0


def end_tree(program: subprocess.Popen[bytes], signal_number: int) -> None:
    """Send the signal to the program, wait up to 5 s for it, then SIGKILL what is left of its tree."""
    tree = [program.pid, *descendants(program.pid)]
    signal_all([program.pid], signal_number)
    signal_all(tree, signal.SIGCONT)  # it may be paused
    with suppress(subprocess.TimeoutExpired):
        program.wait(5)
    signal_all([pid for pid in tree if pid != program.pid], signal.SIGKILL)
    program.kill()
    program.wait()


def signal_all(pids: list[int], signal_number: int) -> None:
    """Signal each process that still exists."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, parents first.

    Process groups would not do: PostgreSQL's backends leave theirs.
    """
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    queue = [pid]
    while queue:
        next_ones = children.get(queue.pop(0), [])
        found += next_ones
        queue += next_ones
    return found


def birth(pid: int) -> str | None:
    """Something that never changes for this process and differs for another one that gets its pid; None: not running.

    A zombie, ended but not yet waited for, is not running.
    """
    if not Path("/proc/self/stat").exists():
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, started = shown.stdout.strip().partition(" ")
        return None if not started or state.startswith("Z") else started.strip()
    fields = _stat(pid)
    # Field 22 of proc(5), counted from the state (field 3): clock ticks between boot and its start.
    return None if fields is None or fields[0] in "ZX" else fields[19]


def wait_gone(pid: int, born: str, timeout: float) -> bool:
    """Wait until that process has ended; False if it still runs after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while birth(pid) == born:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _parents() -> list[tuple[int, int]]:
    if not Path("/proc/self/stat").exists():
        shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        return [(int(line.split()[0]), int(line.split()[1])) for line in shown.stdout.splitlines()]
    pairs = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) is not None:
            pairs.append((int(name), int(fields[1])))
    return pairs


def _stat(pid: int) -> list[str] | None:
    try:
        # The command's name, in parentheses, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


if __name__ == "__main__":
    # Unbuffered, so that nothing but the end of the pipe is left to read.
    with open(0, "rb", buffering=0, closefd=False) as lifeline:
        received = Launch(**json.loads(lifeline.readline()))
    sys.exit(guard(received))
