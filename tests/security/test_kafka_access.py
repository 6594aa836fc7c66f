"""Kafka behind TLS, a login and ACLs: what docs/wire-security.md grants is enough; what lacks is told, and held."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AclOperation, ResourceType

from consumer import broker, checks, topic_reader, topics
from consumer.faults import Outage
from consumer.settings import Settings
from tests.e2e.harness import COORDINATOR_MOVES, wait_until
from tests.security.processes import Process, run
from tests.security.secure_kafka import HOST, SecureKafka, documented, password_of, settings_of
from tests.support import InvoiceSystem
from tests.unit.events import encoded, envelope, row

Start = Callable[[str, dict[str, str]], Process]
LOG = logging.getLogger("kafka")


def paid(kafka: SecureKafka, settings: Settings, invoice_id: int) -> None:
    """The event of a paid invoice."""
    kafka.produce(settings.source_topic, encoded(envelope(after=row(invoice_id))))


def letters(environment: dict[str, str]) -> list[dict[str, Any]]:
    """The open dead letters, as the operator sees them."""
    done = run(environment, "dlq", "list", "--json")
    assert done.returncode in (0, 1), done.stderr
    return list(json.loads(done.stdout)["dead_letters"])


def access(environment: dict[str, str]) -> list[checks.Finding]:
    """What `check` finds wrong about Kafka."""
    found = checks.check(settings_of(environment), LOG)
    return [each for each in found if not each.good and each.what.startswith(("Kafka", "topic", "access"))]


def blind(exposition: str) -> list[str]:
    """What the monitor of `api` cannot see of Kafka."""
    seen = ("cfo_sync_monitor_up", "cfo_sync_consumer", "cfo_sync_dlq", "cfo_sync_committed", "cfo_sync_oldest_unproc")
    samples = [line.rsplit(" ", 1) for line in exposition.splitlines() if line.startswith(seen)]
    assert len(samples) > 20
    return [name for name, value in samples if value == "NaN" or (name.startswith(seen[0]) and value == "0.0")]


@pytest.fixture(scope="module")
def installed(kafka: SecureKafka) -> dict[str, str]:
    """The consumer's environment; its topics are made by the login for it, and the three logins have their ACLs."""
    environments = {}
    for user in ("cfo-sync", "cfo-sync-api", "cfo-sync-admin"):
        kafka.set_password(user, password_of(user))
        environments[user] = kafka.environment(user)
    settings = settings_of(environments["cfo-sync"])
    kafka.allow(documented("cfo-sync-admin", settings, "cfo-sync-admin"))
    done = run(environments["cfo-sync-admin"], "topics", "create")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created") == 6
    for user in ("cfo-sync", "cfo-sync-api"):
        kafka.allow(documented(user, settings, user))
    return environments["cfo-sync"]


@pytest.fixture
def invoices(kafka: SecureKafka) -> Iterator[InvoiceSystem]:
    """The invoice system beside that Kafka."""
    system = InvoiceSystem(kafka.stack.postgres.dsn())
    yield system
    system.close()


def test_an_autoscaler_may_see_the_lag_and_no_record(kafka: SecureKafka, installed: dict[str, str]) -> None:
    settings = settings_of(installed)
    kafka.set_password("cfo-sync-keda", password_of("cfo-sync-keda"))
    kafka.allow(documented("cfo-sync-keda", settings, "cfo-sync-keda"))
    admin = broker.make_admin(settings_of(kafka.environment("cfo-sync-keda")), LOG)
    source, retries = settings.source_topic, settings.retry_topics[0]
    granted = topics.permitted(admin, [source, retries], settings.group_id)
    assert (granted[source], granted[retries]) == ({"Describe"}, set())
    # What it asks for: the committed offsets, and the ends of the topic. Not by the client for topics, whose
    # `list_consumer_group_offsets` was seen to crash the process in two of three calls (confluent-kafka 2.16.1).
    config = broker.client_config(settings_of(kafka.environment("cfo-sync-keda")))
    reader = Consumer(config | {"group.id": settings.group_id})
    first = TopicPartition(source, 0)
    [committed] = wait_until(lambda: _committed(reader, first), "the group's coordinator")
    assert committed.error is None
    assert reader.get_watermark_offsets(first, 10)[1] >= 0
    reader.close()


