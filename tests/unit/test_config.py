"""Settings: flags before environment before defaults; a wrong one is named and stops the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from creditledger import store
from creditledger.ops.config import Config, WrongSetting, host_and_port, is_loopback, load, spelled

if TYPE_CHECKING:
    from pathlib import Path


def test_defaults_are_for_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any setting: a file in the working folder, addresses of this machine alone."""
    monkeypatch.chdir(tmp_path)

    config = load()

    assert config.path == tmp_path / "creditledger.db"
    assert (config.grpc_address, config.http_address) == ("127.0.0.1:50051", "127.0.0.1:8080")
    assert config.bills_from == 1_767_225_600
    assert config.backdating_days == 35
    assert not config.allow_insecure_bind


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags first, then the environment, then defaults; an empty variable counts as unset."""
    monkeypatch.setenv("CREDITLEDGER_GRPC_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("CREDITLEDGER_HTTP_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("CREDITLEDGER_READERS", "")
    monkeypatch.setenv("CREDITLEDGER_BILLS_FROM", "0")

    config = load({"grpc_address": "127.0.0.1:3", "http_address": None})

    assert config.grpc_address == "127.0.0.1:3"
    assert config.http_address == "127.0.0.1:2"
    assert config.readers == 8
    assert config.bills_from == 0


def test_settings_do_not_change() -> None:
    """A Config is a value."""
    with pytest.raises(ValueError, match="frozen"):
        Config().readers = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "postgresql://localhost/credit"),
        ("database_url", "sqlite+aiosqlite://"),
        ("database_url", "sqlite+aiosqlite:///:memory:"),
        ("database_url", "sqlite+aiosqlite:///x.db?mode=ro"),
        ("database_url", "credit.db"),
        ("grpc_address", "50051"),
        ("grpc_address", "127.0.0.1:"),
        ("grpc_address", ":50051"),
        ("grpc_address", "::1:50051"),
        ("grpc_address", "[127.0.0.1]:50051"),
        ("grpc_address", "127.0.0.1:65536"),
        ("grpc_address", "127.0.0.1:-1"),
        ("http_address", "http://127.0.0.1:8080"),
        ("tls_certificate", "/nowhere/certificate.pem"),
        ("tls_key", "/nowhere/key.pem"),
        ("allow_insecure_bind", "perhaps"),
        ("queue_max", "0"),
        ("queue_max", "many"),
        ("readers", "0"),
        ("backdating_days", "-1"),
        ("bills_from", "2026-01-01"),
        ("drain_seconds", "-1"),
        ("drain_seconds", "nan"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """One sentence begins with the setting as the environment and as the flag spell it."""
    with pytest.raises(WrongSetting) as by_flag:
        load({name: value})
    monkeypatch.setenv(f"CREDITLEDGER_{name.upper()}", value)
    with pytest.raises(WrongSetting) as by_variable:
        load()

    sentence = str(by_flag.value)
    assert str(by_variable.value) == sentence
    assert sentence.startswith(f"{spelled(name)} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u:s3cret@ledger@h/credit",
        "postgresql+asyncpg://u@h:s3cret/credit",
        "postgresql+asyncpg://u:s3cret@h/",
        "postgresql+asyncpg://u:s3cret@h/credit?sslmode=require",
        "postgresql+asyncpg://u@h/credit?password=s3cret&passwort=x",
        "postgresql+asyncpg://u@h/credit?password=s3cret&password=s3cret",
        "postgresql+asyncpg://u:s3cret@h/credit?ssl=perhaps",
        "postgresql+asyncpg://u:s3cret@h/credit?host=a:x&host=b:1",
        "postgresql+asyncpg://u:s3cret@h/credit?statement_cache_size=9",
        "postgresql+psycopg://u:s3cret@h/credit",
    ],
)
@pytest.mark.parametrize("name", ["database_url", "read_database_url"])
def test_a_wrong_url_does_not_show_its_password(name: str, url: str) -> None:
    """A wrong database URL is refused in one sentence, without the password."""
    with pytest.raises(WrongSetting) as caught:
        load({name: url})

    assert str(caught.value).startswith(spelled(name))
    assert "s3cret" not in str(caught.value)
    assert "ledger@h" not in str(caught.value)


def test_a_database_is_named_without_its_password() -> None:
    """The name of a database has no password, wherever in the URL that stands."""
    for url in (
        "postgresql+asyncpg://u:s3cret@h/credit?ssl=require",
        "postgresql+asyncpg://u@h/credit?password=s3cret&ssl=require",
        "postgresql+asyncpg:///credit?host=a:1&host=b:2&user=u&password=s3cret",
    ):
        config = load({"database_url": url})
        assert "s3cret" not in config.database
        assert "credit" in config.database
        assert store.holds_secret(url)
    assert not store.holds_secret("postgresql+asyncpg://u@h/credit?host=%2Frun%2Fpg")


def test_half_of_a_certificate_is_refused(tmp_path: Path) -> None:
    """A certificate without its key, or a key without its certificate, names the missing one."""
    file = tmp_path / "one.pem"
    file.touch()

    for given, lacking in (("tls_key", "tls_certificate"), ("tls_certificate", "tls_key")):
        with pytest.raises(WrongSetting) as caught:
            load({given: str(file)})
        assert str(caught.value).startswith(spelled(lacking))


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of our prefix that is no setting is refused rather than ignored."""
    monkeypatch.setenv("CREDITLEDGER_GRPC_ADRESS", "127.0.0.1:1")

    with pytest.raises(WrongSetting, match=r"CREDITLEDGER_GRPC_ADRESS.*CREDITLEDGER_GRPC_ADDRESS"):
        load()


