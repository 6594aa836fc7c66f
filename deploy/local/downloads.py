"""The Java parts of the stack: fetched once per clone with jgo, checked against the committed lock before each use."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import tempfile
import threading
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.errors import StackError

if TYPE_CHECKING:
    # Imported where it is used: once everything is downloaded nobody waits for it.
    from jgo.maven import MavenContext

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"
_SPECIFICATIONS = Path(__file__).parent / "java"
_PARTS = ("kafka", "debezium")
_OPTIONAL_PARTS = ("jdbc-sink",)  # fetched only by what asks for them
_ATTEMPTS = 3
_CONNECTIONS = 6


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of a lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class JavaParts:
    """Folders that hold exactly the jars of the lock, each with its hash checked."""

    kafka: Path  # class path of the broker and of the Connect worker
    debezium: Path  # a Connect plugin


def fetch() -> JavaParts:
    """Return the jars, downloading what is missing or damaged.

    Safe to call from several processes of one clone: they take turns.
    Raises StackError, naming the file, when a download fails or does not have the locked hash.
    """
    return JavaParts(**_fetch(_PARTS))


def fetch_optional(part: str) -> Path:
    """The folder of a part that the stack itself does not need, fetched and checked like the others."""
    return _fetch((part,))[part]


def _fetch(parts: Sequence[str]) -> dict[str, Path]:
    with locked(CACHE / "lock", "another run is downloading into .cache"):
        for interrupted in (CACHE / "java").glob("download-*"):
            shutil.rmtree(interrupted)
        return {part: _fetch_part(part) for part in parts}


def write_locks() -> None:
    """Resolve the jgo.toml files anew and write their locks: for a developer who changed a version."""
    _quiet_import()
    from jgo.env import EnvironmentBuilder, EnvironmentSpec, LockFile, compute_spec_hash

    for part in (*_PARTS, *_OPTIONAL_PARTS):
        specification = _SPECIFICATIONS / part / "jgo.toml"
        with tempfile.TemporaryDirectory() as repository:
            context = _context(Path(repository), _Progress(None))
            spec = EnvironmentSpec.load(specification)
            dependencies = EnvironmentBuilder(context, cache_dir=Path(repository)).spec_to_dependencies(spec)
            inputs, transitive = context.resolver.resolve(dependencies)
            lock = LockFile.from_resolved_dependencies(
                [*inputs, *transitive],
                environment_name=spec.name,
                java_version=spec.java_version,
                spec_hash=compute_spec_hash(specification),
            )
            lock.save(specification.with_name("jgo.lock.toml"))
        print(f"{part}: {len(lock.dependencies)} jars locked")


@contextmanager
def locked(path: Path, held_by: str) -> Iterator[None]:
    """Hold an exclusive lock on the file; say once why we wait if somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting: {held_by}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_part(part: str) -> Path:
    folder = _SPECIFICATIONS / part
    lock_file = folder / "jgo.lock.toml"
    jars = _read_lock(lock_file, folder / "jgo.toml")
    # The folder's name follows the lock, so a clone that changes branches keeps both sets.
    target = CACHE / "java" / f"{part}-{_digest(lock_file)[:12]}"
    target.mkdir(parents=True, exist_ok=True)
    names = {jar.file_name for jar in jars}
    for stray in target.iterdir():
        if stray.name not in names:  # a class path takes every jar in the folder
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    missing = []
    for jar in jars:
        path = target / jar.file_name
        if path.exists() and _digest(path) != jar.sha256:
            print(f"{path.name} in .cache is damaged (wrong sha256): fetching it again", file=sys.stderr, flush=True)
            path.unlink()
        if not path.exists():
            missing.append(jar)
    if missing:
        _download(part, missing, target)
    return target


def _read_lock(lock_file: Path, specification: Path) -> list[Jar]:
    lock = tomllib.loads(lock_file.read_text())
    if lock["metadata"]["spec_hash"] != _digest(specification)[:16]:
        raise StackError(f"{specification.relative_to(REPOSITORY)} was changed without its lock. Run: make lock")
    return [Jar(one["groupId"], one["artifactId"], one["version"], one["sha256"]) for one in lock["dependencies"]]


def _download(part: str, jars: list[Jar], target: Path) -> None:
    _quiet_import()
    progress = _Progress(f"downloading {part}: {{done}} of {len(jars)} jars, {{megabytes:.0f}} MB")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as repository:
        context = _context(Path(repository), progress)

        def download(jar: Jar) -> None:
            _download_one(context, jar, target)
            progress.count()

        # The first failure cancels what has not begun.
        pool = ThreadPoolExecutor(_CONNECTIONS)
        try:
            for future in [pool.submit(download, jar) for jar in jars]:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            progress.end()


def _download_one(context: MavenContext, jar: Jar, target: Path) -> None:
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2**attempt)
        try:
            path = artifact.resolve()
        except Exception as error:  # jgo raises RuntimeError, requests its own: all mean "not fetched"
            problem = f"{type(error).__name__}: {error}"
        else:
            if _digest(path) == jar.sha256:
                path.replace(target / jar.file_name)
                return
            problem = "what came does not have the locked sha256"
        if artifact.cached_path is not None:
            artifact.cached_path.unlink(missing_ok=True)
    raise StackError(
        f"could not download {jar.file_name} ({jar.group}:{jar.artifact}:{jar.version}) "
        f"after {_ATTEMPTS} attempts: {problem}\n"
        "What was fetched so far is kept. Check the network (HTTPS_PROXY and REQUESTS_CA_BUNDLE are respected; a "
        "mirror can be set as `central` under [repositories] in ~/.config/jgo.conf), then run the same command again."
    )


def _quiet_import() -> None:
    """Import jgo without the warning of one of its dependencies about a missing XDG_RUNTIME_DIR."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jgo.env
        import jgo.maven  # noqa: F401


def _context(repository: Path, progress: _Progress) -> MavenContext:
    from jgo.maven import MavenContext, PythonResolver

    return MavenContext(
        resolver=PythonResolver(progress_callback=progress.download),
        repo_cache=repository,
        remote_repos=_remote_repositories(),
        timeout=30,
    )


def _remote_repositories() -> dict[str, str] | None:
    """The user's own repositories, if any; an entry named central replaces Maven Central."""
    from jgo.config import GlobalSettings

    try:
        mirrors = GlobalSettings.load().repositories
    except (OSError, RuntimeError):  # no home directory
        return None
    return dict(mirrors) or None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Progress:
    """One line on a terminal, rewritten; elsewhere a line every few seconds."""

    def __init__(self, text: str | None) -> None:
        self._text = text
        self._done = 0
        self._bytes = 0
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0 if self._terminal else time.monotonic()
        if text is not None and not self._terminal:
            self._show()

    @contextmanager
    def download(self, filename: str, total_size: int) -> Iterator[Callable[[int], None]]:
        """jgo's progress callback."""

        def update(count: int) -> None:
            with self._lock:
                self._bytes += count
                self._tick()

        yield update

    def count(self) -> None:
        """One more jar has arrived and passed its check."""
        with self._lock:
            self._done += 1
            self._tick()

    def end(self) -> None:
        """Show the last state for good."""
        if self._text is not None:
            self._show()
            if self._terminal:
                print(file=sys.stderr, flush=True)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._text is not None and now - self._shown > (0.1 if self._terminal else 5):
            self._shown = now
            self._show()

    def _show(self) -> None:
        assert self._text is not None  # noqa: S101 - callers checked
        line = self._text.format(done=self._done, megabytes=self._bytes / 1e6)
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
