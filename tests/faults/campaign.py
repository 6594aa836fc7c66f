"""A pipeline of its own on real servers, a workload on it, faults by a schedule, and the checker's verdict."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo

from consumer.settings import load
from deploy.local.connector import delete_connector
from deploy.local.downloads import REPOSITORY
from deploy.local.ports import LOOPBACK, choose_port
from deploy.local.preparation import connector_definition, prepare
from deploy.local.stack import Stack
from tests import roles
from tests.faults import checker, schedule
from tests.faults.injectors import Injectors
from tests.faults.proxy import Proxy
from tests.faults.reading import Reader
from tests.faults.schedule import Planned
from tests.faults.workload import Workload

Layout: TypeAlias = Literal["one-database", "two-databases"]
DISTURBED: Final = ("sqlstate-55p03", "sqlstate-40p01", "sqlstate-57014", "row-locked")
RETRY_DELAYS: Final = "2s,4s,6s"
_NEVER: Final = "1d"
_SHUTDOWN_SECONDS: Final = 30


class ProxiedStack(Stack):
    """A stack whose broker can be reached by a proxy too: clients of that way are sent back to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, detached=False)
        self.kafka.settle_ports()
        self.proxied_port, self.proxy_port = choose_port(), choose_port()
        own, controller = self.kafka.port, self.kafka.controller_port
        listeners = f"PLAINTEXT://{LOOPBACK}:{own},PROXIED://{LOOPBACK}"
        self.kafka.properties = {
            "listeners": f"{listeners}:{self.proxied_port},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"{listeners}:{self.proxy_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        }


class Replica:
    """One `cfo-sync run`, started anew by the campaign only. Whatever else ends it is a violation."""

    def __init__(self, number: int, environment: Mapping[str, str], log: Path, spawner: ThreadPoolExecutor) -> None:
        self.number = number
        self.log = log
        self.unexpected: list[str] = []
        self.overrides: dict[str, str] = {}  # settings of every start from now on
        self._environment = environment
        self._spawner = spawner
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, *, skew: float = 0) -> None:
        """Start it, with a clock that is so many seconds ahead."""
        # Always by the same thread, which lives as long as the campaign: Linux ends the child with that thread.
        self._process = self._spawner.submit(self._spawn, skew).result()

    def _spawn(self, skew: float) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.replica"],
                cwd=REPOSITORY,
                env={**os.environ, **self._environment, **self.overrides, "CFO_SYNC_TEST_CLOCK_SKEW": str(skew)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; it must leave in order."""
        self._end(signal.SIGTERM, 0)

    def _end(self, number: int, expected: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if (ended := process.poll()) is None:
            process.send_signal(number)
            try:
                ended = process.wait(_SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.unexpected.append(f"replica {self.number} did not obey signal {number} for {_SHUTDOWN_SECONDS} s")
                return
        # A signal that comes before Python has installed its handler ends the process by its default.
        if ended not in (expected, -number):
            self.unexpected.append(f"replica {self.number} ended with exit code {ended}: {self._last_words()}")

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def pause(self) -> None:
        """SIGSTOP."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def sample(self) -> dict[str, int] | None:
        """What it takes now: memory in KiB, file descriptors, threads."""
        if (pid := self.pid) is None:
            return None
        try:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
            )
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, ValueError):
            return None
        if "VmRSS" not in status:
            return None
        return {
            "pid": pid,
            "rss_kib": int(status["VmRSS"].split()[0]),
            "descriptors": descriptors,
            "threads": int(status["Threads"]),
        }


