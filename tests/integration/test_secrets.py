"""No secret is ever told: commands that fail in every way, and servers at DEBUG, with secrets planted everywhere.

Each secret has two marks with characters around them that URLs, JSON and shells write differently. A mark is of letters
and digits, so it shows through any of these spellings, also where half a password is taken for a host name; in base64
it is looked for at each of its three alignments.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumer.settings import SettingsError, load
from deploy.local.ports import choose_port
from deploy.local.postgres import OWNER
from deploy.local.stack import Stack
from tests.e2e.harness import wait_until
from tests.support import InvoiceSystem

NAMES = ("right", "wrong", "keyword", "url", "sasl", "key", "pem", "bare", "operator", "viewer", "guess")
MARKS = {name: (f"{name}Kq7Zr9mark", f"{name}Xw4Tb6mark") for name in NAMES}
PLANTED = {name: f"{first}@:/%#?&+= '{second}" for name, (first, second) in MARKS.items()}
TOKENS = {name: f"{first}-{second}" for name, (first, second) in MARKS.items()}
NOBODY = "127.0.0.1:1"
ROLE = "keeper_of_secrets"


def spellings(mark: str) -> Iterator[str]:
    """The mark, and what base64 makes of it wherever it stands in what is encoded."""
    yield mark
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + mark.encode()).decode()
        whole = coded[4 if before else 0 : -4]  # the rest depends on its neighbours
        yield whole
        yield whole.replace("+", "-").replace("/", "_")


SIGNS = {each: name for name, marks in MARKS.items() for mark in marks for each in spellings(mark)}


def assert_silent(text: str | bytes, where: str) -> None:
    """No secret is in it."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    told = {name for sign, name in SIGNS.items() if sign in text}
    assert not told, f"{where} tells {told}:\n{text[:5000]}"


def test_the_search_finds_what_it_looks_for() -> None:
    secret = PLANTED["sasl"]
    for spelled in (
        secret, quote(secret, safe=""), secret.replace("'", r"\'"), secret[:20], secret[20:],
        *(base64.b64encode(b"user:"[start:] + secret.encode()).decode() for start in range(5)),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="tells"):
            assert_silent(f'{{"x": "{spelled}"}}', "this")


def url(name: str, address: str = NOBODY, dbname: str = "d") -> str:
    return f"postgresql://{ROLE}:{quote(PLANTED[name], safe='')}@{address}/{dbname}"


