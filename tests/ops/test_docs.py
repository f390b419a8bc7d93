"""The pages say what is so: their sessions are run, their lists are complete, their links lead on.

A `sh` block is run, by one shell for each page, against a `creditledger up` of its own. The `json`
or `text` block behind it, before the next `sh` block, is its whole output; without one it prints
nothing. In both `…` stands for what differs from run to run:

- text: any characters within a line; a line of `…` alone for any lines;
- json: within a string as in text; `"…"` for any value; as the last of a list for whatever follows;
  as a name for whatever other names there are. Blanks and line breaks do not count.

Replaced before it is run: the two default addresses, and `sk-…` behind a variable by the key that
`up` printed. A `console` block is shown only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import (
    api_key_service_pb2,
    billing_service_pb2,
    clock_service_pb2,
    credit_grant_service_pb2,
    credit_transaction_service_pb2,
    operator_service_pb2,
    payment_kit_service_pb2,
    registry_service_pb2,
    statement_service_pb2,
    wallet_service_pb2,
    webhook_service_pb2,
)
from google.api import annotations_pb2

from creditledger.domain import money, overdraft, spend_limits, spending, wallet_moves
from creditledger.domain.errors import KINDS
from creditledger.domain.operations import grant, hold, meter_event, refund, transfer
from creditledger.engine import replay
from creditledger.ops.cli import app
from creditledger.ops.config import PREFIX, Config
from creditledger.store.verify import guards, statement_checks, stored_checks
from creditledger.store.verify.passes import passes
from creditledger.store.verify.spelling import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"))
)
#: Pages with a session.
SESSIONS = ("README.md", "docs/accounting.md", "docs/api.md", "docs/operating.md")
SERVICES = [
    service
    for module in (
        api_key_service_pb2,
        billing_service_pb2,
        clock_service_pb2,
        credit_grant_service_pb2,
        credit_transaction_service_pb2,
        operator_service_pb2,
        payment_kit_service_pb2,
        registry_service_pb2,
        statement_service_pb2,
        wallet_service_pb2,
        webhook_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
MAKE_UP = "$ make up\n"
#: What a table shows of a default that is none.
NOTHING = "–"  # noqa: RUF001 - as it is set in the pages
#: How long anything that is waited for may take before it counts as hanging.
PATIENCE_SECONDS = 180.0


def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


# --- sessions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Commands of a page and what they are said to print."""

    line: int
    commands: str
    language: str  #: Of the output: json or text.
    output: str


