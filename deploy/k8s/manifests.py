"""Manifests made of the product's own facts: topics, ACLs of docs/wire-security.md, connector, rules."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml
from pydantic import SecretStr

from consumer import cli, topics
from consumer.settings import Settings

Manifest: TypeAlias = dict[str, Any]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = REPOSITORY / "deploy" / "k8s"
PROMETHEUS: Final = REPOSITORY / "deploy" / "prometheus"

KAFKA_CLUSTER: Final = "kafka"
CONNECT_CLUSTER: Final = "connect"
# Logins that Strimzi makes; cfo-sync-admin creates topics, and here the operator does.
LOGINS: Final = ("cfo-sync", "cfo-sync-api", "cfo-sync-keda", "cfo-sync-connect")

# Below so many batches a replica is done before another one has started and the group has rebalanced.
_BATCHES_A_REPLICA: Final = 5
_STRIMZI: Final = "kafka.strimzi.io/v1"
_LABELS: Final = {"app.kubernetes.io/name": "cfo-sync"}
_BOOTSTRAP: Final = "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS="


def generated() -> dict[Path, str]:
    """The content of every file that is not written by hand."""
    settings = Settings.model_construct(invoice_dsn=SecretStr(""))
    partitions: int = inspect.signature(cli.topics_create).parameters["partitions"].default
    plans = topics.plan(settings, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, partitions)
    components: dict[str, tuple[str, list[Manifest]]] = {
        "keda/scaledobject.yaml": (
            "the settings, in deploy/k8s/manifests.py, which says why",
            [scaled_object(settings, partitions)],
        ),
        "monitoring/prometheusrule.yaml": ("deploy/prometheus/rules", [prometheus_rule()]),
        "monitoring/servicemonitors.yaml": ("deploy/prometheus/prometheus.yml", service_monitors()),
        "strimzi/topics.yaml": ("consumer/topics.py", [topic(plan) for plan in plans]),
        "strimzi/users.yaml": ("docs/wire-security.md", [user(login) for login in LOGINS]),
        "strimzi/connector.yaml": ("debezium-connector.json", [connector()]),
    }
    return {
        FOLDER / "components" / name: f"# Made by `make manifests` of {source}: change it there.\n{_yaml(manifests)}"
        for name, (source, manifests) in components.items()
    }


def scaled_object(settings: Settings, partitions: int) -> Manifest:
    """Replicas by the lag of the source topic alone: what waits in retry topics waits on purpose, and is no load."""
    trigger = {
        "bootstrapServers": _bootstrap_servers(),
        "consumerGroup": settings.group_id,
        "topic": settings.source_topic,
        "lagThreshold": str(_BATCHES_A_REPLICA * settings.batch_size),
        # The consumer's auto.offset.reset: without a committed offset the whole topic is lag.
        "offsetResetPolicy": "earliest",
        # A replica without a partition would only cost.
        "allowIdleConsumers": "false",
        # Partitions are assigned without a look at their lag: with as many replicas as partitions that lag, one of
        # them would hold several of those.
        "limitToPartitionsWithLag": "false",
        # On hold offsets stand still. More replicas would only press on a database that is in trouble.
        "excludePersistentLag": "true",
        # KEDA's default, 1.0.0, is a protocol that Kafka 4 has given up.
        "version": "3.0.0",
        "tls": "enable",
    }
    return _manifest("keda.sh/v1alpha1", "ScaledObject", "cfo-sync-run") | {
        "spec": {
            "scaleTargetRef": {"name": "cfo-sync-run"},
            "pollingInterval": 15,
            # Never 0: the sweep, the retries and replays need one, and a second one takes over at once.
            "minReplicaCount": 2,
            "maxReplicaCount": partitions,
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    # Each step is a rebalance; payments come in bursts.
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
                },
            },
            "triggers": [{"type": "kafka", "metadata": trigger, "authenticationRef": {"name": "cfo-sync-keda"}}],
        }
    }


def prometheus_rule() -> Manifest:
    """All groups of the rule files."""
    groups = [
        group
        for file in sorted((PROMETHEUS / "rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    return _manifest("monitoring.coreos.com/v1", "PrometheusRule", "cfo-sync") | {"spec": {"groups": groups}}


def service_monitors() -> list[Manifest]:
    """One for each job of prometheus.yml: the Service of its name, and thereby the label `job` that the rules know."""
    scraping = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    ports = {"cfo-sync-run": "metrics", "cfo-sync-api": "http"}
    # The rules aggregate over `instance` and `pod`; of the operator's other labels they must see nothing that differs
    # between the processes.
    relabelings = [{"action": "labeldrop", "regex": "container|endpoint|service"}]
    interval = scraping["global"]["scrape_interval"]
    return [
        _manifest("monitoring.coreos.com/v1", "ServiceMonitor", job)
        | {
            "spec": {
                "selector": {"matchLabels": _LABELS | {"app.kubernetes.io/component": job.removeprefix("cfo-sync-")}},
                "endpoints": [{"port": ports[job], "interval": interval, "relabelings": relabelings}],
            }
        }
        for job in (each["job_name"] for each in scraping["scrape_configs"])
    ]


def topic(plan: topics.TopicPlan) -> Manifest:
    """A topic as `cfo-sync topics create` makes it; without `replicas` the broker's default holds, as it does there."""
    config = {"config": plan.config} if plan.config else {}
    spec = {"topicName": plan.name, "partitions": plan.partitions} | config
    return _manifest(_STRIMZI, "KafkaTopic", plan.name.replace("_", "-"), KAFKA_CLUSTER) | {"spec": spec}


