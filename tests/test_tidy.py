"""The house stays in order: imports point one way, everything public is said."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from creditledger import server
from creditledger.registry import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "creditledger"
COLUMNS_MAX = 100
#: What excuses a line from a check cannot be broken.
EXCUSE = re.compile(r"  # (noqa|type)\b")

#: Every module of the project: a line imports from the lines below it only, never from its own.
#: cli -> server -> api -> ledger -> {rules, replay, store} -> model -> money -> errors
ORDER = """
__main__
cli
commands.backup commands.clock commands.export commands.health commands.import_report\
 commands.keys commands.reconcile commands.secrets commands.seed commands.statement commands.up\
 commands.verify
console
workers
server demo import_usage seeding
unasked
deliverer notifier sweeper
transport
api.clock_service
api.api_key_service api.billing_service api.credit_grant_service api.credit_transaction_service\
 api.registry_service api.payment_kit_service api.statement_service api.wallet_service\
 api.webhook_service
api.balances api.exporting api.hooked api.limits api.pages api.payment_kit_grants api.transferred\
 api.usage api.watching
api.granted api.held api.payment_kit api.stating
api.wire
api.rpc
api.intents
api.fields
api.auth api.names api.places log
clock_watch
ledger config
deciding statement_files receipts
exports
writing
holds grants limits settling transfers cancellations
locked_wallets
rules replay store
arrivals
store.postgres store.sqlite_database
store.webhook_feed
store.meter_events store.topups store.webhooks
store.walks store.meters store.customers store.tail
store.grants
store.due store.lists store.registry store.sqlite store.migrations.env
store.sqlite_batch store.postgres_writer
store.multiply store.sums store.billed store.moments store.wallet_keys
store.migrations.versions.*
store.known store.replica store.postgres_statements
store.pool
store.cut_off
store.outage
store.verify
store.proofs
store.guards store.stored_checks
store.closed_checks
store.periods
store.reads
store.dialects
store.values
store.credit_checks
store.history_checks
store.change_keys store.closed store.clock_marks store.finished_exports store.receipts
store.batch store.checks store.schema store.migrations
statements
reconciling
sealing
registry shown targets webhooks
books budget
overdraft
operations
model bills
durations
ledger_clock
clock_guard
money clock
envoy
errors ids private_postgres child checksums
"""
#: Packages that only hold modules, and the version; they import nothing.
PLAIN = {"", "api", "commands"}
#: Who speaks protobuf: the API, who starts it, and its clients.
SPEAKS_GEN = re.compile(r"api\..*|server|cli|commands\..*|demo|import_usage")
SPEAKS_GRPC = re.compile(r"api\..*|server|workers|transport|commands\..*|cli|demo|import_usage")


def ranks() -> dict[str, int]:
    """Module -> its line in ORDER, counted from below; `a.*` are all modules of a."""
    lines = reversed(ORDER.strip().splitlines())
    found = {name: rank for rank, line in enumerate(lines) for name in line.split()}
    for pattern in [name for name in found if name.endswith(".*")]:
        rank = found.pop(pattern)
        found |= {name: rank for name in modules() if name.startswith(pattern[:-1])}
    return found


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the project by its name within the package; the package itself is ""."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), filename=str(path))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names that a module imports anywhere in it, names of a package's members included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The project's module that an imported name is, or is in; None for other people's."""
    head, _, rest = name.partition(".")
    if head != "creditledger":
        return None
    while rest not in modules():
        rest = rest.rpartition(".")[0]
    return rest


