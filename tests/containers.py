"""The stack of deploy/local in containers: the same servers, from their publishers' images, on one network.

Each part keeps the life it has there (start, stop, kill, pause), done to its container, and its port on 127.0.0.1.
"""

from __future__ import annotations

import functools
import gc
import os
import warnings
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from testcontainers.community.kafka import KafkaContainer
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.network import Network

from deploy.local.connect import WORKER, Connect
from deploy.local.errors import StackError
from deploy.local.kafka import BROKER, Kafka
from deploy.local.part import Part
from deploy.local.ports import LOOPBACK
from deploy.local.postgres import SERVER, SUPERUSER, Postgres
from deploy.local.stack import Stack

CHOICE: Final = "CFO_SYNC_TEST_STACK"
IMAGES: Final = {
    name: os.environ.get(f"CFO_SYNC_TEST_IMAGE_{name.upper()}") or image
    for name, image in {
        "postgres": "postgres:17",
        "kafka": "confluentinc/cp-kafka:7.9.0",
        "connect": "quay.io/debezium/connect:3.6",
    }.items()
}
_TAKEN: Final = ("port is already allocated", "address already in use")


@functools.cache
def choose_stack() -> tuple[bool, str]:
    """Whether the end-to-end tests run on containers, and why.

    Chosen by nobody, they do where an engine answers and has the images or can pull them. Raises StackError if
    containers were asked for and there can be none.
    """
    choice = os.environ.get(CHOICE) or "automatic"
    if choice not in ("local", "containers", "automatic"):
        raise StackError(f"{CHOICE} must be local or containers, not {choice!r}")
    if choice == "local":
        return False, f"local, by {CHOICE}"
    obstacle = _find_obstacle()
    if obstacle is None:
        return True, "containers of " + ", ".join(IMAGES.values())
    if choice == "containers":
        raise StackError(f"{obstacle}. {CHOICE}=local runs the tests without containers")
    return False, f"local, because {obstacle}"


def _find_obstacle() -> str | None:
    """What prevents containers; pulls the images that are missing."""
    with warnings.catch_warnings():
        # docker-py forgets a socket that could not connect.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = DockerClient().client
            client.ping()
        except (DockerException, OSError):
            client = None
        gc.collect()
    if client is None:
        return "no Docker engine answers"
    images = list(IMAGES.values())
    if not testcontainers_config.ryuk_disabled:
        images.append(testcontainers_config.ryuk_image)
    try:
        for image in images:
            try:
                client.images.get(image)
            except ImageNotFound:
                print(f"pulling {image}", flush=True)
                client.images.pull(image)
    except DockerException as error:
        return f"the image {image} cannot be pulled: {getattr(error, 'explanation', None) or error}"
    finally:
        client.close()
    return None