def user(login: str) -> Manifest:
    """A login by certificate with the ACLs that docs/wire-security.md grants it, and no others."""
    spec = {
        "authentication": {"type": "tls"},
        "authorization": {"type": "simple", "acls": list(acls(login))},
    }
    return _manifest(_STRIMZI, "KafkaUser", login, KAFKA_CLUSTER) | {"spec": spec}


def acls(login: str) -> Iterable[Manifest]:
    """What the page's `kafka-acls --add` commands say about a login, in Strimzi's words."""
    kinds = {"topic": "topic", "group": "group", "transactional_id": "transactionalId"}
    parser = argparse.ArgumentParser()
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--resource-pattern-type", choices=("literal", "prefixed"), default="literal")
    for kind in kinds:
        parser.add_argument(f"--{kind.replace('_', '-')}", action="append", default=[])
    page = (REPOSITORY / "docs" / "wire-security.md").read_text(encoding="utf-8")
    for command in re.findall(r"^kafka-acls (.*)$", page, re.MULTILINE):
        asked = parser.parse_args(shlex.split(command))
        if asked.allow_principal != f"User:{login}":
            continue
        pattern = asked.resource_pattern_type.removesuffix("ed")
        for kind, resource in kinds.items():
            for name in getattr(asked, kind):
                yield {
                    "resource": {"type": resource, "name": name, "patternType": pattern},
                    "operations": asked.operation,
                }


def connector() -> Manifest:
    """The connector of debezium-connector.json."""
    registration = json.loads((REPOSITORY / "debezium-connector.json").read_text(encoding="utf-8"))
    config = registration["config"]
    spec = {
        "class": config.pop("connector.class"),
        "tasksMax": int(config.pop("tasks.max")),
        # A task that fails is restarted; what no restart mends, CfoSyncSlotInactive tells.
        "autoRestart": {"enabled": True},
        "config": config,
    }
    return _manifest(_STRIMZI, "KafkaConnector", registration["name"], CONNECT_CLUSTER) | {"spec": spec}


def _manifest(version: str, kind: str, name: str, cluster: str | None = None) -> Manifest:
    labels = _LABELS | ({"strimzi.io/cluster": cluster} if cluster else {})
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}}


def _bootstrap_servers() -> str:
    lines = (FOLDER / "base" / "settings.env").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix(_BOOTSTRAP) for line in lines if line.startswith(_BOOTSTRAP))


class _Dumper(yaml.SafeDumper):
    """Repeats what is the same: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(manifests: list[Manifest]) -> str:
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