@pytest.fixture(scope="module")
def place(postgres: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A database whose role has a planted password, a broker, files with secrets: the variables of all that works."""
    postgres.up(["postgres", "kafka"])
    folder = tmp_path_factory.mktemp("secrets")
    with psycopg.connect(postgres.postgres.superuser_dsn(), autocommit=True) as connection:
        name, password, owner = sql.Identifier(ROLE), sql.Literal(PLANTED["right"]), sql.Identifier(OWNER)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(name, password, owner))
    (folder / "kafka.properties").write_text(
        f"sasl.username=cfo\nsasl.password={PLANTED['sasl']}\nssl.key.password={PLANTED['key']}\n"
        "debug=conf,security,broker,admin\n"
    )
    return {
        "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": postgres.kafka.bootstrap_servers,
        "CFO_SYNC_KAFKA_CONFIG_FILE": str(folder / "kafka.properties"),
        "CFO_SYNC_SOURCE_TOPIC": "secrets-source",
        "CFO_SYNC_TOPIC_PREFIX": "secrets",
        "CFO_SYNC_GROUP_ID": "secrets",
        "CFO_SYNC_LOG_LEVEL": "DEBUG",
        "CFO_SYNC_API_TOKEN": f"treasury:operator:{TOKENS['operator']},audit:viewer:{TOKENS['viewer']}",
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CFO_SYNC_")}
    return inherited | dict(variables)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "consumer", *arguments]


def properties(folder: Path, number: int, *lines: str) -> str:
    file = folder / f"{number}.properties"
    file.write_text("\n".join([*lines, f"sasl.password={PLANTED['sasl']}", f"ssl.key.password={PLANTED['key']}"]))
    return str(file)


FIRST, SECOND = MARKS["url"]
CRASH = """
from consumer import sessions, settings, tokens
made = settings.load()
print(made, repr(made), made.model_dump(), made.model_dump_json())
print(tokens.parse(made.api_token.get_secret_value()))
session = sessions.Session(made.invoice_dsn.get_secret_value(), "database")
with session.connection() as connection:
    print(session, connection, connection.info.dsn, connection.info.get_parameters())
    connection.execute("SELECT 1 / 0")
"""


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{PLANTED['url']}@127.0.0.1:1/d",
        f"postgresql://u:{FIRST}@{SECOND}@127.0.0.1/d",
        f"postgresql://u:{FIRST}/{SECOND}@127.0.0.1/d",
        f"postgresql://u:{FIRST}@x:{SECOND}@127.0.0.1/d",
        f"postgresql://u:{FIRST}@x/{SECOND}@127.0.0.1/d",
        f"postgresql://u:1/{SECOND}@127.0.0.1/d",
        f"postgresql://u:{FIRST}%{SECOND}@127.0.0.1/d",
        f"host=127.0.0.1 password={FIRST} {SECOND}",
        f"host=127.0.0.1 password='{FIRST}' {SECOND}=1",
    ],
)
def test_a_password_that_was_not_encoded_is_told_for_no_host_or_database(dsn: str) -> None:
    with pytest.raises(SettingsError, match=r"^CFO_SYNC_INVOICE_DSN: (not a|in the password)") as caught:
        load(_env_file=None, invoice_dsn=dsn)
    assert_silent("".join(traceback.format_exception(caught.value)), "the error")


def test_what_fails_tells_no_secret(place: Mapping[str, str], dsn: str, tmp_path: Path) -> None:
    there = conninfo_to_dict(dsn)
    address, dbname = f"{there['host']}:{there['port']}", str(there["dbname"])
    works = dict(place) | {"CFO_SYNC_INVOICE_DSN": url("right", address, dbname)}
    wrong = works | {"CFO_SYNC_INVOICE_DSN": url("wrong", address, dbname)}
    nowhere = works | {
        "CFO_SYNC_INVOICE_DSN": url("url"),
        "CFO_SYNC_CFO_DSN": make_conninfo(
            host="no-such-host.invalid", user="u", dbname="d", password=PLANTED["keyword"], sslpassword=PLANTED["key"]
        ),
        "CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS": NOBODY,
    }  # fmt: skip
    invoices = InvoiceSystem(dsn)
    invoice = str(invoices.paid_invoice())
    invoices.close()
    mapping = tmp_path / "mapping.toml"
    mapping.write_text("[target]\ntable = 7\n")

    def with_kafka(number: int, *lines: str) -> dict[str, str]:
        return works | {"CFO_SYNC_KAFKA_CONFIG_FILE": properties(tmp_path, number, *lines)}

    runs: list[tuple[int, list[str], dict[str, str]]] = [
        (3, command("dlq", "list"), with_kafka(1, "security.protocol=sasl_plaintext", "sasl.mechanism=PLAIN")),
        (1, command("check"), nowhere),
        (3, command("dlq", "list"), nowhere),
        (0, command("topics", "create"), works),
        (0, command("run", "--help"), works),
        (1, command("check"), works),  # no connector here
        (1, command("check", "--json"), wrong),
        (3, command("migrate"), wrong),
        (3, command("migrate"), nowhere),
        (3, command("reconcile"), wrong),
        (3, command("sync", invoice), works | {"CFO_SYNC_CFO_DSN": url("wrong", address, dbname)}),
        (3, command("topics", "create"), with_kafka(2, "security.protocol=ssl", f"ssl.key.pem={PLANTED['pem']}")),
        (3, command("topics", "create"), with_kafka(3, "security.protocol=ssl", f"ssl.key.location={mapping}")),
        (2, command("topics", "create"), with_kafka(4, PLANTED["pem"].replace("=", ""))),
        (2, command("check"), works | {"CFO_SYNC_MAPPING_FILE": str(mapping)}),
        (2, command("run"), works | {"CFO_SYNC_BATCH_SIZE": "0", "CFO_SYNC_API_TOKEN": PLANTED["bare"]}),
        (2, command("api"), works | {"CFO_SYNC_API_TOKEN": f"treasury:{TOKENS['bare']}"}),
        (2, command("api"), works | {"CFO_SYNC_API_TOKEN": PLANTED["bare"]}),
        (1, [sys.executable, "-X", "dev", "-c", CRASH], works),
    ]  # fmt: skip

    def run(number: int) -> tuple[int, str]:
        _, arguments, variables = runs[number]
        done = subprocess.run(
            arguments, env=environment(variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, range(len(runs))))
    for (expected, arguments, _), (code, said) in zip(runs, answers, strict=True):
        assert_silent(said, " ".join(arguments))
        assert code == expected, f"{arguments} gave {code}:\n{said[:3000]}"
        assert said
    assert "DivisionByZero" in answers[-1][1]


@contextmanager
def running(arguments: list[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server; what it said must be silent, and so must what others see of the process."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            arguments, env=environment(variables), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    try:
        yield process
        assert process.poll() is None, log.read_text()
        assert_silent(Path(f"/proc/{process.pid}/cmdline").read_bytes(), "the list of processes")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
    said = log.read_text()
    assert "sasl.password" in said  # at DEBUG the Kafka client lists its settings
    assert_silent(said, " ".join(arguments))


def ask(port: str, path: str, token: str | None = None, method: str = "GET") -> tuple[int, str]:
    """Status and all of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=20)
    except httpx.TransportError:  # not there yet
        return 0, ""
    return answer.status_code, f"{answer.headers!r}{answer.text}"