class Pipeline:
    """Databases, topics, a connector, proxies and three replicas (and a spare one) of one campaign."""

    def __init__(
        self,
        stack: ProxiedStack,
        folder: Path,
        layout: Layout,
        *,
        retry_delays: str = RETRY_DELAYS,
        max_skew: float = 20,
    ) -> None:
        self.stack = stack
        self.layout = layout
        self.max_skew = max_skew
        self._began = time.monotonic()
        name = f"campaign_{layout.replace('-', '_')}"
        self.connector, self.slot = f"campaign-{layout}", f"slot_{name}"
        self.consumer_role = roles.CONSUMER
        self.proxies = {
            "postgres": Proxy(choose_port(), stack.postgres.port),
            "kafka": Proxy(stack.proxy_port, stack.proxied_port),
        }
        postgres = stack.postgres
        self.invoice_dsn = self.cfo_dsn = postgres.dsn(name)
        changes = {
            "slot.name": self.slot,
            "topic.prefix": name,
            "database.dbname": name,
            "database.user": roles.DEBEZIUM,
        }
        self.connector_config = connector_definition(self.connector, changes)["config"]
        settings = {
            "CFO_SYNC_SOURCE_TOPIC": f"{name}.public.crypto_invoices",
            "CFO_SYNC_GROUP_ID": name,
            "CFO_SYNC_TOPIC_PREFIX": name,
            "CFO_SYNC_RETRY_DELAYS": retry_delays,
            "CFO_SYNC_SWEEP_INTERVAL": _NEVER,
            "CFO_SYNC_LOG_FORMAT": "json",
        }
        environment = prepare(
            stack,
            dbname=name,
            connector_name=self.connector,
            connector_config=changes,
            settings=settings,
            grant=roles.create_roles,
        )
        if layout == "two-databases":
            postgres.create_database(f"{name}_cfo")
            self.cfo_dsn = postgres.dsn(f"{name}_cfo")
            with psycopg.connect(self.cfo_dsn) as connection:
                connection.execute((REPOSITORY / "schemas/reference/cfo_ledger.sql").read_bytes())
            with psycopg.connect(self.invoice_dsn) as connection:
                connection.execute("DROP TABLE transactions")
        roles.create_roles(self.cfo_dsn, roles.CFO_DATABASE)
        with psycopg.connect(self.invoice_dsn) as connection:
            connection.execute((Path(__file__).parent / "history.sql").read_bytes())
        environment["CFO_SYNC_INVOICE_DSN"] = self._as_consumer(self.invoice_dsn)
        if layout == "two-databases":
            environment["CFO_SYNC_CFO_DSN"] = self._as_consumer(self.cfo_dsn)
        direct = {
            name.removeprefix("CFO_SYNC_").lower(): value
            for name, value in environment.items()
            if name.startswith("CFO_SYNC_")
        }
        self.settings = load(_env_file=None, **direct)
        environment["CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"] = f"{LOOPBACK}:{self.proxies['kafka'].port}"
        self._spawner = ThreadPoolExecutor(1)
        self.replicas, self.spare = [], self._replica(9, environment, folder)
        self.replicas = [self._replica(number, environment, folder) for number in range(1, schedule.REPLICAS + 1)]

    def _replica(self, number: int, environment: Mapping[str, str], folder: Path) -> Replica:
        own = dict(environment) | {"CFO_SYNC_METRICS_PORT": "0"}
        return Replica(number, own, folder / f"{self.layout}-replica-{number}.log", self._spawner)

    def _as_consumer(self, dsn: str) -> str:
        """The role that is shipped for the consumer, through the proxy."""
        return make_conninfo(roles.as_role(self.consumer_role, dsn), port=self.proxies["postgres"].port)

    def clock(self) -> float:
        """Seconds since the faults began."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """The clock starts now."""
        self._began = time.monotonic()

    def lag(self) -> int:
        """Records that the group has not committed, markers of transactions among them."""
        with Reader(self.settings) as reader:
            committed = reader.committed(reader.partitions(self.settings.consumed_topics))
            return sum(high - max(low, committed[key]) for key, (low, high) in reader.bounds(committed).items())

    def close(self) -> None:
        """End all that is this campaign's alone."""
        for replica in (*self.replicas, self.spare):
            replica.resume()
            replica.kill()
        self._spawner.shutdown()
        for proxy in self.proxies.values():
            proxy.close()
        delete_connector(self.stack.connect.url, self.connector)


