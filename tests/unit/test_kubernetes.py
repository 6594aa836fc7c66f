"""deploy/k8s: what Kubernetes and the operators will accept, and that it says what the product and its docs say.

Validated against schemas: Kubernetes' own kinds (strictly, as `kubectl --validate=strict` does), KEDA's and the
Prometheus operator's. Not validated against a schema, because no Python package has them: Strimzi's kinds. What stands
in them is compared with the facts that they are made of. What only a cluster knows is not tested: that images can be
pulled, that network plugins enforce policies, that the operators do what they are told.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer import broker, topics
from consumer.settings import PREFIX, Settings, load
from deploy.k8s.manifests import FOLDER, LOGINS, REPOSITORY, generated

MISSING = "only .ci/run installs it: pip install --require-hashes -r deploy/requirements/manifests.txt"
FILES = sorted(
    path
    for path in FOLDER.rglob("*.yaml")
    if path.name != "kustomization.yaml"
)  # fmt: skip
SETTINGS = load(_env_file=None, invoice_dsn="postgresql://nobody@localhost/nothing")
PAGE = (REPOSITORY / "docs" / "kubernetes.md").read_text(encoding="utf-8")

Manifest = dict[str, Any]


@cache
def manifests() -> dict[tuple[str, str], Manifest]:
    """Everything in the files, by kind and name."""
    found: dict[tuple[str, str], Manifest] = {}
    for path in FILES:
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            key = each["kind"], each["metadata"]["name"]
            assert key not in found
            found[key] = each
    return found


def of(*kinds: str) -> list[Manifest]:
    """All of these kinds."""
    found = [each for (kind, _), each in manifests().items() if kind in kinds]
    assert found
    return found


def pods() -> dict[str, Manifest]:
    """The specification of each pod by its component."""
    templates = [each["spec"]["template"] for each in of("Deployment", "Job")]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"] for each in templates}


def container(component: str) -> Manifest:
    """Each pod has one container."""
    [only] = pods()[component]["containers"]
    return dict(only)


COMPONENTS = ["run", "api", "migrate", "topics"]
NATIVE = [key for key, each in manifests().items() if "." not in each["apiVersion"].partition("/")[0]
          or each["apiVersion"].partition("/")[0].endswith(".k8s.io")]  # fmt: skip
MODELS = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "TriggerAuthentication": "cloudcoil.models.keda.v1alpha1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
}
MODELLED = [key for key in manifests() if key[0] in MODELS]
STRIMZI = {"KafkaTopic", "KafkaUser", "KafkaConnector"}


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_every_kind_is_validated_but_strimzis() -> None:
    assert {kind for kind, _ in [*NATIVE, *MODELLED]} | STRIMZI == {kind for kind, _ in manifests()}


@pytest.mark.parametrize("key", NATIVE, ids="/".join)
def test_kubernetes_would_accept_it(key: tuple[str, str]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason=MISSING)
    validator.validate(manifests()[key], validator.latest_version(), strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason=MISSING)
    wrong = json.loads(json.dumps(manifests()["Deployment", "cfo-sync-run"]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 330
    with pytest.raises(validator.ValidationError, match="terminationGracePeriod"):
        validator.validate(wrong, validator.latest_version(), strict=True)


def known_part(manifest: Manifest) -> Any:
    """What the operator's model keeps of a manifest; raises when something in it is wrong or lacks."""
    module = pytest.importorskip(MODELS[manifest["kind"]], reason=MISSING)
    model = getattr(module, manifest["kind"]).model_validate(manifest)
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


@pytest.mark.parametrize("key", MODELLED, ids="/".join)
def test_its_operator_would_accept_it(key: tuple[str, str]) -> None:
    assert known_part(manifests()[key]) == manifests()[key]


def test_a_field_that_keda_does_not_know_is_found() -> None:
    wrong = json.loads(json.dumps(manifests()["ScaledObject", "cfo-sync-run"]))
    wrong["spec"]["maxReplicas"] = 8
    assert known_part(wrong) != wrong