def test_what_runs_tells_no_secret(postgres: Stack, place: Mapping[str, str], dsn: str, tmp_path: Path) -> None:
    there = conninfo_to_dict(dsn)
    address, dbname = f"{there['host']}:{there['port']}", str(there["dbname"])
    run_port, api_port = str(choose_port()), str(choose_port())
    variables = dict(place) | {
        "CFO_SYNC_INVOICE_DSN": url("right", address, dbname),
        "CFO_SYNC_METRICS_PORT": run_port,
        "CFO_SYNC_METRICS_HOST": "127.0.0.1",
        "CFO_SYNC_API_PORT": api_port,
        "CFO_SYNC_RETRY_DELAYS": "1s,1s,1s",
    }
    subprocess.run(command("topics", "create"), env=environment(variables), check=True, capture_output=True)
    invoices = InvoiceSystem(dsn)
    invoice_id = invoices.paid_invoice()
    producer = Producer({"bootstrap.servers": place["CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"]})
    producer.produce("secrets-source", value=b"no event")
    assert producer.flush(10) == 0
    del producer  # it would look for its broker when that is gone
    log = tmp_path / "log"
    with (
        running(command("run"), variables, log.with_suffix(".run")),
        running(command("api"), variables, log.with_suffix(".api")),
    ):
        wait_until(lambda: ask(run_port, "/readyz")[0] == 200, "the consumer", 30)
        wait_until(lambda: ask(api_port, "/readyz")[0] == 200, "the API", 30)
        answers = [ask(run_port, path) for path in ("/metrics", "/readyz", "/healthz")]
        answers += [ask(api_port, path) for path in ("/metrics", "/readyz", "/healthz")]
        sync = f"/api/invoice/{invoice_id}/sync-to-cfo"
        for token in (TOKENS["operator"], TOKENS["viewer"], TOKENS["guess"], None):
            answers += [ask(api_port, sync, token, "POST"), ask(api_port, "/api/cfo-sync/dlq", token)]
        statuses = [status for status, _ in answers[6:]]
        assert statuses == [200, 200, 403, 200, 401, 401, 401, 401]
        # And when the database refuses what worked before.
        with psycopg.connect(postgres.postgres.superuser_dsn(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {dbname} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,))
            time.sleep(1.5)
            answers.append(ask(api_port, "/readyz"))
            answers.append(ask(api_port, sync, TOKENS["operator"], "POST"))
            assert [status for status, _ in answers[-2:]] == [503, 503]
            connection.execute(f"ALTER DATABASE {dbname} ALLOW_CONNECTIONS true")
        for _, answer in answers:
            assert_silent(answer, "an answer")
        [letter] = dead_letters(place)
        headers = dict(letter.headers())
        assert headers["cfo-sync.error-code"] == b"not-json"
        assert_silent(repr(headers), "a dead letter")
    invoices.close()


def dead_letters(place: Mapping[str, str]) -> Any:
    consumer = Consumer({"bootstrap.servers": place["CFO_SYNC_KAFKA_BOOTSTRAP_SERVERS"], "group.id": "reader"})
    try:
        partitions = consumer.list_topics("secrets.dlq", 10).topics["secrets.dlq"].partitions
        consumer.assign([TopicPartition("secrets.dlq", number, 0) for number in partitions])
        return wait_until(lambda: consumer.consume(1, 0.5), "the dead letter", 20)
    finally:
        consumer.close()
