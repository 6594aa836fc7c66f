"""A Kafka that lets nobody in without TLS, a login and an ACL, beside a PostgreSQL with a prepared database."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from consumer.settings import Settings, load
from deploy.local.ports import choose_port
from deploy.local.preparation import prepare_database
from deploy.local.stack import Stack
from tests import roles
from tests.e2e.harness import wait_until
from tests.security.certificates import Authority

HOST = "127.0.0.1"
_COMMANDS = re.findall(r"^kafka-acls .*$", Path("docs/wire-security.md").read_text(), re.MULTILINE)
_KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional_id": ResourceType.TRANSACTIONAL_ID,
}


class SecureKafka:
    """Clients come in by SASL_SSL. The tests' own plaintext listener, whose nobody is the only super user, is the
    broker's and the administrator's: no client is ever told of it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.authority = Authority(folder, "authority")
        self.another_authority = Authority(folder, "another-authority")
        self.stack = Stack(folder / "stack", detached=False)
        self.port = choose_port()
        kafka = self.stack.kafka
        store = folder / "kafka.pem"
        store.write_bytes(b"".join(self.authority.issue(HOST)))
        controller = kafka.controller_port
        kafka.properties = {
            "listeners": f"PLAINTEXT://{HOST}:{kafka.port},SASL_SSL://{HOST}:{self.port},"
            f"CONTROLLER://{HOST}:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": store,
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
        }
        self.stack.up(["kafka", "postgres"])
        prepare_database(self.stack)
        roles.create_roles(self.stack.postgres.dsn())
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

    def close(self) -> None:
        """End it, its client first: that would else complain for as long as the process lives."""
        del self.admin
        self.stack.remove()

    # -- logins --------------------------------------------------------------------------------------------------------

    def set_password(self, user: str, password: str) -> None:
        """Make the login, or change its password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        upsertion = UserScramCredentialUpsertion(user, info, password.encode())
        _wait(self.admin.alter_user_scram_credentials([upsertion]))

    def properties(self, user: str, **overrides: str) -> Path:
        """A properties file as docs/wire-security.md shows it; `overrides` have `_` for `.`."""
        lines = {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.authority.file),
            "ssl.endpoint.identification.algorithm": "https",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password_of(user),
            # Only the tests': they wait for what production has time for.
            "topic.metadata.refresh.interval.ms": "1000",
        } | {name.replace("_", "."): value for name, value in overrides.items()}
        path = self.folder / f"{user}-{len(list(self.folder.iterdir()))}.properties"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return path

    def environment(self, user: str, **overrides: str) -> dict[str, str]:
        """CFO_SYNC_* for a process with this login, and the database role that goes with it."""
        role = roles.API if user == "cfo-sync-api" else roles.CONSUMER
        names = roles.environment_as(role, self.stack.environment()) | {
            "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{self.port}",
            "CFO_SYNC_RETRY_DELAYS": "1s,2s,3s",
            "CFO_SYNC_LOG_FORMAT": "json",
            "CFO_SYNC_KAFKA_CONFIG_FILE": str(self.properties(user)),
        }
        return names | overrides

    # -- ACLs ----------------------------------------------------------------------------------------------------------

    def allow(self, commands: Iterable[str]) -> None:
        """Do what these `kafka-acls --add` commands say."""
        self.give_back([each for command in commands for each in _bindings(command)])

    def revoke(self, user: str, kind: ResourceType = ResourceType.ANY, name: str | None = None,
               operation: AclOperation = AclOperation.ANY) -> list[AclBinding]:  # fmt: skip
        """Take ACLs of this login away; gives them."""
        wanted = _filter(kind, name, f"User:{user}", operation)
        [found] = _wait(self.admin.delete_acls([wanted]))
        assert found
        return list(found)

    def give_back(self, bindings: list[AclBinding]) -> None:
        """Undo `revoke`."""
        _wait(self.admin.create_acls(bindings))
        # The broker hears of them a moment later.
        wait_until(lambda: set(bindings) <= set(self.admin.describe_acls(_filter()).result(10)), "the ACLs")

    # -- records -------------------------------------------------------------------------------------------------------

    def produce(self, topic: str, value: bytes) -> None:
        """As the connector would."""
        producer = Producer({"bootstrap.servers": self.stack.kafka.bootstrap_servers})
        producer.produce(topic, value=value)
        assert producer.flush(10) == 0


def password_of(user: str) -> str:
    """Each login's, easily found in what must not show it."""
    return f"secret-of-{user}"


def documented(principal: str, settings: Settings, user: str) -> list[str]:
    """The commands of docs/wire-security.md for a principal, with this installation's names."""
    names = {
        "invoicing.public.crypto_invoices": settings.source_topic,
        "--group cfo-sync": f"--group {settings.group_id}",
        "cfo-sync.": f"{settings.topic_prefix}.",
    }
    found = []
    for command in _COMMANDS:
        if f"User:{principal} " in command:
            for old, new in names.items():
                command = command.replace(old, new)  # noqa: PLW2901
            found.append(command.replace(f"User:{principal} ", f"User:{user} "))
    assert found
    return found


def settings_of(environment: Mapping[str, str]) -> Settings:
    """What a process would read from its environment."""
    known = {
        name.removeprefix("CFO_SYNC_").lower(): value for name, value in environment.items() if "CFO_SYNC_" in name
    }
    return load(_env_file=None, **known)


def _bindings(command: str) -> list[AclBinding]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap-server")
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    for kind in _KINDS:
        parser.add_argument(f"--{kind.replace('_', '-')}", action="append", default=[])
    asked = vars(parser.parse_args(shlex.split(command)[1:]))
    pattern = ResourcePatternType[asked["resource_pattern_type"].upper()]
    return [
        AclBinding(resource, name, pattern, asked["allow_principal"], "*", _operation(text), AclPermissionType.ALLOW)
        for kind, resource in _KINDS.items()
        for name in asked[kind]
        for text in asked["operation"]
    ]


def _filter(
    kind: ResourceType = ResourceType.ANY,
    name: Any = None,
    principal: Any = None,
    operation: AclOperation = AclOperation.ANY,
) -> AclBindingFilter:
    every_host: Any = None  # the stubs know no None
    return AclBindingFilter(
        kind, name, ResourcePatternType.ANY, principal, every_host, operation, AclPermissionType.ANY
    )


def _operation(text: str) -> AclOperation:
    return AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).upper()]


def _wait(futures: Mapping[Any, Any]) -> list[Any]:
    return [future.result(10) for future in futures.values()]
