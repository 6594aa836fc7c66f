"""The whole stack: PostgreSQL, Kafka, Kafka Connect."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.archives import make_archives
from deploy.local.connect import Connect
from deploy.local.downloads import locked
from deploy.local.errors import StackError
from deploy.local.kafka import Kafka
from deploy.local.part import Part
from deploy.local.ports import LOOPBACK, choose_port
from deploy.local.postgres import DATABASE, Postgres

PARTS = ("postgres", "kafka", "connect")
SOURCE_TOPIC = "invoicing.public.crypto_invoices"
GROUP_ID = "cfo-sync"


class Stack:
    """A stack that lives in `folder`: data, logs (`logs/*.log`) and what is needed to find it again.

    Not detached: every process ends when this Python process ends, even by `kill -9`; what it leaves is the logs.
    Detached: it lives until `down`, and any process that opens the same folder finds it.
    As a context manager it comes up on entry (all parts) and is removed on exit if not detached.
    """

    def __init__(self, folder: Path, *, detached: bool) -> None:
        self.folder = folder.absolute()
        self.detached = detached
        self.postgres = Postgres(self.folder, detached=detached)
        self.kafka = Kafka(self.folder, detached=detached)
        self.connect = Connect(self.folder, detached=detached, kafka=self.kafka, postgres=self.postgres)

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order of their dependencies."""
        return self.postgres, self.kafka, self.connect

    def up(self, parts: Iterable[str] = PARTS, *, timeout: float = 90) -> None:
        """Start what does not run and wait until every one of `parts` answers.

        Connect brings Kafka along. A part that runs but does not answer within 15 s is started anew. Raises
        StackError, and then a stack that is not detached is down again.
        """
        wanted = set(parts)
        if unknown := wanted - set(PARTS):
            raise ValueError(f"no such part: {', '.join(sorted(unknown))}")
        if "connect" in wanted:
            wanted.add("kafka")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # passwords
        if not self.detached:
            atexit.unregister(self._abandon)
            atexit.register(self._abandon, os.getpid())
        try:
            self._prepare(wanted)
            with locked(self.folder / "run" / "lock", f"another run is starting or stopping {self.folder}"):
                self._start([part for part in self.parts if part.name in wanted], timeout)
        except BaseException:
            if not self.detached:
                self.down()
            raise

    def down(self) -> None:
        """Stop every process. A detached stack ends in order and keeps its data; another one is simply ended."""
        with locked(self.folder / "run" / "lock", f"another run is starting or stopping {self.folder}"):
            # Connect first: it writes to the other two.
            if self.detached:
                self.connect.stop()
            else:
                self.connect.kill()
                self.kafka.kill()
            with ThreadPoolExecutor() as pool:
                for stopping in [pool.submit(part.stop) for part in (self.kafka, self.postgres)]:
                    stopping.result()

    def remove(self) -> None:
        """`down`, and delete the data, the logs and the folder."""
        if self.folder.exists():
            self.down()
            self.postgres.remove()
            shutil.rmtree(self.folder)

    def environment(self, dbname: str = DATABASE) -> dict[str, str]:
        """CFO_SYNC_* settings for this stack (single-database layout, owner role, ports kept), and CONNECT_URL."""
        ports = self._consumer_ports()
        return {
            "CFO_SYNC_INVOICE_DSN": self.postgres.dsn(dbname),
            "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "CFO_SYNC_SOURCE_TOPIC": SOURCE_TOPIC,
            "CFO_SYNC_GROUP_ID": GROUP_ID,
            "CFO_SYNC_TOPIC_PREFIX": "cfo-sync",
            "CFO_SYNC_RETRY_DELAYS": "1m,5m,15m",
            "CFO_SYNC_SWEEP_INTERVAL": "5m",
            "CFO_SYNC_API_HOST": LOOPBACK,
            "CFO_SYNC_API_PORT": str(ports[0]),
            "CFO_SYNC_METRICS_HOST": LOOPBACK,
            "CFO_SYNC_METRICS_PORT": str(ports[1]),
            "CFO_SYNC_LOG_LEVEL": "INFO",
            "CFO_SYNC_LOG_FORMAT": "human",
            "CONNECT_URL": self.connect.url,
        }

    def write_environment(self) -> Path:
        """Write `environment()` to the file `env` of the folder, fit for a shell's `.`; return the file's path."""
        path = self.folder / "env"
        new = path.with_name("env.new")
        new.touch(mode=0o600)
        new.write_text("".join(f"{name}={value}\n" for name, value in self.environment().items()))
        os.replace(new, path)
        return path

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.detached:
            self.remove()

    def _prepare(self, wanted: set[str]) -> None:
        """What the parts share; called before every start."""
        if "kafka" in wanted:
            make_archives()

    def _start(self, parts: list[Part], timeout: float) -> None:
        for part in parts:
            part.settle_ports()  # before Connect is told Kafka's
        bootstrap_servers = self.kafka.bootstrap_servers
        with ThreadPoolExecutor() as pool:
            for starting in [pool.submit(_bring_up, part, timeout) for part in parts]:
                starting.result()
        if self.connect in parts and self.kafka.bootstrap_servers != bootstrap_servers:
            self.connect.kill()  # Kafka had to take another port
            _bring_up(self.connect, timeout)

    def _abandon(self, owner: int) -> None:
        """What the guardians do for running servers, done also for data whose servers are down already."""
        if os.getpid() == owner:  # not in a fork
            for part in self.parts:
                part.kill()
            self.postgres.remove()

    def _consumer_ports(self) -> list[int]:
        path = self.folder / "run" / "consumer.ports"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{choose_port()} {choose_port()}")
        return [int(port) for port in path.read_text().split()]


def _bring_up(part: Part, timeout: float) -> None:
    if part.is_running:
        part.resume()
        try:
            part.wait_ready(15)
        except StackError:
            part.kill()
        else:
            return
    part.start()
    part.wait_ready(timeout)