# -- one source of truth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "text"), generated().items(), ids=lambda each: getattr(each, "name", ""))
def test_a_generated_file_is_what_make_manifests_writes(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run `make manifests`"


def test_strimzi_makes_the_topics_that_topics_create_makes() -> None:
    specs = {each["spec"]["topicName"]: each["spec"] for each in of("KafkaTopic")}
    assert set(specs) == {*SETTINGS.consumed_topics, SETTINGS.dlq_topic}
    assert {spec["partitions"] for spec in specs.values()} == {8}
    for plan in topics.plan(SETTINGS, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, 8):
        assert specs[plan.name].get("config", {}) == plan.config


def test_strimzi_registers_the_connector_of_the_file() -> None:
    [connector] = of("KafkaConnector")
    spec = connector["spec"]
    config = spec["config"] | {"connector.class": spec["class"], "tasks.max": str(spec["tasksMax"])}
    registration = {"name": connector["metadata"]["name"], "config": config}
    assert registration == json.loads((REPOSITORY / "debezium-connector.json").read_text(encoding="utf-8"))


def test_strimzi_grants_every_acl_of_the_page_to_the_login_that_it_is_for() -> None:
    page = (REPOSITORY / "docs" / "wire-security.md").read_text(encoding="utf-8")
    documented = {
        (login, flag, name, operation)
        for login, rest in re.findall(r"^kafka-acls --add --allow-principal User:(\S+) (.*)$", page, re.MULTILINE)
        for flag, name in re.findall(r"--(topic|group|transactional-id) (\S+)", rest)
        for operation in re.findall(r"--operation (\S+)", rest)
        if login != "cfo-sync-admin"
    }
    kinds = {"topic": "topic", "group": "group", "transactionalId": "transactional-id"}
    granted = {
        (user["metadata"]["name"], kinds[acl["resource"]["type"]], acl["resource"]["name"], operation)
        for user in of("KafkaUser")
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }
    assert granted == documented
    assert {login for login, *_ in granted} == set(LOGINS)


def test_a_prefix_is_granted_as_one_and_a_name_as_a_name() -> None:
    patterns = {
        acl["resource"]["name"]: acl["resource"]["patternType"]
        for user in of("KafkaUser")
        for acl in user["spec"]["authorization"]["acls"]
    }
    assert {name for name, pattern in patterns.items() if pattern == "prefix"} == {"cfo-sync-connect-"}
    assert set(patterns.values()) == {"prefix", "literal"}


def test_the_operator_gets_every_rule() -> None:
    [rule] = of("PrometheusRule")
    files = (REPOSITORY / "deploy" / "prometheus" / "rules").glob("*.yml")
    groups = {group["name"]: group for path in files for group in yaml.safe_load(path.read_text("utf-8"))["groups"]}
    assert {group["name"]: group for group in rule["spec"]["groups"]} == groups


def test_the_job_labels_are_those_that_the_rules_know() -> None:
    # Without jobLabel the operator takes the Service's name.
    scraped = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    jobs = {each["job_name"] for each in scraped["scrape_configs"]}
    found = set()
    for monitor in of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        [service] = [each for each in of("Service") if wanted <= each["metadata"]["labels"].items()]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
        found.add(service["metadata"]["name"])
    assert found == jobs


# -- the autoscaler ----------------------------------------------------------------------------------------------------


def test_only_the_source_topic_scales_and_never_beyond_its_partitions() -> None:
    [scaled] = of("ScaledObject")
    [trigger] = scaled["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert (metadata["topic"], metadata["consumerGroup"]) == (SETTINGS.source_topic, SETTINGS.group_id)
    [source] = [each for each in of("KafkaTopic") if each["spec"]["topicName"] == SETTINGS.source_topic]
    assert scaled["spec"]["maxReplicaCount"] == source["spec"]["partitions"]
    assert metadata["allowIdleConsumers"] == "false"
    assert scaled["spec"]["minReplicaCount"] > 1
    assert int(metadata["lagThreshold"]) > SETTINGS.batch_size
    assert all(isinstance(value, str) for value in metadata.values())
    assert scaled["spec"]["scaleTargetRef"]["name"] == manifests()["Deployment", "cfo-sync-run"]["metadata"]["name"]


# -- pods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_keeps_to_the_restricted_standard_and_writes_nowhere(component: str) -> None:
    pod, one = pods()[component], container(component)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    assert one["resources"]["limits"]["memory"] == one["resources"]["requests"]["memory"]
    assert "cpu" in one["resources"]["requests"]
    assert all(mount.get("readOnly") or mount["name"] == "tmp" for mount in one["volumeMounts"])


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_variables_are_settings_and_secrets_stand_only_in_secrets(component: str) -> None:
    lines = (FOLDER / "base" / "settings.env").read_text(encoding="utf-8").splitlines()
    shared = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    own = {each["name"]: each for each in container(component)["env"]}
    assert {name.removeprefix(PREFIX).lower() for name in shared | set(own)} <= set(Settings.model_fields)
    assert not {"INVOICE_DSN", "CFO_DSN", "API_TOKEN"} & {name.removeprefix(PREFIX) for name in shared}
    for each in own.values():
        assert "secretKeyRef" in each.get("valueFrom", ()) or each["value"] == "postgresql://localhost/unused"


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_variable_comes_from_a_service(component: str) -> None:
    # CFO_SYNC_API_PORT=tcp://10.0.0.1:8080, of the Service cfo-sync-api, would keep every process from starting.
    assert pods()[component]["enableServiceLinks"] is False


def test_a_consumer_has_longer_to_stop_than_its_batch_may_take() -> None:
    assert pods()["run"]["terminationGracePeriodSeconds"] > broker.MAX_POLL_INTERVAL_MS / 1000


@pytest.mark.parametrize(("component", "port", "ready"), [("run", SETTINGS.metrics_port, "/readyz"),
                                                          ("api", SETTINGS.api_port, "/healthz")])  # fmt: skip
def test_probes_ask_the_ports_that_the_processes_listen_on(component: str, port: int, ready: str) -> None:
    one = container(component)
    ports = {each["name"]: each["containerPort"] for each in one["ports"]}
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", ready)):
        asked = one[probe]["httpGet"]
        assert (asked["path"], ports[asked["port"]]) == (path, port)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_runs_our_command_of_this_version(component: str) -> None:
    assert container(component)["args"] == {"topics": ["topics", "create"]}.get(component, [component])
    assert container(component)["image"] == f"cfo-sync:{version('cfo-sync')}"


@pytest.mark.parametrize("each", of("Service", "PodDisruptionBudget", "NetworkPolicy"),
                         ids=lambda each: f"{each['kind']}/{each['metadata']['name']}")  # fmt: skip
def test_a_selector_finds_the_pods_that_it_is_for(each: Manifest) -> None:
    labels = {
        workload["metadata"]["name"]: workload["spec"]["template"]["metadata"]["labels"].items()
        for workload in of("Deployment", "Job")
    }
    selector = each["spec"].get("podSelector") or each["spec"]["selector"]
    wanted = selector.get("matchLabels", selector).items()
    name = each["metadata"]["name"]
    assert {found for found, has in labels.items() if wanted <= has} == ({name} if name in labels else set(labels))


def test_the_kafka_properties_name_the_files_that_are_mounted() -> None:
    path = FOLDER / "base" / "kafka.properties"
    config = broker.client_config(SETTINGS.model_copy(update={"kafka_config_file": path}))
    named = {value for name, value in config.items() if name.endswith(".location")}
    for component in ("run", "api", "topics"):
        [volume] = [each for each in pods()[component]["volumes"] if each["name"] == "kafka"]
        [mount] = [each for each in container(component)["volumeMounts"] if each["name"] == "kafka"]
        items = [
            item for source in volume["projected"]["sources"] for item in source.get("secret", {}).get("items", ())
        ]
        assert named == {f"{mount['mountPath']}/{item['path']}" for item in items}


def test_every_secret_is_on_the_page_with_its_keys() -> None:
    table = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", PAGE, re.MULTILINE))
    used: set[tuple[str, str]] = set()
    for component in COMPONENTS:
        for each in container(component)["env"]:
            if reference := each.get("valueFrom", {}).get("secretKeyRef"):
                used.add((reference["name"], reference["key"]))
        for volume in pods()[component]["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                secret = source.get("secret", {"items": ()})
                used |= {(secret["name"], item["key"]) for item in secret["items"]}
            if "secret" in volume:
                used.add((volume["secret"]["secretName"], "ca.crt"))
    [authentication] = of("TriggerAuthentication")
    used |= {(each["name"], each["key"]) for each in authentication["spec"]["secretTargetRef"]}
    assert {name for name, _ in used} == set(table)
    for name, key in used:
        assert f"`{key}`" in table[name]


# -- overlays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlay", "absent"), [("strimzi", {"Namespace"}), ("own-kafka", STRIMZI | set(MODELS))])
def test_an_overlay_builds_to_valid_objects_of_one_namespace(overlay: str, absent: set[str]) -> None:
    program = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(program[0]) is None:
        pytest.skip("neither kustomize nor kubectl is there to build an overlay")
    done = subprocess.run([*program, FOLDER / "overlays" / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    kinds = {each["kind"] for each in built}
    assert kinds == {"ConfigMap"} | {kind for kind, _ in manifests()} - absent
    [namespace] = {each["metadata"]["namespace"] for each in built if each["kind"] != "Namespace"}
    assert overlay != "own-kafka" or namespace == "cfo-sync"
    text = done.stdout
    assert ("kafka-cluster-ca-cert" in text) == ("cfo-sync-kafka-ca" not in text) == (overlay == "strimzi")
    for each in built:
        if each["kind"] == "Deployment" and each["metadata"]["name"] == "cfo-sync-run":
            # With an autoscaler the number is the autoscaler's.
            assert ("replicas" in each["spec"]) == ("ScaledObject" not in kinds)
    validator = pytest.importorskip("kubernetes_validate", reason=MISSING)
    for each in built:
        if each["kind"] not in STRIMZI | set(MODELS):
            validator.validate(each, validator.latest_version(), strict=True)
