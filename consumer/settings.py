"""Settings: environment variables `CFO_SYNC_*`, a `.env` file beside the process, and a folder of secret files."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from consumer.retry import MAX_RETRIES
from consumer.texts import found

PREFIX: Final = "CFO_SYNC_"
SECRETS_DIR: Final = f"{PREFIX}SECRETS_DIR"
"""Names a folder in which each file holds one setting and bears its name, such as `cfo_sync_invoice_dsn`."""


class SettingsError(Exception):
    """The settings cannot be used; one line per variable, with what was expected. Never repeats a secret."""


_LONGEST: Final = 86_400.0
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


def parse_duration(text: object) -> timedelta:
    """`90`, `90s`, `1.5m`, `15m`, `1h`, `250ms`, `1d`. Raises `ValueError`."""
    if isinstance(text, timedelta):
        return text
    match = _DURATION.fullmatch(str(text).strip().lower())
    if match is None:
        raise ValueError("write a duration like 30s, 5m or 1h")
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if seconds > _LONGEST:
        raise ValueError("write a duration of at most 1d")
    return timedelta(seconds=seconds)


def _delays(text: object) -> tuple[timedelta, ...]:
    parts = text.split(",") if isinstance(text, str) else text
    if not isinstance(parts, list | tuple) or len(parts) != MAX_RETRIES:
        raise ValueError(f"write exactly {MAX_RETRIES} durations, like 1m,5m,15m")
    return tuple(parse_duration(part) for part in parts)


def _dsn(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    try:
        parts = conninfo_to_dict(text)
        is_one = "\0" not in text  # libpq would read no further
    except (ProgrammingError, UnicodeEncodeError):  # their texts may repeat the password
        is_one = False
    if not is_one:
        raise ValueError("not a PostgreSQL connection string: write postgresql://user:password@host/dbname")
    # Otherwise libpq takes a part of the password for one of these, and tells it when it cannot connect.
    host, port, dbname = (str(parts.get(name) or "") for name in ("host", "port", "dbname"))
    if "://" in text and ("@" in host + dbname or re.search(r"[^0-9,]", port)):
        raise ValueError("in the password, characters like @ : / % must be percent-encoded")
    return secret


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("write one line without control characters")
    return text


def _file(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("write the path of a file")
    return path


def _above_zero(duration: timedelta) -> timedelta:
    if not duration:
        raise ValueError("write a duration above 0")
    return duration


Dsn: TypeAlias = Annotated[SecretStr, AfterValidator(_dsn)]
Line: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_line)]
File: TypeAlias = Annotated[Path, AfterValidator(_file)]
Duration: TypeAlias = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_above_zero)]
TopicName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,230}$")]


class Settings(BaseSettings):
    """Everything that can be set. Read once, by `load`, in the composition root."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    invoice_dsn: Dsn = Field(description="The invoice system's database; the mapping and log tables live there too.")
    cfo_dsn: Dsn | None = Field(None, description="The CFO's database, when it is another one.")
    kafka_bootstrap_servers: Line = Field("localhost:9092", description="Kafka brokers, comma separated.")
    kafka_config_file: File | None = Field(None, description="librdkafka properties file, for SASL, TLS and tuning.")
    source_topic: TopicName = Field("invoicing.public.crypto_invoices", description="Where Debezium writes.")
    group_id: Line = Field("cfo-sync", description="Consumer group.")
    topic_prefix: TopicName = Field("cfo-sync", description="Our own topics start with it.")
    retry_delays: Annotated[tuple[timedelta, ...], NoDecode, BeforeValidator(_delays)] = Field(
        tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15)), description="Waits before the three retries."
    )
    mapping_file: File | None = Field(None, description="TOML mapping rules; without it, the guide's.")
    batch_size: int = Field(2000, ge=1, le=20_000, description="Records handled together at most.")
    sweep_interval: Duration = Field(timedelta(minutes=5), description="How often missed paid invoices are looked for.")
    sweep_grace: Duration = Field(timedelta(minutes=2), description="How old a paid invoice must be for the sweep.")
    apply_connections: int = Field(
        2, ge=1, le=2, description="Connections to each database over which a large batch is booked."
    )
    silence_echo: bool = Field(
        False, description="Mark our own updates, for a connector that shall pass them over (docs/connector.md)."
    )
    replication_slot: Line = Field("cfo_sync", description="The connector's, which `check` looks at.")
    publication: Line = Field("cfo_sync_publication", description="The same.")
    breaker_consecutive_faults: int = Field(
        20, ge=2, description="So many database faults in a row are taken for an outage."
    )
    api_host: Line = Field("127.0.0.1", description="Address that the API binds to.")
    api_port: int = Field(8080, ge=0, le=65535, description="Port of the API.")
    api_token: SecretStr | None = Field(
        None, description="Bearer token of the API, or several name:role:token, comma separated."
    )
    monitor_interval: Duration = Field(timedelta(seconds=15), description="How often `api` looks at the pipeline.")
    reconcile_interval: Duration = Field(timedelta(hours=1), description="How often `api` reconciles the whole ledger.")
    metrics_host: Line = Field("0.0.0.0", description="Address that `run` serves /metrics on.")  # noqa: S104
    metrics_port: int = Field(9108, ge=0, le=65535, description="Port of /metrics and /readyz of `run`; 0 for none.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level logged.")
    log_format: Literal["json", "human"] = Field("json", description="One JSON object a line, or lines for people.")

    @property
    def retry_topics(self) -> tuple[str, ...]:
        """The three delay topics, first retry first."""
        return tuple(f"{self.topic_prefix}.retry.{number}" for number in range(1, MAX_RETRIES + 1))

    @property
    def dlq_topic(self) -> str:
        """The dead-letter topic."""
        return f"{self.topic_prefix}.dlq"

    @property
    def replay_topic(self) -> str:
        """Where the dead-letter tool puts records that shall be tried again."""
        return f"{self.topic_prefix}.replay"

    @property
    def consumed_topics(self) -> tuple[str, ...]:
        """What a consumer subscribes to: the source topic, the delay topics and replays."""
        return (self.source_topic, *self.retry_topics, self.replay_topic)

    @property
    def invoice_database(self) -> str:
        """What people call the database that the invoices are in."""
        return "database" if self.is_one_database else "invoice database"

    @property
    def is_one_database(self) -> bool:
        """Whether the CFO's table stands in the invoice database, so that one transaction holds everything."""
        return self.cfo_dsn is None or self.cfo_dsn == self.invoice_dsn