def _committed(reader: Consumer, partition: TopicPartition) -> list[TopicPartition]:
    """The group's offset there; nothing while its coordinator is only being found, as for a group's first request."""
    try:
        return list(reader.committed([partition], 10))
    except KafkaException as error:
        if error.args[0].code() not in COORDINATOR_MOVES:
            raise
        return []


def test_the_documented_acls_are_enough_for_everything(
    kafka: SecureKafka, installed: dict[str, str], invoices: InvoiceSystem, start: Start
) -> None:
    settings, operator = settings_of(installed), kafka.environment("cfo-sync-api")
    assert access(installed) == []
    process = start("run", installed)
    api = start("api", operator | {"CFO_SYNC_MONITOR_INTERVAL": "1s"})

    good, bad = invoices.paid_invoice(), invoices.paid_invoice(amount=None)
    paid(kafka, settings, good)
    paid(kafka, settings, bad)
    wait_until(lambda: invoices.invoice(good)["status"] == "complete", "the booking")
    [letter] = wait_until(lambda: letters(operator), "the dead letter")
    assert letter["invoice_id"] == bad
    invoices.update(bad, amount_usd="12.34")
    done = run(operator, "dlq", "replay", "--invoice", str(bad), "--yes")
    assert done.returncode == 0, done.stderr
    assert "1 replayed" in done.stdout
    wait_until(lambda: invoices.invoice(bad)["status"] == "complete", "the replayed booking")

    process.wait_ready()
    api.wait_ready()
    wait_until(lambda: blind(api.get("/metrics")) == [], "the monitor to see everything", 20)


