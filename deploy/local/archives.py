"""Archives of loaded classes that halve the start of the Java servers; made once per clone."""

from __future__ import annotations

import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.local.connect import Connect
from deploy.local.downloads import CACHE, fetch, locked
from deploy.local.errors import StackError
from deploy.local.java import start_archive
from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres


def make_archives() -> None:
    """Record one start of Kafka and Connect, if that was not done yet (about 30 s).

    Failing is no error: everything works without, only slower, and it is not tried again.
    """
    parts = fetch()
    with locked(CACHE / "archives.lock", "another run is preparing the Java servers"):
        folder = start_archive(parts, "kafka").parent
        if folder.exists():
            return
        print("preparing the Java servers for faster starts (once, about 30 s)", file=sys.stderr, flush=True)
        for interrupted in folder.parent.glob("recording-*"):
            shutil.rmtree(interrupted)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix="recording-"))
        try:
            _record(new)
        except StackError as error:
            print(f"that failed, they will start slower: {error}", file=sys.stderr, flush=True)
        new.chmod(0o755)
        new.rename(folder)


def _record(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cfo-sync-") as folder:
        kafka = Kafka(Path(folder), detached=False)
        connect = Connect(Path(folder), detached=False, kafka=kafka, postgres=Postgres(Path(folder), detached=False))
        servers = (kafka, connect)
        try:
            for server in servers:
                server.recording = True
                server.start()
            for server in servers:
                server.wait_ready()
            with ThreadPoolExecutor() as pool:  # each writes its archive when it ends
                for stopping in [pool.submit(server.stop, 120) for server in servers]:
                    stopping.result()
            for server in servers:
                if server.recorded_archive.exists():
                    shutil.copyfile(server.recorded_archive, target / f"{server.name}.aot")
        finally:
            for server in servers:
                server.kill()