_SECRETS: Final = {"invoice_dsn", "cfo_dsn", "api_token"}


def load(**overrides: Any) -> Settings:
    """Read the environment, then `.env`, then the folder that `SECRETS_DIR` names: the first that has a setting counts.

    Raises `SettingsError`: a line for each variable that is wrong, with what was found in it (unless it is a secret)
    and what is allowed.
    """
    folder = os.environ.get(SECRETS_DIR) or None
    if folder is not None and not os.path.isdir(folder):
        raise SettingsError(f"{SECRETS_DIR}: write the path of a folder that is there, found {found(folder)}")
    try:
        return Settings(**{"_secrets_dir": folder} | overrides)
    except (UnicodeDecodeError, UnreadableError):
        # Its text would repeat the bytes, which may be a secret.
        raise SettingsError(f"{'.env' if folder is None else f'.env or a file of {folder}'}: not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{error.filename or '.env'}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False, include_context=False):
            field = str(item["loc"][0])
            name = PREFIX + field.upper()
            what = item["msg"].removeprefix("Value error, ").replace("Input should ", "must ")
            if item["type"] == "missing":  # only a DSN can be
                what = f"is not set: write {name}=postgresql://user:password@host/dbname into the environment or ./.env"
            elif item["type"] == "string_pattern_mismatch":
                what = "write 1 to 230 of the characters A-Z a-z 0-9 . _ -"
            if field not in _SECRETS:
                what += f", found {found(item['input'])}"
            lines.append(f"{name}: {what}")
        raise SettingsError("\n".join(lines)) from None
