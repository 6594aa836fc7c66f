"""Runs the files of schemas/roles as the owner, and lets the roles log in with the passwords of the secret files.

May run again at any time: the files say so of themselves, and this is how a changed password gets into the database.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from consumer.migrations import MigrationError, schemas_folder

_SECRETS = Path("/run/secrets")


def main() -> int:
    """The exit code. What goes wrong is told without a password."""
    try:
        _make_roles()
    except (OSError, MigrationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except psycopg.Error as error:
        print(f"error: {error.diag.message_primary or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def _make_roles() -> None:
    passwords = {"cfo_sync_debezium": _read("debezium_password")}
    for name in ("consumer_dsn", "api_dsn"):
        login = conninfo_to_dict(_read(name))
        passwords[str(login["user"])] = str(login["password"])
    with psycopg.connect(_read("owner_dsn"), autocommit=True) as connection:
        for file in ("invoice_database.sql", "cfo_database.sql"):
            connection.execute((schemas_folder() / "roles" / file).read_bytes())
        for role, password in passwords.items():
            # Hashed here, so that no log of the server can hold the password.
            verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))
            print(f"{role} may log in")


def _read(secret: str) -> str:
    return (_SECRETS / secret).read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
