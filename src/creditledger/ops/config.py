"""The settings: one frozen `Config`, and the only place that reads the environment.

Every setting is an environment variable CREDITLEDGER_<NAME> and a flag --<name>; the flag wins.
The help of the command line is made of them, so this module imports the store only when it is used.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

PREFIX = "CREDITLEDGER_"
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]

#: What Kubernetes puts into the environment for a service named creditledger-something.
_SERVICE_LINK = re.compile(r"(?:^|_)(SERVICE_(HOST|PORT)|PORT)(_|$)")


#: Variables of our prefix that belong to clients and tests in the same environment.
_OTHERS = re.compile(r"API_KEY|URL|TEST_.*")


class WrongSetting(Exception):
    """A setting that stops the start. Its text is one sentence that names the setting."""


class CannotStart(Exception):
    """The server, or a command, cannot begin. Its text is one sentence for the operator."""


def spelled(name: str) -> str:
    """A setting as its user spells it: CREDITLEDGER_GRPC_ADDRESS (--grpc-address)."""
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')})"


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `host:port` or `[host]:port`. Raises ValueError saying what is wrong."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not (separator and host and digits) or (":" in host) != bracketed:
        raise ValueError("must be host:port such as 127.0.0.1:50051")
    if int(port) > 65_535:
        raise ValueError("must have a port of 0 to 65535; 0 means any free one")
    return host, int(port)


def http_url(address: tuple[str, int]) -> str:
    """The URL of a host and a port, without a slash at its end."""
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the `host:port`."""
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _database_url(url: str) -> str:
    from creditledger import store

    try:
        store.check(url)
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from None
    return url


def _address(address: str) -> str:
    host_and_port(address)
    return address


def _endpoint(url: str) -> str:
    scheme, _, address = url.partition("://")
    if scheme not in {"http", "https"}:
        raise ValueError("must be a URL such as http://127.0.0.1:4317")
    return f"{scheme}://{_address(address)}"


def _file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ValueError("must name a file that exists")
    return path


