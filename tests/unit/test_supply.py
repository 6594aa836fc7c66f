"""What is installed is locked by hash, and the audit never takes silence for good news."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploy.supply.__main__ import java_components, main, read_audit

REQUIREMENTS = Path("deploy/requirements")
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))


def packages(lock: Path) -> dict[str, str]:
    """Each requirement of a lock, and its version."""
    text = lock.read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[a-z,]+\])?==([^ ;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_is_locked_by_version_and_hash_and_comes_from_no_named_place(lock: Path) -> None:
    entries = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    assert len(entries) == len(packages(lock)) > 5
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9.\[\],-]+==[^ ]+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+ *", entry), entry


def test_what_is_tested_is_what_is_installed() -> None:
    for lock in ("runtime.txt", "build.txt"):
        assert packages(REQUIREMENTS / lock).items() <= packages(REQUIREMENTS / "dev.txt").items()


def test_locks_are_installed_with_their_hashes_only() -> None:
    for file in ("deploy/local/virtualenv.py", "deploy/supply/__main__.py"):
        assert '"--require-hashes", "--requirement"' in Path(file).read_text(encoding="utf-8")


def test_every_jar_has_its_hash() -> None:
    jars = java_components()
    assert len(jars) > 50
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar["hashes"][0]["content"]) for jar in jars)
    assert all(jar["scope"] == "excluded" for jar in jars)


def test_the_audit_counts_only_what_was_answered() -> None:
    good = {"name": "good", "version": "1", "vulns": []}
    unknown = {"name": "unknown", "skip_reason": "not found"}
    bad = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3"]},
                                                    {"id": "PYSEC-2", "fix_versions": []}]}  # fmt: skip
    lines, holes, asked = read_audit(json.dumps({"dependencies": [good, unknown, bad]}))
    assert lines == [
        "bad 2: PYSEC-1, mended in 2.1, 3",
        "bad 2: PYSEC-2, mended in no version yet",
        "audit: 2 known vulnerabilities in 2 packages",
        "audit: nothing could be learnt about unknown",
    ]
    assert (holes, asked) == (2, 2)


@pytest.mark.parametrize("report", ["", "Traceback", json.dumps({"dependencies": [{"name": "x", "skip_reason": "y"}]})])
def test_no_answer_is_not_taken_for_a_good_one(report: str) -> None:
    assert read_audit(report)[1:] == (0, 0)


def test_anything_else_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audt"]) == 2
    assert "usage" in capsys.readouterr().err