@pytest.mark.parametrize(
    ("servers", "overrides", "named"),
    [
        (HOST, {"ssl_ca_location": "other"}, "ssl.ca.location"),
        ("localhost", {"broker_address_family": "v4"}, "the host names in CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"),
        (HOST, {"sasl_password": "secret-of-nobody"}, "see sasl.*"),
        (HOST, {"sasl_mechanism": "PLAIN"}, "see sasl.*"),
    ],
    ids=["authority", "host-name", "password", "mechanism"],
)
def test_what_is_wrong_with_certificate_or_login_is_told_by_the_name_of_the_setting(
    kafka: SecureKafka,
    installed: dict[str, str],
    servers: str,
    overrides: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "ssl_ca_location" in overrides:
        overrides = {"ssl_ca_location": str(kafka.another_authority.file)}
    changed = {
        "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": f"{servers}:{kafka.port}",
        "CFO_SYNC_KAFKA_CONFIG_FILE": str(kafka.properties("cfo-sync", **overrides)),
    }
    settings = settings_of(installed | changed)
    admin = broker.make_admin(settings, LOG)
    with pytest.raises(Outage) as caught:
        topics.describe(admin, 1.0)
    assert named in caught.value.message
    assert "secret-of-" not in caught.value.message
    monkeypatch.setattr(topic_reader, "_SOON", 1.0)
    with topic_reader.TopicReader(settings, LOG) as reader, pytest.raises(Outage, match=re.escape(named)):
        reader.bounds(settings.dlq_topic)


def test_a_wrong_password_is_held_by_run_until_it_is_right(
    kafka: SecureKafka, installed: dict[str, str], invoices: InvoiceSystem, start: Start
) -> None:
    kafka.set_password("late", "secret-of-yesterday")
    environment = kafka.environment("late", CFO_SYNC_GROUP_ID="late")
    settings = settings_of(environment)
    process = start("run", environment)
    process.wait_hold("broker", "see sasl.* in CFO_SYNC_KAFKA_CONFIG_FILE")
    done = run(environment, "topics", "create")
    assert done.returncode == 3
    assert "see sasl.*" in done.stderr
    kafka.set_password("late", password_of("late"))
    process.wait_hold("topics", settings.source_topic)  # it comes in, and may nothing
    kafka.allow(documented("cfo-sync", settings, "late"))
    process.wait_ready()
    invoice_id = invoices.paid_invoice()
    paid(kafka, settings, invoice_id)
    wait_until(lambda: invoices.invoice(invoice_id)["status"] == "complete", "the booking")


def test_each_acl_that_lacks_is_named_by_check_with_the_command_that_mends_it(
    kafka: SecureKafka, installed: dict[str, str]
) -> None:
    kafka.set_password("stranger", password_of("stranger"))
    environment = kafka.environment("stranger")
    settings = settings_of(environment)
    found = access(environment)
    own = (*settings.consumed_topics, settings.dlq_topic)
    assert {each.what for each in found} == {f"access to {name}" for name in [
        *(f"topic {topic}" for topic in own), f"group {settings.group_id}",
    ]} | {f"topic {topic}" for topic in own}  # fmt: skip
    kafka.allow([each.fix for each in found if each.fix.startswith("kafka-acls ")])
    assert access(environment) == []


def test_an_acl_that_is_taken_away_holds_its_records_until_it_is_given_back(
    kafka: SecureKafka, installed: dict[str, str], invoices: InvoiceSystem, start: Start
) -> None:
    user, topic, group = "cfo-sync", ResourceType.TOPIC, ResourceType.GROUP
    settings = settings_of(installed)
    # Without Write on any topic the producer gets no identity, which is a fatal error of it.
    taken = kafka.revoke(user, operation=AclOperation.WRITE)
    kafka.allow([f"kafka-acls --add --allow-principal User:{user} --operation Describe --topic {settings.dlq_topic}"])
    taken_group = kafka.revoke(user, group)
    process = start("run", installed)
    process.wait_hold("privilege", f"no Read on group {settings.group_id}")
    kafka.give_back(taken_group)
    process.wait_ready()

    bad = invoices.paid_invoice(amount=None)
    before = len(letters(kafka.environment("cfo-sync-api")))
    paid(kafka, settings, bad)
    refused = wait_until(lambda: process.events("cannot publish"), "the refusal")
    assert refused[0]["to"] == settings.dlq_topic
    kafka.give_back(taken)
    wait_until(lambda: len(letters(kafka.environment("cfo-sync-api"))) > before, "the dead letter")

    taken = kafka.revoke(user, topic, settings.source_topic)
    process.wait_hold("privilege", f"no Read on topic {settings.source_topic}")
    invoice_id = invoices.paid_invoice()
    paid(kafka, settings, invoice_id)
    assert invoices.invoice(invoice_id)["status"] == "paid"
    kafka.give_back(taken)
    wait_until(lambda: invoices.invoice(invoice_id)["status"] == "complete", "the booking")
    process.wait_ready()
    assert len(letters(kafka.environment("cfo-sync-api"))) == before + 1


def test_a_replay_without_its_transactional_id_says_so_and_writes_nothing(
    kafka: SecureKafka, installed: dict[str, str]
) -> None:
    operator = kafka.environment("cfo-sync-api")
    settings = settings_of(operator)
    taken = kafka.revoke("cfo-sync-api", ResourceType.TRANSACTIONAL_ID)
    try:
        done = run(operator, "dlq", "replay", "--yes", "--state", "all", "--force")
    finally:
        kafka.give_back(taken)
    assert done.returncode == 3
    assert f"no Write on the transactional id {settings.replay_topic}-writer" in done.stderr
    taken = kafka.revoke("cfo-sync-api", ResourceType.TOPIC, settings.dlq_topic)
    try:
        done = run(operator, "dlq", "list")
    finally:
        kafka.give_back(taken)
    assert done.returncode == 3
    assert f"topic {settings.dlq_topic} cannot be read" in done.stderr
    assert "authorization" in done.stderr