class Config(BaseModel):
    """All settings, checked. Make it with `load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    database_url: Annotated[
        str, AfterValidator(_database_url), Field(description="The database.")
    ] = "sqlite+aiosqlite:///./creditledger.db"
    read_database_url: (
        Annotated[
            str,
            AfterValidator(_database_url),
            Field(description="A replica of a PostgreSQL database, for lists, sums and bills."),
        ]
        | None
    ) = None
    grpc_address: Annotated[
        str,
        AfterValidator(_address),
        Field(description="Where gRPC is served; port 0: a free one."),
    ] = "127.0.0.1:50051"
    http_address: Annotated[
        str, AfterValidator(_address), Field(description="Where Envoy serves REST and gRPC (up).")
    ] = "127.0.0.1:8080"
    metrics_address: (
        Annotated[
            str,
            AfterValidator(_address),
            Field(description="Where metrics are served to Prometheus; without it nowhere."),
        ]
        | None
    ) = None
    otlp_endpoint: (
        Annotated[
            str,
            AfterValidator(_endpoint),
            Field(description="Where traces are sent by OTLP over gRPC; without it nowhere."),
        ]
        | None
    ) = None
    trace_ratio: Annotated[
        float,
        Field(ge=0, le=1, description="The share of calls traced whose caller does not say."),
    ] = 1.0
    tls_certificate: (
        Annotated[
            Path,
            AfterValidator(_file),
            Field(description="Certificate chain (PEM) of the ports of gRPC and of metrics."),
        ]
        | None
    ) = None
    tls_key: (
        Annotated[
            Path, AfterValidator(_file), Field(description="Private key (PEM) of the certificate.")
        ]
        | None
    ) = None
    allow_insecure_bind: Annotated[
        bool, Field(description="Serve a network, not only this machine, without TLS.")
    ] = False
    #: A posting waits in memory, about 2 kB each.
    queue_max: Annotated[
        int, Field(ge=1, le=1_000_000, description="Postings that may wait for the committer.")
    ] = 10_000
    readers: Annotated[
        int, Field(ge=1, le=256, description="Connections that read, each with a thread.")
    ] = 8
    workers: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Servers, each a process with a port of its own, from the port on"
            " (PostgreSQL).",
        ),
    ] = 1
    backdating_days: Annotated[
        int, Field(ge=0, le=36_500, description="How far back effective_at may lie.")
    ] = 35
    refund_promotional_days: Annotated[
        int,
        Field(
            ge=0,
            le=3_660,
            description="How many days promotional credit lasts that a refund gives back after its"
            " grant has ended.",
        ),
    ] = 30
    #: 2026-01-01T00:00:00Z, where the published API begins.
    bills_from: Annotated[
        int, Field(ge=0, le=253_402_300_799, description="First bill, in Unix seconds; 0: all.")
    ] = 1_767_225_600
    sweep_interval_seconds: Annotated[
        float,
        Field(ge=0, le=86_400, description="How often expirations due are written down; 0: never."),
    ] = 60.0
    sweep_grace_seconds: Annotated[
        float,
        Field(ge=0, le=86_400, description="How long something is due before it is swept."),
    ] = 60.0
    fold_interval_seconds: Annotated[
        float,
        Field(ge=0, le=86_400, description="How often rows are folded into sums; 0: never."),
    ] = 1.0
    #: A machine whose clock is wrong at its start is wrong by months, mostly by years.
    clock_idle_days: Annotated[
        int,
        Field(
            ge=1,
            le=36_500,
            description="A start whose clock is further beyond the last one refuses commands.",
        ),
    ] = 60
    webhook_connections: Annotated[
        int,
        Field(ge=0, le=1_000, description="Webhooks sent at the same time; 0: none made or sent."),
    ] = 64
    webhook_allow_private: Annotated[
        bool, Field(description="Send webhooks also to this machine and private networks.")
    ] = False
    webhook_retention_days: Annotated[
        int, Field(ge=2, le=36_500, description="How long webhook deliveries are kept.")
    ] = 30
    secrets_key_file: (
        Annotated[
            Path,
            AfterValidator(_file),
            Field(description="Keys that seal webhook secrets in the database, one a line."),
        ]
        | None
    ) = None
    statement_issuer: (
        Annotated[
            str,
            Field(min_length=1, max_length=200, description="Who a printed statement is from."),
        ]
        | None
    ) = None
    drain_seconds: Annotated[
        float, Field(ge=0, le=3_600, description="How long a stop waits for calls under way.")
    ] = 10.0
    log_level: Annotated[LogLevel, Field(description="The least level that is logged.")] = "info"
    log_format: Annotated[
        LogFormat | None,
        Field(description="json or console. Without it: console on a terminal, else json."),
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from creditledger import store

        if self.read_database_url is not None and None not in (
            self.path,
            store.database_path(self.read_database_url),
        ):
            raise ValueError(f"{spelled('read_database_url')} is for PostgreSQL")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, lacking = ("tls_certificate", "tls_key")
            if self.tls_certificate is None:
                given, lacking = lacking, given
            raise ValueError(f"{spelled(lacking)} must be set where {spelled(given)} is")
        return self

    @property
    def traces(self) -> tuple[str, float] | None:
        """Where spans go, and the share of calls that have some; None: none have."""
        return None if self.otlp_endpoint is None else (self.otlp_endpoint, self.trace_ratio)

    @property
    def path(self) -> Path | None:
        """The database's file; None for one that a server has."""
        from creditledger import store

        return store.database_path(self.database_url)

    @property
    def database(self) -> str:
        """The database as its operator knows it, without a password."""
        from creditledger import store

        return store.database_name(self.database_url)

    def environment(self) -> dict[str, str]:
        """What gives another process these settings: a URL with its password is not in `ps`."""
        given = self.model_dump(exclude_none=True)
        return {**os.environ, **{PREFIX + name.upper(): str(one) for name, one in given.items()}}

    def require_safe_bind(
        self, name: Literal["grpc_address", "http_address", "metrics_address"]
    ) -> None:
        """Raises WrongSetting if this address would show secrets to a network."""
        address: str | None = getattr(self, name)
        if address is None:
            return
        encrypted = name != "http_address" and self.tls_certificate is not None
        if not (is_loopback(address) or encrypted or self.allow_insecure_bind):
            tls = f"set {spelled('tls_certificate')}, or " if name != "http_address" else ""
            raise WrongSetting(
                f"{spelled(name)} would serve {address} without TLS, not only this machine:"
                f" {tls}say {spelled('allow_insecure_bind')} if something in front of it"
                " encrypts."
            )


def load(flags: Mapping[str, object] | None = None) -> Config:
    """The settings: `flags` that are not None, else the environment, else defaults.

    Raises WrongSetting. A variable that is nearly a setting is refused, not ignored.
    """
    given: dict[str, object] = {}
    for variable, value in os.environ.items():
        name = variable.upper().removeprefix(PREFIX)
        if name == variable.upper():
            continue
        if name.lower() in Config.model_fields:
            if value:
                given[name.lower()] = value
        elif variable.startswith(PREFIX) and not (
            _SERVICE_LINK.search(name) or _OTHERS.fullmatch(name)
        ):
            close = get_close_matches(name.lower(), Config.model_fields, n=1)
            meant = f"; did you mean {PREFIX}{close[0].upper()}?" if close else "."
            raise WrongSetting(f"{variable} is no setting{meant}")
    given |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Config(**given)  # type: ignore[arg-type] # checked by the model
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise WrongSetting(_sentence(first["loc"], first["msg"], first["input"])) from None


def prepare_grpc() -> None:
    """Before gRPC is imported: what it reads from the environment, unless that says otherwise.

    Where a process starts others, by fork and exec, it would do things of its own between the two,
    which now and then ends the new process there. And it would write of connections that end, which
    is no news, on standard error between the lines of the log.
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _sentence(place: tuple[int | str, ...], message: str, value: object) -> str:
    """pydantic's complaint as one sentence under the setting's own name."""
    said = message.removeprefix("Value error, ")
    if not place:
        return f"{said}."
    name = str(place[0])
    said = said.replace("Input should be", "must be").partition(", unable to")[0]
    # A database's URL may hold a password.
    shown = "" if name.endswith("database_url") else f", not {str(value)[:64]!r}"
    return f"{spelled(name)} {said}{shown}."
