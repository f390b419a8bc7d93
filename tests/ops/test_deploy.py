"""What `deploy/` holds fits the server: its queries, alerts and their runbook."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain.errors import KINDS
from creditledger.ops.cli.app import app
from creditledger.ops.config import PREFIX, Config
from tests.support.metrics import record_verification, scrape
from tests.support.refusals import refused
from tests.support.server import WALLET, consume, grant, serve

if TYPE_CHECKING:
    from tests.support.setup import Clock

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
#: Prometheus adds them to what it scrapes.
ADDED = {"job", "instance"}
#: What Grafana puts in the place of its variables.
CHOSEN = {"$__rate_interval": "5m", "$currency": "USD|EUR", "$livemode": "true"}


def alerts() -> list[dict[str, Any]]:
    """The rules."""
    document = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> list[str]:
    """The queries of the dashboard."""
    path = ROOT / "deploy" / "grafana" / "dashboard.json"
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    for name, value in CHOSEN.items():
        found = [one.replace(name, value) for one in found]
    return found


def metrics_of(query: str) -> dict[str, set[str]]:
    """Each metric that the query names, with the labels that it is chosen or grouped by."""
    selectors = re.findall(r"\b((?:creditledger|process)_\w+|up)\b(?:\{([^}]*)\})?", query)
    grouped = {
        label
        for labels in re.findall(r"\bby \(([^)]*)\)", query)
        for label in re.split(r",\s*", labels)
    }
    return {
        name: grouped | set(re.findall(r"(\w+)\s*[=!]~?\s*\"", chosen))
        for name, chosen in selectors
    }


@pytest.mark.parametrize("what", ["alerts", "dashboard"])
async def test_every_query_asks_for_what_a_server_exports(
    database_url: str, clock: Clock, what: str
) -> None:
    """No metric and no label of a query is unknown to a running server."""
    queries = [one["expr"] for one in alerts()] if what == "alerts" else dashboard()
    async with serve(database_url, clock, metrics_address="127.0.0.1:0") as api:
        await api.post("g", **grant("1"))
        await refused(api.post("c", **consume("2")))
        await api.wallets.Hold(
            pb.HoldRequest(wallet_id=WALLET, idempotency_key="h", amount="1"),
            metadata=api.service,
        )
        await record_verification(api.server)
        found = await scrape(api.server)

    exported = found.labels()
    exported["up"] = set()
    assert len(queries) > 10
    for query in queries:
        named = metrics_of(query)
        assert named, query
        for name, labels in named.items():
            assert name in exported, query
            assert labels <= exported[name] | ADDED, query
        for reasons in re.findall(r'reason=~?"([^"]+)"', query):
            assert set(reasons.split("|")) <= KINDS.keys(), query


def test_every_alert_has_its_row_on_call() -> None:
    """docs/operating.md says of each alert what to do, with its severity, and of no other."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(Creditledger\w+)` \| (\w+) \|", page, re.MULTILINE)

    assert rows == [(one["alert"], one["labels"]["severity"]) for one in alerts()]


def test_settings_of_every_way_to_deploy() -> None:
    """Each setting that `deploy/` and the image give is one, and the proxy gets no password."""
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    named = {
        name
        for path in (ROOT / "Dockerfile", *files)
        for name in re.findall(rf"\b{PREFIX}([A-Z_]+)\b", path.read_text(encoding="utf-8"))
    }

    assert {one.lower() for one in named} <= Config.model_fields.keys()
    services = compose["services"]
    assert PREFIX + "DATABASE_URL" in services["ledger"]["environment"]
    assert PREFIX + "DATABASE_URL" not in services["proxy"]["environment"]
    # Prometheus asks each of the workers, at the ports that they take.
    settings = services["ledger"]["environment"]
    port = int(settings[PREFIX + "METRICS_ADDRESS"].rpartition(":")[2])
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    workers = int(settings[PREFIX + "WORKERS"])
    assert targets == [f"ledger:{port + number}" for number in range(workers)]


def test_commands_of_every_way_to_deploy() -> None:
    """Each command that a container or a unit runs is one of the command line."""
    commands = {one.name for one in app.registered_commands}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    run = {one["command"][0] for one in compose["services"].values() if "command" in one}
    chart = ROOT / "deploy" / "helm" / "creditledger" / "templates" / "deployment.yaml"
    run.update(re.findall(r"args: \[(\w+)\]", chart.read_text(encoding="utf-8")))
    for unit in (ROOT / "deploy" / "systemd").glob("*.service"):
        run.update(re.findall(r"/bin/creditledger (\w+)", unit.read_text(encoding="utf-8")))

    assert run == {"migrate", "serve", "proxy", "verify"}
    assert run <= commands


def test_every_alert_is_tried() -> None:
    """alerts_test.yml raises each of them."""
    tried = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")

    assert {one["alert"] for one in alerts()} == set(re.findall(r'alertname="(\w+)"', tried))


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
async def test_prometheus_takes_the_files(command: tuple[str, ...]) -> None:
    """Its own tool reads them, and its alerts are raised as they should be."""
    await tool("promtool", *command, folder=PROMETHEUS)


async def test_prometheus_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """Its own tool reads each of them."""
    rules = [{"record": f"query:{n}", "expr": one} for n, one in enumerate(dashboard())]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(document), encoding="utf-8")

    await tool("promtool", "check", "rules", "rules.yml", folder=tmp_path)


async def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Its own tool finds nothing wrong with them, but that this machine has not the program."""
    units = sorted((ROOT / "deploy" / "systemd").iterdir())
    for unit in units:
        text = unit.read_text(encoding="utf-8")
        text = text.replace("/opt/creditledger/bin/creditledger", "/bin/true")
        (tmp_path / unit.name).write_text(text.replace("User=creditledger\n", ""), encoding="utf-8")

    said = await tool("systemd-analyze", "verify", *(one.name for one in units), folder=tmp_path)
    assert said == ""


async def test_helm_takes_the_chart() -> None:
    """Its own lint finds nothing wrong, also with all that is optional."""
    given = ("--set", "metrics.serviceMonitor=true", "--set", "settings.CREDITLEDGER_READERS=4")
    await tool("helm", "lint", "--strict", ".", *given, folder=ROOT / "deploy/helm/creditledger")


async def tool(name: str, *arguments: str, folder: Path) -> str:
    """What a tool of this machine says, which has to succeed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here")
    process = await asyncio.create_subprocess_exec(
        *(found, *arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    return said.decode()
