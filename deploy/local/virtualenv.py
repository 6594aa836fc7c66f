"""Builds .venv from the committed lock; run by make, with the standard library only (`python -I`).

A virtual environment is taken as complete only if its key says so, and the key is written last: an install that was
interrupted is done again. The key covers what is installed and where: a moved clone gets a new one, because the
scripts inside name absolute paths.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = _REPOSITORY / ".venv"
_LOCK = _REPOSITORY / "deploy" / "requirements" / "dev.txt"


def main() -> int:
    """Make .venv usable; return 0 when it is."""
    if _installed() == _wanted():
        return 0
    try:
        (_REPOSITORY / ".cache").mkdir(exist_ok=True)
        guard = (_REPOSITORY / ".cache" / "venv.lock").open("w")
    except PermissionError:
        print(f"error: cannot write to {_REPOSITORY}: use a clone of your own", file=sys.stderr)
        return 1
    with guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # another make may be building it
        return _build()


def _build() -> int:
    installed, wanted = _installed(), _wanted()
    if installed == wanted:
        return 0
    # The project itself is installed again when its metadata changes, everything else when the lock does.
    if installed.get("lock") != wanted["lock"] or installed.get("folder") != wanted["folder"]:
        print("installing Python packages into .venv (this takes about a minute)", file=sys.stderr, flush=True)
        shutil.rmtree(_FOLDER, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", "venv", _FOLDER], check=False).returncode:
            print("error: no virtual environment could be made, see above", file=sys.stderr)
            return 1
        if not _pip("--no-compile", "--require-hashes", "--requirement", str(_LOCK)):
            return 1
    (_FOLDER / "key.json").unlink(missing_ok=True)
    if not _pip("--no-deps", "--no-build-isolation", "--editable", str(_REPOSITORY)):
        return 1
    (_FOLDER / "key.json").write_text(json.dumps(wanted))
    return 0


def _pip(*arguments: str) -> bool:
    pip = [
        str(_FOLDER / "bin" / "python"),
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
        *arguments,
    ]
    done = subprocess.run(pip, cwd=_REPOSITORY, check=False).returncode == 0
    if not done:
        print("error: pip failed, see above. Nothing half done is used: run the same command again", file=sys.stderr)
    return done


def _installed() -> dict[str, str]:
    """What .venv was completed with; empty if it was not, or if the interpreter it was made from has gone."""
    try:
        key = json.loads((_FOLDER / "key.json").read_text())
    except FileNotFoundError:
        return {}
    return key if os.access(_FOLDER / "bin" / "python", os.X_OK) else {}


def _wanted() -> dict[str, str]:
    return {"lock": _hash(_LOCK), "project": _hash(_REPOSITORY / "pyproject.toml"), "folder": str(_FOLDER)}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