def texts() -> Iterator[tuple[Path, str]]:
    """Every text of the project that people write."""
    kinds = {".py", ".proto", ".md", ".yaml", ".toml"}
    folders = ("src", "tests", "scripts", "protos", "docs", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in sorted([*paths, *ROOT.glob("*")]):
        if path.is_file() and (path.suffix in kinds or path.name in {"Makefile", "Dockerfile"}):
            yield path.relative_to(ROOT), path.read_text()


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions, classes and methods that others may use."""
    waiting: list[ast.Module | ast.ClassDef] = [tree]
    while waiting:
        for node in waiting.pop().body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                waiting.append(node)


def test_every_module_has_its_place() -> None:
    """The table of this file names every module of the project, and no other."""
    assert modules().keys() - PLAIN == ranks().keys() & modules().keys()
    assert ranks().keys() - modules().keys() == set()


def test_imports_point_one_way() -> None:
    """cli, server, api, ledger, rules and store, model, money, errors: none imports one before."""
    rank = ranks()
    wrong = [
        f"{module or 'creditledger'} imports {target}"
        for module, tree in modules().items()
        for name in imports(tree)
        if (target := own(name)) is not None and target not in PLAIN
        if module in PLAIN or rank[target] >= rank[module]
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [({"credit"}, SPEAKS_GEN), ({"grpc", "grpc_health", "google"}, SPEAKS_GRPC)],
    ids=["gen", "grpc"],
)
def test_only_the_edge_knows_the_wire(packages: set[str], allowed: re.Pattern[str]) -> None:
    """Generated messages and gRPC are met in the API, in who starts it and in its clients."""
    found = {
        module
        for module, tree in modules().items()
        for name in imports(tree)
        if name.partition(".")[0] in packages
    }

    assert [module for module in sorted(found) if not allowed.fullmatch(module)] == []


def test_only_config_reads_the_environment() -> None:
    """A setting that config.py does not know cannot exist."""
    found = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }

    assert found == {"config"}


def test_only_the_command_prints() -> None:
    """Standard output is the command's; everything else logs."""
    found = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    }

    assert found <= {"cli", "console"}


def test_lines_are_short() -> None:
    """Nothing that people read as code is wider than 100 columns."""
    found = [
        f"{path}:{number}"
        for path, text in texts()
        if path.suffix in {".py", ".proto"}
        for number, line in enumerate(text.splitlines(), 1)
        if len(EXCUSE.split(line)[0]) > COLUMNS_MAX
        # buf writes the signature of an RPC in one line, however long its names.
        if not line.startswith("  rpc ")
    ]

    assert found == []


def test_nothing_is_left_for_later() -> None:
    """No text of the project holds a mark for work not done."""
    mark = re.compile(r"\b(TO" + "DO|FIX" + r"ME)\b")
    found = [
        f"{path}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if mark.search(line)
    ]

    assert found == []


def test_exceptions_from_the_checks_have_a_reason() -> None:
    """`type: ignore` names its error and says why, beside it."""
    found = [
        f"{path}:{number}"
        for path, text in texts()
        if path.suffix == ".py"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"# type: [i]gnore(?!\[[a-z, -]+\] +# \w)", line)
    ]

    assert found == []


def test_modules_say_what_they_are() -> None:
    """Every module, those of the tests included, opens with a docstring."""
    trees = {str(path): ast.parse(text) for path, text in texts() if path.suffix == ".py"}

    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_what_is_public_is_documented() -> None:
    """Every public function, class and method of the project has a docstring."""
    found = [
        f"{module}.{node.name}"
        for module, tree in modules().items()
        for node in public(tree)
        if not ast.get_docstring(node)
        # A property without a body states a type; what it means is said where it is made.
        if not (isinstance(node, ast.FunctionDef) and ast.unparse(node.body[-1]) == "...")
    ]

    # Alembic calls these two by name and says itself what they are.
    migrations = [name for name in found if name.startswith("store.migrations.versions.")]
    assert [name for name in found if name not in migrations] == []
    assert {name.rpartition(".")[2] for name in migrations} <= {"upgrade", "downgrade"}


def test_tests_state_their_promise() -> None:
    """Every test says in its docstring what it holds the project to."""
    found = [
        f"{path}: {node.name}"
        for path, text in texts()
        if path.parent.name == "tests" and path.name.startswith("test_")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert found == []


def test_every_rpc_states_who_may_call_it() -> None:
    """Each method of each service carries the least scope that may call it."""
    missing: list[str] = []
    for full_name in server.SERVICES:
        name = full_name.rpartition(".")[2]
        module = "creditledger.api." + re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        service = getattr(importlib.import_module(module), name)
        contract = importlib.import_module(
            "credit.v1." + module.rpartition(".")[2] + "_pb2"
        ).DESCRIPTOR.services_by_name[name]
        missing += [
            f"{name}.{method.name}"
            for method in contract.methods
            if not isinstance(getattr(getattr(service, method.name), "scope", None), Scope)
        ]

    assert len(server.SERVICES) == 10
    assert missing == []