def blocks(page: str) -> list[tuple[int, str, str]]:
    """(line, language, content) of the page's code blocks."""
    text = read(page)
    return [
        (text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def steps(page: str) -> list[Step]:
    """What is to be run, in order."""
    found: list[Step] = []
    shown = True
    for line, language, content in blocks(page):
        if language == "sh":
            found.append(Step(line, content, "text", ""))
            shown = False
        elif language in {"json", "text"} and not shown:
            last = found.pop()
            found.append(Step(last.line, last.commands, language, content))
            shown = True
    return found


@dataclass(frozen=True, slots=True)
class Up:
    """A running `creditledger up` with its demo."""

    folder: Path
    printed: str
    environment: dict[str, str]

    def value(self, pattern: str) -> str:
        """What it printed in a place."""
        found = re.search(pattern, self.printed, re.MULTILINE)
        assert found, self.printed
        return found[1]

    def here(self, text: str) -> str:
        """A page's text with the addresses and keys of this server."""
        for shown, meant in {
            "127.0.0.1:8080": self.value(r"REST  http://(\S+)"),
            "127.0.0.1:50051": self.value(r"gRPC  (\S+)"),
            "ADMIN_KEY=sk-…": "ADMIN_KEY=" + self.value(r"^admin key: (\S+)$"),
            "CUSTOMER_KEY=sk-…": "CUSTOMER_KEY=" + self.value(r"^customer key: (\S+)$"),
        }.items():
            text = text.replace(shown, meant)
        return text

    def run(self, session: list[Step]) -> list[str]:
        """The output of each step, standard error included."""
        script = "exec 2>&1\n" + "".join(f"printf '\\0'\n{step.commands}" for step in session)
        ended = subprocess.run(
            ["sh", "-c", self.here(script)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
        )
        return ended.stdout.decode().split("\0")[1:]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """`creditledger up` on free ports, in an empty folder; nothing is left of it afterwards."""
    environment = _environment(tmp_path)
    command = ["creditledger", "up", "--grpc-address", "127.0.0.1:0"]
    with (tmp_path / "up.txt").open("wb") as out, (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--http-address", "127.0.0.1:0"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
        )
    try:
        yield Up(tmp_path, _printed(process, tmp_path), environment)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """One in which `creditledger` is the one under test, and grpcurl that of its environment."""
    path = folder / "bin"
    path.mkdir()
    command = path / "creditledger"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m creditledger \"$@\"\n")
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    places = [str(path), str(Path(sys.executable).parent), kept["PATH"]]
    python_path = os.pathsep.join(place for place in sys.path if place)
    return {
        **kept,
        "PATH": os.pathsep.join(places),
        "PYTHONPATH": python_path,
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def _printed(process: subprocess.Popen[bytes], folder: Path) -> str:
    """What `up` printed, when it has printed all of it."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while "Ctrl-C" not in (text := (folder / "up.txt").read_text()):
        assert process.poll() is None, (folder / "up.log").read_text()
        assert time.monotonic() < give_up, (folder / "up.log").read_text()
        time.sleep(0.02)  # the output is a file: there is nothing to wait upon but time
    return text


def fits_text(output: str, pattern: str) -> bool:
    """Whether the output is what a page shows of it."""
    lines = []
    for line in pattern.rstrip().splitlines():
        escaped = ".*".join(re.escape(part) for part in line.rstrip().split("…"))
        lines.append(r"(?:.*\n)*?" if line.strip() == "…" else rf"{escaped}[ \t]*\n")
    return re.fullmatch("".join(lines), output.rstrip() + "\n" * bool(lines)) is not None


def differences(actual: Any, shown: Any, place: str = "$") -> list[str]:
    """Where a value is not what a page shows of it."""
    if shown == "…":
        return []
    if isinstance(shown, str) and isinstance(actual, str):
        good = re.fullmatch(".*".join(re.escape(part) for part in shown.split("…")), actual)
        return [] if good else [f"{place} is {actual!r}, not {shown!r}"]
    if isinstance(shown, dict) and isinstance(actual, dict):
        names = [name for name in shown if name != "…"]
        more = [name for name in actual if name not in shown and "…" not in shown]
        found = [f"{place} has no {name}" for name in names if name not in actual]
        found += [f"{place} has {name}, which is not shown" for name in more]
        pairs = [(actual[name], shown[name], f"{place}.{name}") for name in names if name in actual]
    elif isinstance(shown, list) and isinstance(actual, list):
        cut = shown[-1:] == ["…"]
        shown = shown[:-1] if cut else shown
        found = []
        if len(actual) < len(shown) or (len(actual) > len(shown) and not cut):
            found = [f"{place} has {len(actual)} items, not {len(shown)}"]
        pairs = [(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(actual, shown))]  # noqa: B905 - counted above
    else:
        same = type(actual) is type(shown) and actual == shown
        return [] if same else [f"{place} is {actual!r}, not {shown!r}"]
    return found + [one for pair in pairs for one in differences(*pair)]


def documents(text: str) -> list[Any]:
    """The JSON values of a text, one after the other."""
    found, rest = [], text.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        found.append(value)
        rest = rest[end:].strip()
    return found


def complaint(step: Step, output: str) -> str | None:
    """What is wrong with the output of a step."""
    wrong = None
    if step.language == "text":
        if not fits_text(output, step.output):
            wrong = "differs"
    else:
        try:
            found = differences(documents(output), documents(step.output))
        except json.JSONDecodeError as error:
            found = [str(error)]
        if found:
            wrong = "\n".join(found)
    return wrong and f"line {step.line}: {wrong}\n{step.commands}{output.strip()}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
@pytest.mark.parametrize("page", SESSIONS)
def test_a_page_s_session_prints_what_the_page_shows(page: str, up: Up) -> None:
    """Every command of a page, pasted in order, gives the output that stands behind it.

    Of `make up` the page shows how its output ends: what `creditledger up` prints.
    """
    session = steps(page)
    started = [text for _, _, text in blocks(page) if text.startswith(MAKE_UP)]

    outputs = up.run(session)

    for shown in started:
        assert fits_text(up.printed, up.here(shown.removeprefix(MAKE_UP))), up.printed
    assert len(session) == len(outputs)
    wrong = [complaint(step, output) for step, output in zip(session, outputs, strict=True)]
    assert not any(wrong), "\n".join(one for one in wrong if one)


def test_a_session_that_is_wrong_is_found() -> None:
    """What compares the sessions tells equal from different, wildcards included."""
    assert fits_text("a 1\nb\nc\nd", "a …\n…\nd")
    assert not fits_text("a 1\nb", "a …")
    assert not fits_text("a\nb", "a b")
    assert fits_text("", "")
    assert not fits_text("a", "")
    assert differences({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, "…"]}) == []
    assert differences({"a": 1, "b": 2}, {"a": 1, "…": "…"}) == []
    assert differences({"a": "x-1-y"}, {"a": "x…y"}) == []
    assert differences({"a": "x-1-y"}, {"a": "x…z"}) != []
    assert differences({"a": 1, "b": 2}, {"a": 1}) != []
    assert differences({"a": 1}, {"a": 1, "b": 2}) != []
    assert differences([1, 2], [1]) != []
    assert differences([1], [1, 2, "…"]) != []
    assert differences(True, 1) != []


# --- lists that must be complete ------------------------------------------------------------------


def routes() -> dict[str, tuple[str, str]]:
    """Of each RPC with a route, `credit.v1.Service/Method`, the HTTP method and path."""
    found = {}
    for service in SERVICES:
        for method in service.methods:
            rule = method.GetOptions().Extensions[annotations_pb2.http]
            if kind := rule.WhichOneof("pattern"):
                name = f"{service.full_name}/{method.name}"
                found[name] = kind.upper(), getattr(rule, kind)
    return found


def test_every_rpc_and_route_is_in_the_api_page() -> None:
    """docs/api.md has a row for each RPC, with its route, and no other row."""
    table = _rows("docs/api.md", "RPC")

    expected = {
        f"{service.name}/{method.name}": "gRPC only"
        for service in SERVICES
        for method in service.methods
    }
    expected |= {
        name.removeprefix("credit.v1."): f"`{' '.join(route)}`" for name, route in routes().items()
    }
    assert expected == {name: cells[0] for name, cells in table.items()}


def _called(commands: str) -> set[tuple[str, str]]:
    """(HTTP method, path) of the REST calls of a step."""
    found = set()
    joined = commands.replace("\\\n", " ")
    for line in joined.splitlines():
        if address := re.search(r"""(?:\$REST|http://127\.0\.0\.1:8080)(/[^\s"'?]*)""", line):
            chosen = re.search(r"-X ([A-Z]+)", line)
            method = chosen[1] if chosen else "POST" if " -d " in line else "GET"
            found.add((method, address[1]))
    return found


def test_every_route_and_rpc_has_an_example_that_is_run() -> None:
    """A curl for each REST route; a grpcurl for each service and for the RPC without a route."""
    session = steps("docs/api.md")
    called = {call for step in session for call in _called(step.commands)}
    native = set(re.findall(r"credit\.v1\.\w+/\w+", "\n".join(step.commands for step in session)))

    for name, (method, path) in routes().items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        # /summary is a path of its own, not the id of a transaction.
        ours = [p for m, p in called if m == method and (p == path or not p.endswith("/summary"))]
        assert any(re.fullmatch(pattern, one) for one in ours), f"{name}: {method} {path}"
    for service in SERVICES:
        assert any(one.startswith(f"{service.full_name}/") for one in native), service.full_name
        for method_ in service.methods:
            name = f"{service.full_name}/{method_.name}"
            assert name in routes() or name in native, name


def _rows(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the page's table whose first column is headed `first`, by that column."""
    lines = iter(read(page).splitlines())
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            for row in lines:
                if not row.startswith("|"):
                    break
                name, *rest = [cell.strip() for cell in row.strip("|").split(" | ")]
                found[name.strip().strip("`")] = rest
    return found


def test_every_error_reason_is_in_the_api_page() -> None:
    """docs/api.md has each reason with gRPC code, HTTP status and type as the server sends them."""
    table = _rows("docs/api.md", "reason")

    assert {reason: [cell.strip("`") for cell in row[:3]] for reason, row in table.items()} == {
        reason: [kind.grpc_code, str(kind.http_status), kind.error_type]
        for reason, kind in KINDS.items()
    }


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md"])
def test_every_setting_is_in_the_page(page: str) -> None:
    """A row for each setting, with its flag and its default, and no other row."""
    table = _rows(page, "setting")

    assert sorted(table) == sorted(PREFIX + name.upper() for name in Config.model_fields)
    for name, setting in Config.model_fields.items():
        flag, default = table[PREFIX + name.upper()][:2]
        assert flag == f"`--{name.replace('_', '-')}`"
        said = NOTHING if setting.default is None else f"`{str(setting.default).lower()}`"
        assert default.lower() == said, name


def test_every_command_is_in_the_operating_page() -> None:
    """docs/operating.md has a row for each command of the command line, and no other row."""
    commands = [("", one) for one in app.app.registered_commands]
    for group in app.app.registered_groups:
        assert group.typer_instance is not None
        commands += [(f"{group.name} ", one) for one in group.typer_instance.registered_commands]
    names = [group + (one.name or one.callback.__name__) for group, one in commands if one.callback]

    assert sorted(names) == sorted(_rows("docs/operating.md", "command"))


def test_every_check_of_verify_stands_beside_an_invariant() -> None:
    """docs/ledger.md names every check of `verify` beside what it checks, and no other."""
    checks = {name for one in passes(SPELLINGS["sqlite"]) for name in one.checks}
    checks |= {*statement_checks.CHECKS, *stored_checks.CHECKS, *guards.CHECKS}
    named = {
        name
        for row in _rows("docs/ledger.md", "#").values()
        for name in re.findall(r"`([^`]+)`", row[-1])
    }

    shown = {
        name: [one for one in checks if fnmatch(one, name.replace("…", "*"))] for name in named
    }
    assert [name for name, found in shown.items() if not found] == []
    assert sorted(checks - {one for found in shown.values() for one in found}) == []


def test_the_rules_that_hold_an_invariant_exist() -> None:
    """What docs/ledger.md names of the code is there under that name."""
    modules = {
        one.__name__.rpartition(".")[2]: one
        for one in (
            *(grant, hold, meter_event, money, overdraft, refund, replay, spend_limits, spending),
            *(transfer, wallet_moves),
        )
    }
    rows = "\n".join(re.findall(r"^\| \d+ \|.*", read("docs/ledger.md"), re.MULTILINE))
    named = re.findall(rf"`({'|'.join(modules)})\.(\w+)`", rows)

    assert named
    assert [name for module, name in named if not hasattr(modules[module], name)] == []


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has each package of pyproject.toml, and no other."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.split(r"[\[<>=; ]", one)[0] for one in needed]

    table = _rows("docs/dependencies.md", "package")
    assert sorted(names) == sorted(name for cell in table for name in cell.split(", "))


def test_decisions_have_one_form() -> None:
    """docs/decisions is numbered without a gap; each has a decision, a reason and an end."""
    found = sorted((ROOT / "docs" / "decisions").iterdir())

    assert [f"{i:04}" for i in range(1, len(found) + 1)] == [path.name[:4] for path in found]
    for path in found:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]} ")
        for part in ("**Decision.**", "**Reason.**", "**What would change it.**"):
            assert text.count(part) == 1, f"{path.name}: {part}"


# --- links ----------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    """What a page's headings are linked to as."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Links within the repository name a file that is there, and a heading that it has."""
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        assert not target.startswith("http"), target
        path, _, anchor = target.partition("#")
        named = (folder / path).resolve() if path else ROOT / page
        assert named.exists(), target
        assert named.is_relative_to(ROOT), target
        if anchor:
            assert anchor in _anchors(named), target