@dataclass(slots=True)
class Report:
    """What a campaign did, and what came of it."""

    layout: str
    seed: int
    rate: float
    every: float
    planned_seconds: float
    machine: dict[str, Any]
    began: str
    schedule: list[dict[str, Any]]
    injected: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0
    faults: dict[str, int] = field(default_factory=dict)
    workload: dict[str, int] = field(default_factory=dict)
    phases: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    violations: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All of it, as it is written down."""
        return asdict(self)


def run(
    stack: ProxiedStack,
    folder: Path,
    layout: Layout,
    *,
    seed: int,
    rate: float,
    every: float,
    seconds: float,
    plan: Sequence[Planned],
    losses: Sequence[Planned] = (),
    retry_delays: str = RETRY_DELAYS,
    audit_every: float = 120,
    say: Any = print,
) -> Report:
    """Run both phases and check after each: outages with the sweep off, then losses with the sweep on."""
    report = Report(layout, seed, rate, every, seconds, _machine(), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", [
        each.as_json() for each in (*plan, *losses)
    ])  # fmt: skip
    pipeline = Pipeline(stack, folder, layout, retry_delays=retry_delays)
    began = time.monotonic()
    try:
        _Campaign(pipeline, report, say, audit_every).run(seconds, plan, losses)
    finally:
        report.seconds = round(time.monotonic() - began, 1)
        report.faults = dict(sorted(Counter(each["kind"] for each in report.injected).items()))
        pipeline.close()
    return report


class _Campaign:
    def __init__(self, pipeline: Pipeline, report: Report, say: Any, audit_every: float) -> None:
        self._pipeline = pipeline
        self._report = report
        self._say = say
        self._audit_every = audit_every
        self._injectors = Injectors(pipeline)
        self._samples: list[dict[str, Any]] = []
        self._over = threading.Event()

    def run(self, seconds: float, plan: Sequence[Planned], losses: Sequence[Planned]) -> None:
        pipeline, seed, rate = self._pipeline, self._report.seed, self._report.rate
        for replica in pipeline.replicas:
            replica.start()
        with self._sampling():
            self._phase("outages", Workload(pipeline.invoice_dsn, pipeline.cfo_dsn, seed, rate), plan, seconds)
        self._report.resources = _resources(self._samples)
        if losses:
            for replica in pipeline.replicas:
                replica.overrides = {"CFO_SYNC_SWEEP_INTERVAL": "3s", "CFO_SYNC_SWEEP_GRACE": "5s"}
                replica.stop()
                replica.start()
            gentle = Workload(pipeline.invoice_dsn, pipeline.cfo_dsn, seed + 100, min(rate, 50))
            self._phase("losses", gentle, losses, losses[-1].at + 10)

    def _phase(self, name: str, workload: Workload, plan: Sequence[Planned], seconds: float) -> None:
        self._say(f"{self._pipeline.layout}: {name}, {len(plan)} faults")
        began = time.monotonic()
        workload.start()
        self._inject(plan)
        time.sleep(max(0.0, seconds - self._pipeline.clock()))
        self._say(f"{self._pipeline.layout}: the faults are over after {time.monotonic() - began:.0f} s")
        workload.stop()
        self._report.workload = dict(sorted((Counter(self._report.workload) + workload.counts).items()))
        patience = 300
        quiet = self._wait_quiet(patience)
        if quiet is None:
            self._violation("not-quiet", f"after {patience} s {self._unfinished()}")
        unexpected = [
            each for replica in (*self._pipeline.replicas, self._pipeline.spare) for each in replica.unexpected
        ]
        for each in unexpected:
            self._violation("needed-a-human", each)
        for replica in self._pipeline.replicas:
            if replica.pid is None:
                self._violation("needed-a-human", f"replica {replica.number} is gone")
        verdict = checker.check(
            self._pipeline.settings,
            invoice_dsn=self._pipeline.invoice_dsn,
            cfo_dsn=self._pipeline.cfo_dsn,
            max_skew=2 * self._pipeline.max_skew,
            lost=self._injectors.lost,
            disturbed=DISTURBED,
        )
        for found in verdict.violations:
            self._violation(found.kind, found.detail)
        self._report.phases.append(
            {
                "name": name,
                "seconds": round(time.monotonic() - began, 1),
                "quiet_after_seconds": quiet,
                "counts": verdict.counts,
                "violations": len(verdict.violations),
            }
        )
        self._say(f"{self._pipeline.layout}: {name}: {len(self._report.violations)} violations, {verdict.counts}")

    def _inject(self, plan: Sequence[Planned]) -> None:
        self._pipeline.begin()
        next_audit = self._audit_every
        running: list[Future[None]] = []
        with ThreadPoolExecutor(32) as pool:
            for planned in plan:
                time.sleep(max(0.0, planned.at - self._pipeline.clock()))
                running.append(pool.submit(self._do, planned))
                if self._pipeline.clock() > next_audit:
                    next_audit += self._audit_every
                    pool.submit(self._audit)
        for each in running:
            each.result()

    def _do(self, planned: Planned) -> None:
        try:
            self._report.injected.append(self._injectors.inject(planned))
        except Exception as error:
            traceback.print_exc()
            self._violation("not-injected", f"{planned.kind} at {planned.at} s: {error!r}")

    def _audit(self) -> None:
        """While everything works: no offset is ahead of what the database and the topics hold."""
        with self._injectors.having("postgres", "kafka"):
            found = checker.audit_offsets(self._pipeline.settings, invoice_dsn=self._pipeline.invoice_dsn)
        for each in found:
            self._violation(each.kind, f"during the campaign: {each.detail}")
        self._report.resources["audits"] = self._report.resources.get("audits", 0) + 1

    def _violation(self, kind: str, detail: str) -> None:
        self._say(f"VIOLATION {kind}: {detail}")
        self._report.violations.append({"kind": kind, "detail": detail})

    def _wait_quiet(self, patience: float) -> float | None:
        """Until the group has committed everything and no invoice waits; seconds that took, None if it never came."""
        began = time.monotonic()
        while (spent := time.monotonic() - began) < patience:
            if self._pipeline.lag() == 0 and not self._unfinished():
                return round(spent, 1)
            time.sleep(0.5)
        return None

    def _unfinished(self) -> list[Any]:
        with psycopg.connect(self._pipeline.invoice_dsn) as connection:
            return connection.execute(
                "SELECT i.id, i.status, s.sync_status, s.sync_error FROM crypto_invoices i"
                " LEFT JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id"
                " WHERE (i.status = 'paid' AND s.sync_status IS DISTINCT FROM 'failed') OR s.sync_status = 'retry'"
                " ORDER BY i.id LIMIT 5"
            ).fetchall()

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample, name="sampling", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(5):
            sample: dict[str, Any] = {"at": round(self._pipeline.clock(), 1)}
            for replica in self._pipeline.replicas:
                sample[f"replica-{replica.number}"] = replica.sample()
            try:
                with psycopg.connect(self._pipeline.stack.postgres.superuser_dsn(), connect_timeout=2) as connection:
                    row = connection.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cfo-sync'"
                    ).fetchone()
                    sample["connections"] = row[0] if row else None
            except psycopg.Error:
                sample["connections"] = None
            self._samples.append(sample)


def _resources(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the replica that nobody killed took: first, middle and last third of its life, and the peaks."""
    found: dict[str, Any] = {}
    lives = [each["replica-1"] for each in samples if each["replica-1"]]
    if lives:
        third = max(1, len(lives) // 3)
        found["survivor"] = {
            "processes": len({each["pid"] for each in lives}),
            "samples": len(lives),
            **{
                name: {
                    "first_third": _middle([each[name] for each in lives[:third]]),
                    "middle_third": _middle([each[name] for each in lives[third : 2 * third] or lives]),
                    "last_third": _middle([each[name] for each in lives[-third:]]),
                    "peak": max(each[name] for each in lives),
                }
                for name in ("rss_kib", "descriptors", "threads")
            },
        }
    connections = [each["connections"] for each in samples if each.get("connections") is not None]
    if connections:
        found["connections"] = {"median": _middle(connections), "peak": max(connections)}
    return found


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def _machine() -> dict[str, Any]:
    return {"system": platform.system(), "cores": os.cpu_count(), "python": platform.python_version()}