class ContainerPart(Part):
    """A server whose process is a container. Must precede the server's own class among the bases."""

    container_port: int

    def __init__(self, *arguments: Any, network: Network, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._network = network
        self._container: DockerContainer | None = None
        self._found_taken = False

    @abstractmethod
    def _make_container(self) -> DockerContainer:
        """As testcontainers has it, but for its network and port."""

    @property
    def pid(self) -> int | None:
        """Of the container's first process, as the engine sees it."""
        return (self._state() or {}).get("Pid") or None

    def start(self) -> None:
        with self._busy:
            if self.is_running:
                return
            if self._container is not None:
                # The same one: its file system holds the data.
                self._container.get_wrapped_container().start()
                return
            container = self._make_container().with_network(self._network).with_network_aliases(self.name)
            # Always the same port, also after a restart: the engine would choose another each time.
            container.ports[str(self.container_port)] = (LOOPBACK, self.port)  # type: ignore[assignment]
            self._found_taken = False
            try:
                container.start()
            except APIError as error:
                container.stop()
                self._found_taken = any(words in str(error) for words in _TAKEN)
                if not self._found_taken:
                    raise StackError(f"{self.title} does not start: {error.explanation}") from error
            except BaseException:
                container.stop()
                raise
            else:
                self._container = container

    def stop(self, timeout: float = 20) -> None:
        with self._busy:
            if self._container is not None:
                self.resume()
                self._container.get_wrapped_container().stop(timeout=int(timeout))

    def kill(self) -> None:
        with self._busy:
            if self._container is not None and self.is_running:
                wrapped = self._container.get_wrapped_container()
                self.resume()  # or the signal waits
                wrapped.kill()
                wrapped.wait(timeout=10)

    def pause(self) -> None:
        """Freezes all its processes: connections stay open and nothing answers."""
        if self._container is not None:
            self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        if self._container is not None and (self._state() or {}).get("Paused"):
            self._container.get_wrapped_container().unpause()

    def discard(self) -> None:
        """The container and its data are gone."""
        with self._busy:
            if self._container is not None:
                self.resume()
                self._container.stop()
                self._container = None

    def _state(self) -> dict[str, Any] | None:
        if self._container is None:
            return None
        wrapped = self._container.get_wrapped_container()
        wrapped.reload()
        return dict(wrapped.attrs["State"])

    def _port_was_taken(self) -> bool:
        return self._found_taken

    def _log_tail(self) -> str:
        if self._container is None:
            return ""
        text = self._container.get_wrapped_container().logs(tail=15).decode(errors="replace")
        return " The end of its log:\n" + "\n".join(f"  {line}" for line in text.splitlines())


class ContainerPostgres(ContainerPart, Postgres):
    container_port = 5432

    def _make_container(self) -> DockerContainer:
        container = PostgresContainer(
            IMAGES["postgres"],
            username=SUPERUSER,
            password=self._secret("superuser"),
            dbname=SUPERUSER,
            driver=None,
            shm_size="128m",
        )
        return container.with_command(["postgres", *(f"--{name}={value}" for name, value in SERVER.items())])


class ContainerKafka(ContainerPart, Kafka):
    container_port = 9093

    def _make_container(self) -> DockerContainer:
        container = KafkaContainer(IMAGES["kafka"], port=self.container_port).with_kraft()
        container.with_env("KAFKA_HEAP_OPTS", "-Xmx512m")
        return with_properties(container, "KAFKA", BROKER | self.properties)


class ContainerConnect(ContainerPart, Connect):
    container_port = 8083

    def start(self) -> None:
        # A worker that cannot resolve the broker's name ends.
        self._kafka.start()
        self._kafka.wait_ready(90)
        super().start()

    def _make_container(self) -> DockerContainer:
        container = DockerContainer(IMAGES["connect"]).with_envs(
            BOOTSTRAP_SERVERS="kafka:9092",
            GROUP_ID=WORKER["group.id"],
            CONFIG_STORAGE_TOPIC=WORKER["config.storage.topic"],
            OFFSET_STORAGE_TOPIC=WORKER["offset.storage.topic"],
            STATUS_STORAGE_TOPIC=WORKER["status.storage.topic"],
            HEAP_OPTS="-Xmx512m",
            **self._variables(),
        )
        container.with_envs(CFO_SYNC_DEBEZIUM_HOSTNAME="postgres", CFO_SYNC_DEBEZIUM_PORT="5432")
        return with_properties(container, "CONNECT", WORKER)


def with_properties(container: DockerContainer, prefix: str, properties: dict[str, Any]) -> DockerContainer:
    """Server properties as the images take them: PREFIX_FOO_BAR is foo.bar."""
    for name, value in properties.items():
        container.with_env(f"{prefix}_{name.upper().replace('.', '_')}", str(value))
    return container


class ContainerStack(Stack):
    """The stack of one test session or test, never detached.

    Containers of a process that was killed are removed by testcontainers' Ryuk, where that is not switched off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.detached = False
        self._network: Final = Network()
        self._has_network = False
        self.postgres: ContainerPostgres = ContainerPostgres(self.folder, detached=False, network=self._network)
        self.kafka: ContainerKafka = ContainerKafka(self.folder, detached=False, network=self._network)
        self.connect: ContainerConnect = ContainerConnect(
            self.folder, detached=False, kafka=self.kafka, postgres=self.postgres, network=self._network
        )

    def remove(self) -> None:
        for part in (self.connect, self.kafka, self.postgres):
            part.discard()
        if self._has_network:
            with suppress(NotFound):
                self._network.remove()
            self._has_network = False
        super().remove()

    def _prepare(self, wanted: set[str]) -> None:
        if not self._has_network:
            self._network.create()
            self._has_network = True

    def _abandon(self, owner: int) -> None:
        if os.getpid() == owner:  # not in a fork
            with suppress(DockerException):
                self.remove()
