"""The house stays in order: the rules stand by themselves, everything public is said."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from creditledger.domain.registry import Scope
from creditledger.ops import server
from creditledger.surfaces.native.api_key_service import ApiKeyService

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "creditledger"
COLUMNS_MAX = 100
#: What excuses a line from a check cannot be broken.
EXCUSE = re.compile(r"  # (noqa|type)\b")

#: Who speaks protobuf and gRPC: the API and what stands on it.
SPEAKS_WIRE = re.compile(r"(api|outlets|surfaces|ops)\..*")
#: What the rules may import beside the standard library: durations on the calendar.
OF_THE_RULES = {"creditledger", "dateutil"}


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


def test_the_rules_stand_by_themselves() -> None:
    """Nothing of the domain imports anything but the standard library and the domain."""
    found = [
        f"{module} imports {name}"
        for module, tree in modules().items()
        if module.partition(".")[0] == "domain"
        for name in imports(tree)
        if name.partition(".")[0] not in OF_THE_RULES | sys.stdlib_module_names
    ]

    assert found == []


def test_only_the_edge_knows_the_wire() -> None:
    """Generated messages and gRPC are met in the API and in what stands on it."""
    found = {
        module
        for module, tree in modules().items()
        for name in imports(tree)
        if name.partition(".")[0] in {"credit", "grpc", "grpc_health", "google"}
    }

    assert [module for module in sorted(found) if not SPEAKS_WIRE.fullmatch(module)] == []


def test_only_config_reads_the_environment() -> None:
    """A setting that ops/config.py does not know cannot exist."""
    found = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }

    assert found == {"ops.config"}


def test_only_the_command_prints() -> None:
    """Standard output is the command's; everything else logs."""
    found = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "print"
    }

    assert found == {"ops.cli.console"}


def test_a_class_name_stands_once() -> None:
    """A name in a conversation means one class of the project, whether it is private or not."""
    places: dict[str, list[str]] = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(f"{module}.{node.name}")

    assert [found for found in places.values() if len(found) > 1] == []


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
        if path.parts[0] == "tests" and path.name.startswith("test_")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert found == []


def test_every_rpc_states_who_may_call_it() -> None:
    """Each method of each service carries the least scope that may call it; one needs no key."""
    missing: list[str] = []
    classes = {
        node.name: module
        for module, tree in modules().items()
        if module.startswith("surfaces.")
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    for full_name in server.SERVICES:
        name = full_name.rpartition(".")[2]
        service = getattr(importlib.import_module(f"creditledger.{classes[name]}"), name)
        file = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        contract = importlib.import_module(f"credit.v1.{file}_pb2").DESCRIPTOR.services_by_name[
            name
        ]
        missing += [
            f"{name}.{method.name}"
            for method in contract.methods
            if not isinstance(getattr(getattr(service, method.name), "scope", None), Scope)
        ]
    assert ApiKeyService.OpenSession.scope is None  # type: ignore[attr-defined] # set by `rpc`

    assert len(server.SERVICES) == 11
    assert missing == ["ApiKeyService.OpenSession"]
