"""What `make dist` builds is complete: the wheel, made of the source archive, works outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from consumer.settings import PREFIX
from deploy.local.preparation import create_reference_tables
from deploy.local.stack import Stack

NAME = "distribution"
NOT_COPIED = (".git", ".venv", ".local", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "dist")
SECRETS = (".env", "deploy/secrets/api_token")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, unpacked; of a copy of the repository, because secrets lie in it that must stay out."""
    folder = tmp_path_factory.mktemp("archive")
    shutil.copytree(".", folder / "repository", ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name in SECRETS:
        path = folder / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hunter2")
    build(folder / "repository", "sdist", folder / "packed")
    [packed] = (folder / "packed").iterdir()
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", folder / "unpacked"], check=True)
    [unpacked] = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def environment(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment with the wheel of that archive in it; the packages it needs are those of ours."""
    folder = tmp_path_factory.mktemp("environment")
    build(archive, "wheel", folder)
    [wheel] = folder.iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # A path file adds our folder alone, and not what stands in its path files: the repository is not among it.
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def build(project: Path, target: str, folder: Path) -> None:
    """What `make dist` does, for one of its two."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], cwd=project, check=True)


def run(environment: Path, settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`cfo-sync` of this environment, in its folder, with no other setting than these."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "PYTHON"))}
    return subprocess.run(
        [environment / "bin" / "cfo-sync", *arguments],
        cwd=environment,
        env=variables | dict(settings),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_archive_has_what_is_read_and_no_secret(archive: Path) -> None:
    packed = {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()}
    assert packed >= {"debezium-connector.json", "deploy/compose.yaml", "deploy/Dockerfile", "Makefile", "LICENSE"}
    for folder in ("consumer", "schemas", "docs"):
        for path in Path(folder).rglob("*"):
            assert str(path) in packed or not path.is_file() or "__pycache__" in path.parts, path
    assert packed.isdisjoint(SECRETS)


def test_the_wheel_brings_its_migrations_mapping_and_schemas(environment: Path, stack: Stack) -> None:
    stack.up(["postgres", "kafka"])
    stack.postgres.create_database(NAME)
    create_reference_tables(stack.postgres.dsn(NAME))
    settings = {
        f"{PREFIX}INVOICE_DSN": stack.postgres.dsn(NAME),
        f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS": stack.kafka.bootstrap_servers,
        f"{PREFIX}SOURCE_TOPIC": f"{NAME}.public.crypto_invoices",
        f"{PREFIX}TOPIC_PREFIX": NAME,
    }
    names = sorted(path.stem for path in Path("schemas/sql").glob("*.sql"))
    migrated = run(environment, settings, "migrate")
    assert (migrated.stdout.splitlines(), migrated.stderr) == ([f"applied {name}" for name in names], "")
    assert run(environment, settings, "topics", "create").returncode == 0

    checked = run(environment, settings, "check")
    assert (checked.returncode, checked.stderr) == (1, "")
    bad = [line.partition(":")[0] for line in checked.stdout.splitlines() if line.startswith("BAD")]
    assert bad == ["BAD  publication cfo_sync_publication", "BAD  replication slot cfo_sync"]  # there is no connector

    [package] = environment.glob("lib/python*/site-packages/consumer")
    for path in Path("schemas").rglob("*"):
        if path.is_file():
            assert (package / "_schemas" / path.relative_to("schemas")).read_bytes() == path.read_bytes()


def test_the_demo_is_in_the_wheel(environment: Path) -> None:
    helped = run(environment, {}, "demo", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: cfo-sync demo" in helped.stdout
    [package] = environment.glob("lib/python*/site-packages/consumer")
    code = f"import consumer.demo as d; assert d.__file__.startswith({str(package)!r}), d.__file__"
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code], cwd=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
