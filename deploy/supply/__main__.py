"""`python -m deploy.supply audit` and `sbom`, with tools in an environment of their own, of a lock of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[2]
_LOCKS = _REPOSITORY / "deploy" / "requirements"
_JAVA = _REPOSITORY / "deploy" / "local" / "java"
_SBOM = _REPOSITORY / "dist" / "sbom.json"
_DATABASES = ("pypi", "osv")


def main(arguments: list[str]) -> int:
    """Do what is asked for; give the exit code."""
    match arguments:
        case ["audit"]:
            return audit()
        case ["sbom"]:
            return write_sbom()
    print("usage: python -m deploy.supply audit|sbom", file=sys.stderr)
    return 2


def audit() -> int:
    """Ask for known holes of all Python packages, those that only tests need too. Gives 1 when there are any.

    Not being able to ask is said, and is no failure: `make check` works without a network.
    """
    tools = _tools()
    if tools is None:
        print("audit: not reachable: its tools could not be installed, nothing was checked")
        return 0
    for database in _DATABASES:
        done = subprocess.run(
            [tools / "pip-audit", "--requirement", _LOCKS / "dev.txt", "--requirement", _LOCKS / "tools.txt",
             "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json",
             "--vulnerability-service", database],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines, holes, asked = read_audit(done.stdout)
        if asked:
            print("\n".join(lines))
            return 1 if holes else 0
    print("audit: not reachable: no database of vulnerabilities answered, nothing was checked")
    return 0


def read_audit(report: str) -> tuple[list[str], int, int]:
    """What pip-audit's JSON says, in lines; how many holes it found, and about how many packages it got an answer."""
    try:
        packages = json.loads(report)["dependencies"]
    except json.JSONDecodeError:
        return [], 0, 0
    asked = [package for package in packages if "vulns" in package]
    unknown = sorted({package["name"] for package in packages if "vulns" not in package})
    lines, holes = [], 0
    for package in asked:
        for hole in package["vulns"]:
            holes += 1
            mended = ", ".join(hole["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    lines.append(f"audit: {holes} known vulnerabilities in {len(asked)} packages")
    if unknown:
        lines.append(f"audit: nothing could be learnt about {', '.join(unknown)}")
    return lines, holes, len(asked)


def write_sbom() -> int:
    """Write dist/sbom.json (CycloneDX): what is installed with the product, and, marked as excluded from it, the Java
    parts of the local stack."""
    tools = _tools()
    if tools is None:
        print("error: the tools could not be installed", file=sys.stderr)
        return 1
    _SBOM.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [tools / "cyclonedx-py", "requirements", _LOCKS / "runtime.txt", "--pyproject", _REPOSITORY / "pyproject.toml",
         "--output-reproducible", "--output-file", _SBOM],
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        return done.returncode
    document = json.loads(_SBOM.read_text(encoding="utf-8"))
    document["components"] += java_components()
    _SBOM.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{_SBOM.relative_to(_REPOSITORY)}: {len(document['components'])} components")
    return 0


def java_components() -> list[dict[str, Any]]:
    """The locked jars, as CycloneDX has them; each once."""
    found = {}
    for lock in sorted(_JAVA.glob("*/jgo.lock.toml")):
        for jar in tomllib.loads(lock.read_text(encoding="utf-8"))["dependencies"]:
            group, name, version = jar["groupId"], jar["artifactId"], jar["version"]
            purl = f"pkg:maven/{group}/{name}@{version}"
            found[purl] = {
                "type": "library",
                "bom-ref": purl,
                "group": group,
                "name": name,
                "version": version,
                "scope": "excluded",
                "purl": purl,
                "hashes": [{"alg": "SHA-256", "content": jar["sha256"]}],
            }
    return list(found.values())


def _tools() -> Path | None:
    """The folder with the tools' programs, made when the lock is new; None when that fails."""
    lock = _LOCKS / "tools.txt"
    folder = _REPOSITORY / ".cache" / f"tools-{sha256(lock.read_bytes()).hexdigest()[:12]}"
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        commands: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", folder],
            [folder / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check",
             "install", "--require-hashes", "--requirement", lock],
        ]  # fmt: skip
        for command in commands:
            if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
                return None
        done.touch()
    return folder / "bin"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
