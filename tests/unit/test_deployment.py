"""deploy/compose.yaml and deploy/Dockerfile agree with the product; they are read, no engine is needed."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry

from consumer import cli
from consumer.health import Health, serve
from consumer.settings import PREFIX, SECRETS_DIR, Settings, load
from deploy import probe
from deploy.compose import connector, roles
from tests.roles import API, CONSUMER, DEBEZIUM
from tests.unit.exports import PROMETHEUS, promtool

DEPLOY = Path("deploy")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("cfo-sync:")}
JOBS = {name for name, service in SERVICES.items() if service["restart"] == "no"}
ANNOUNCED = {"CFO_SYNC_DEBEZIUM_" + part for part in ("HOSTNAME", "PORT", "USER", "PASSWORD", "DBNAME")}
VERSION = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that deploy/secrets.sh makes, beside a copy of it."""
    folder = tmp_path_factory.mktemp("deploy")
    script = folder / "secrets.sh"
    script.write_bytes((DEPLOY / "secrets.sh").read_bytes())
    subprocess.run(["sh", script], check=True, cwd="/")
    return folder / "secrets"


def default(text: str) -> str:
    """What Compose makes of a text when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def mounts(service: dict[str, Any]) -> list[list[str]]:
    """Source, target and mode of what is mounted from the repository."""
    return [volume.split(":") for volume in service.get("volumes", []) if volume.startswith(".")]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_pinned_image_limits_and_logs_that_end(name: str) -> None:
    service = SERVICES[name]
    image = default(service["image"])
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d[\w.]*", image), image
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["restart"] == ("no" if name in JOBS else "unless-stopped")


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"postgres"}))
def test_what_is_not_root_gets_no_capability(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_and_can_be_moved(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port), port
    assert name != "consumer" or "ports" not in SERVICES[name]  # or it could not be scaled


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - JOBS))
def test_what_stays_says_how_it_is(name: str) -> None:
    assert SERVICES[name]["healthcheck"].keys() >= {"test", "interval", "timeout", "retries", "start_period"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_servers_to_be_healthy_and_for_jobs_to_be_done(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        expected = "service_completed_successfully" if other in JOBS else "service_healthy"
        assert how == {"condition": expected}


def test_somebody_waits_for_each_job() -> None:
    """Or `up --wait` takes its end for a failure."""
    assert {other for service in SERVICES.values() for other in service.get("depends_on", {})} >= JOBS


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_one_of_the_product(name: str) -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields} | {SECRETS_DIR}
    service = SERVICES[name]
    named = {variable for variable in service.get("environment", {}) if variable.startswith(PREFIX)}
    named |= {secret["target"].upper() for secret in service.get("secrets", []) if isinstance(secret, dict)}
    assert named <= (ANNOUNCED if name == "connect" else known)
    assert bool(named) == (name in {*OURS, "connect"} - {"roles", "connector"})


@pytest.mark.parametrize("name", OURS)
def test_our_image_cannot_write_and_runs_a_command_that_exists(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert default(service["image"]) == f"cfo-sync:{VERSION}"
    if "entrypoint" not in service:
        found: Any = typer.main.get_command(cli.app)
        for word in service["command"]:
            found = found.commands[word]


def test_no_secret_is_in_the_file_and_each_one_is_made_by_the_script(secrets: Path) -> None:
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items() if name != "ca"}
    assert files == {name: f"./secrets/{name}" for name in files}
    assert files.keys() == {path.name for path in secrets.iterdir()}
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            assert not re.search("PASSWORD$|TOKEN$", variable), variable
    assert "deploy/secrets/" in Path(".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_secrets_fit_the_settings_and_stay_when_they_are_there(
    secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    subprocess.run(["sh", secrets.parent / "secrets.sh"], check=True)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert len(set(before.values())) == len(before)
    for name, role in (("owner", "cfo"), ("consumer", CONSUMER), ("api", API)):
        (tmp_path / "cfo_sync_invoice_dsn").write_text(before[f"{name}_dsn"])
        for field in Settings.model_fields:
            monkeypatch.delenv(PREFIX + field.upper(), raising=False)
        monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
        dsn = load(_env_file=None).invoice_dsn.get_secret_value()
        assert re.fullmatch(rf"postgresql://{role}:[0-9a-f]{{48}}@postgres:5432/invoicing", dsn)
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "cfo"
    assert SERVICES["postgres"]["environment"]["POSTGRES_DB"] == "invoicing"


def test_what_is_mounted_is_there_and_read_only() -> None:
    found = [each for service in SERVICES.values() for each in mounts(service)]
    assert len(found) > 8
    for source, _, mode in found:
        assert (DEPLOY / source).exists(), source
        assert mode == "ro"


def test_the_connector_is_ours_and_gets_what_it_asks_the_worker_for() -> None:
    config = Path("debezium-connector.json").read_text(encoding="utf-8")
    worker = SERVICES["connect"]
    assert set(re.findall(r"\$\{env:(\w+)\}", config)) == ANNOUNCED
    assert worker["environment"].keys() | {"CFO_SYNC_DEBEZIUM_PASSWORD"} >= ANNOUNCED
    assert worker["environment"]["CFO_SYNC_DEBEZIUM_USER"] == DEBEZIUM
    assert json.loads(config)["config"]["exactly.once.support"] == "required"
    assert worker["environment"]["CONNECT_EXACTLY_ONCE_SOURCE_SUPPORT"] == "enabled"
    assert ["../debezium-connector.json", "/setup/debezium-connector.json", "ro"] in mounts(SERVICES["connector"])


def test_a_job_that_fails_says_why_and_has_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(roles, "_SECRETS", tmp_path)
    assert roles.main() == 1
    for secret in ("owner_dsn", "consumer_dsn", "api_dsn"):
        (tmp_path / secret).write_text("postgresql://cfo:hunter2@127.0.0.1:1/invoicing\n")
    (tmp_path / "debezium_password").write_text("hunter2\n")
    assert roles.main() == 1
    assert connector.main("http://127.0.0.1:1", "debezium-connector.json") == 1
    told = capsys.readouterr().err
    assert [line.partition(": ")[0] for line in told.splitlines()] == ["error"] * 3
    assert "debezium_password" in told
    assert "Kafka Connect does not answer" in told
    assert "hunter2" not in told


def test_prometheus_has_our_rules_our_jobs_and_an_alertmanager() -> None:
    here, there = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (DEPLOY / "compose" / "prometheus.yml", PROMETHEUS / "prometheus.yml")
    )
    assert here["global"] == there["global"]
    assert here["rule_files"] == there["rule_files"]
    assert [job["job_name"] for job in here["scrape_configs"]] == [job["job_name"] for job in there["scrape_configs"]]
    assert ["./prometheus/rules", "/etc/prometheus/rules", "ro"] in mounts(SERVICES["prometheus"])
    replicas, api = here["scrape_configs"]
    [names] = replicas["dns_sd_configs"]
    assert (names["names"], names["port"]) == (["consumer"], Settings.model_fields["metrics_port"].default)
    assert api["static_configs"] == [{"targets": [f"api:{Settings.model_fields['api_port'].default}"]}]
    [manager] = here["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]


def test_prometheus_takes_that_configuration() -> None:
    promtool("check", "config", "--syntax-only", DEPLOY / "compose" / "prometheus.yml")


def test_the_image_is_built_with_hashes_runs_as_a_number_and_gets_signals_itself() -> None:
    installs = re.findall(r"pip (?:--python \S+ )?install ([^\n&\\]+)", DOCKERFILE)
    assert len(installs) == 3
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps --no-index" in arguments
    assert "# syntax=" not in DOCKERFILE
    assert re.search(r"^USER \d+:\d+$", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["cfo-sync"]' in DOCKERFILE
    assert f"ARG VERSION={VERSION}\n" in DOCKERFILE
    ports = (Settings.model_fields["api_port"].default, Settings.model_fields["metrics_port"].default)
    assert "EXPOSE {} {}\n".format(*ports) in DOCKERFILE
    text = (DEPLOY / "probe.py").read_text(encoding="utf-8")
    assert re.findall(r'\("(CFO_SYNC_\w+)", (\d+)\)', text) == [
        (f"{PREFIX}METRICS_PORT", str(ports[1])),
        (f"{PREFIX}API_PORT", str(ports[0])),
    ]


def test_the_probe_finds_whichever_of_the_two_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Health()
    server = serve(state, CollectorRegistry(), "127.0.0.1", 0)
    try:
        for mine, other in (("METRICS_PORT", "API_PORT"), ("API_PORT", "METRICS_PORT")):
            monkeypatch.setenv(PREFIX + mine, str(server.server_port))
            monkeypatch.setenv(PREFIX + other, "1")  # nobody listens there
            assert (probe.main("healthz"), probe.main("readyz")) == (0, 1)
        state.hold(None)
        assert probe.main("readyz") == 0
    finally:
        server.shutdown()
        server.server_close()
    monkeypatch.setenv(PREFIX + "API_PORT", "1")
    assert probe.main("healthz") == 1


def test_the_image_gets_only_what_it_is_built_from() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert "*" in ignored
    assert {path for path in copied if not path.startswith("deploy/requirements/")} == allowed - {"deploy/requirements"}


@pytest.mark.parametrize("dashboard", sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")), ids=lambda p: p.name)
def test_grafana_has_our_dashboard_where_its_provider_looks(dashboard: Path) -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/cfo-sync.yml").read_text(encoding="utf-8"))
    assert dashboard.is_file()
    assert ["./grafana/dashboards", provider["providers"][0]["options"]["path"], "ro"] in mounts(SERVICES["grafana"])
