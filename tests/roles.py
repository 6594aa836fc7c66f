"""The shipped database roles: what the tests give to the product logs in as one of them, the tests' own hands as owner.

They have the owner's password, which is random and made with the stack, so a DSN becomes another role's by its user.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from consumer.settings import Settings
from deploy.local.postgres import OWNER

CONSUMER: Final = "cfo_sync_consumer"
API: Final = "cfo_sync_api"
DEBEZIUM: Final = "cfo_sync_debezium"
REPORTING: Final = "cfo_sync_reporting"
ROLES: Final = (CONSUMER, API, DEBEZIUM, REPORTING)

INVOICE_DATABASE: Final = Path("schemas/roles/invoice_database.sql")
CFO_DATABASE: Final = Path("schemas/roles/cfo_database.sql")


def create_roles(dsn: str, *files: Path) -> None:
    """Run the shipped files as the owner, and let the roles log in with the owner's password."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for file in files or (INVOICE_DATABASE, CFO_DATABASE):
            connection.execute(file.read_bytes())
        password = sql.Literal(connection.info.password)
        for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", (list(ROLES),)):
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), password))


def let_owner_watch(superuser_dsn: str) -> None:
    """For the tests' own hands: to look at the product's sessions, and to end them."""
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT pg_read_all_stats, pg_signal_backend TO {}").format(sql.Identifier(OWNER)))


def as_role(role: str, dsn: str) -> str:
    """The DSN with this role; that of a user who is neither the owner nor one of the roles stays."""
    user = conninfo_to_dict(dsn).get("user")
    return make_conninfo(dsn, user=role) if user in (OWNER, *ROLES) else dsn


def as_owner(dsn: str) -> str:
    """The DSN with the owner instead of a role."""
    return as_role(OWNER, dsn)


def environment_as(role: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with this role in both DSNs."""
    return {
        name: as_role(role, value) if name in ("CFO_SYNC_INVOICE_DSN", "CFO_SYNC_CFO_DSN") else value
        for name, value in environment.items()
    }


def settings_as(role: str, settings: Settings) -> Settings:
    """The settings with this role in both databases."""
    dsns = {"invoice_dsn": settings.invoice_dsn, "cfo_dsn": settings.cfo_dsn}
    return settings.model_copy(
        update={name: dsn and SecretStr(as_role(role, dsn.get_secret_value())) for name, dsn in dsns.items()}
    )