@pytest.mark.parametrize("value", ["grpcio", "native"])
def test_a_choice_of_transport_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """There is one; an environment that still chooses is told which variable is no setting."""
    monkeypatch.setenv("CREDITLEDGER_TRANSPORT", value)

    with pytest.raises(WrongSetting, match=r"^CREDITLEDGER_TRANSPORT is no setting\.$"):
        load()


@pytest.mark.parametrize(
    "variable",
    ["PORT", "PORT_50051_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT_GRPC", "API_SERVICE_HOST"],
)
def test_variables_of_a_cluster_do_not_disturb(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Kubernetes describes a service named creditledger in variables of our prefix."""
    monkeypatch.setenv(f"CREDITLEDGER_{variable}", "tcp://10.0.0.1:50051")

    assert load() == Config()


@pytest.mark.parametrize("variable", ["API_KEY", "URL", "TEST_CITUS_URL", "TEST_X"])
def test_variables_of_clients_and_tests_do_not_disturb(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Variables of clients and tests do not stop a start."""
    monkeypatch.setenv(f"CREDITLEDGER_{variable}", "x")

    assert load() == Config()


@pytest.mark.parametrize(
    ("address", "parts", "loopback"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0), True),
        ("127.1.2.3:1", ("127.1.2.3", 1), True),
        ("localhost:50051", ("localhost", 50051), True),
        ("[::1]:50051", ("::1", 50051), True),
        ("0.0.0.0:50051", ("0.0.0.0", 50051), False),
        ("[::]:50051", ("::", 50051), False),
        ("ledger.example.com:443", ("ledger.example.com", 443), False),
    ],
)
def test_addresses(address: str, parts: tuple[str, int], loopback: bool) -> None:
    """host:port and [host]:port; whether only this machine can reach it."""
    assert host_and_port(address) == parts
    assert is_loopback(address) is loopback


@pytest.mark.parametrize("given", ["127.0.0.1:4317", "grpc://127.0.0.1:4317", "http://collector"])
def test_a_collector_has_a_url(given: str) -> None:
    """Scheme, host and port: anything else stops the start."""
    with pytest.raises(WrongSetting, match="OTLP_ENDPOINT"):
        load({"otlp_endpoint": given})
    assert load({"otlp_endpoint": "https://collector:4317"}).otlp_endpoint


def test_a_network_needs_tls_or_the_word(tmp_path: Path) -> None:
    """An address that others can reach needs TLS or the setting that says so by name."""
    file = tmp_path / "one.pem"
    file.touch()
    tls = {"tls_certificate": str(file), "tls_key": str(file)}
    open_to_all = {"grpc_address": "0.0.0.0:50051", "http_address": "0.0.0.0:8080"}

    with pytest.raises(WrongSetting, match=r"GRPC_ADDRESS.*ALLOW_INSECURE_BIND"):
        load(open_to_all).require_safe_bind("grpc_address")
    load({**open_to_all, **tls}).require_safe_bind("grpc_address")
    with pytest.raises(WrongSetting, match=r"HTTP_ADDRESS.*ALLOW_INSECURE_BIND"):
        load({**open_to_all, **tls}).require_safe_bind("http_address")
    with pytest.raises(WrongSetting, match=r"METRICS_ADDRESS.*ALLOW_INSECURE_BIND"):
        load({"metrics_address": "0.0.0.0:9464"}).require_safe_bind("metrics_address")
    load().require_safe_bind("metrics_address")  # served nowhere
    told = load({**open_to_all, "allow_insecure_bind": True})
    told.require_safe_bind("grpc_address")
    told.require_safe_bind("http_address")
