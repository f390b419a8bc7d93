"""Generate gen/ from protos/: Python modules, type stubs and the descriptor set that Envoy reads.

`python scripts/generate.py` writes gen/credit with the OpenAPI document, the TypeScript of
clients/typescript/src/gen, Google's protos of third_party/googleapis, and envoy.yaml's tables of
errors and routes, from domain/errors.py and the contract; `--check` compares them with a fresh
generation and names the files that differ; `--breaking REVISION` asks buf whether the contract
still keeps what it promised in that git revision. Everything comes from installed packages; the
same packages give the same bytes. TypeScript needs node: without it those files stay as they are,
and the check says that it did not look at them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import openapi
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.rpc import code_pb2

from creditledger import __version__
from creditledger.domain.errors import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen" / "credit"
ENVOY = ROOT / "envoy.yaml"
GOOGLEAPIS = ROOT / "third_party" / "googleapis"
TYPESCRIPT = ROOT / "clients" / "typescript" / "src" / "gen"
ES_PLUGIN = ROOT / "node_modules" / ".bin" / "protoc-gen-es"
ES_PLUGIN_MISSING = "`npm ci --ignore-scripts` installs what generates it"

#: What the contract imports, and the types that an error may carry.
GOOGLE_PROTOS = (
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
#: In the descriptor set besides the contract. Envoy turns an error into JSON only if it knows the
#: type of each of its details; google.rpc.Status and the well-known types are what they consist of.
DESCRIBED_TOO = (
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "google/protobuf/any.proto",
    "google/protobuf/duration.proto",
    "google/protobuf/empty.proto",
    "google/protobuf/field_mask.proto",
    "google/protobuf/struct.proto",
    "google/protobuf/timestamp.proto",
    "google/protobuf/wrappers.proto",
)
#: What the TypeScript needs besides the contract: what it imports, and the details of errors.
TYPESCRIPT_TOO = (
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/error_details.proto",
)
DESCRIPTOR_SET = "v1/descriptor.binpb"
#: In a folder of its own, for the proxy serves folders.
OPENAPI = "v1/openapi/openapi.json"
#: Whose examples the OpenAPI document has.
API_PAGE = ROOT / "docs" / "api.md"
#: File name -> contents of the files that make packages of the generated folders.
PACKAGE_FILES = {
    "credit/__init__.py": "",
    "credit/py.typed": "",
    "credit/v1/__init__.py": '"""Generated from protos/ by scripts/generate.py."""\n',
}


def installed(package: str, *parts: str) -> Path:
    """The path of a data file or folder inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"generate: the package {package} is not installed; install the dev requirements")
    for folder in spec.submodule_search_locations:
        path = Path(folder, *parts)
        if path.exists():
            return path
    sys.exit(f"generate: {package} has no {'/'.join(parts)}")


def tool(name: str) -> Path:
    """A command of this Python's environment, whether or not that is on PATH."""
    path = Path(sys.executable).parent / name
    found = path if path.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"generate: {name} is not installed; install the dev requirements")
    return Path(found)


def copy_googleapis(out: Path) -> None:
    """Write Google's protos, as they are installed, into the empty folder `out`.

    The repository has them too, so that others generate from it alone: they are buf's second module
    and the second root of every other protoc.
    """
    for name in GOOGLE_PROTOS:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = installed(f"google.{name.split('/')[1]}", name.split("/")[2])
        shutil.copyfile(source, target)


def protoc(*arguments: str) -> None:
    """Run the protoc of grpcio-tools over the contract's roots; end the program if it refuses."""
    roots = [PROTOS, GOOGLEAPIS, installed("grpc_tools", "_proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{root}" for root in roots)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def contract_files() -> list[str]:
    """The contract's files by the names that they import each other by."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def generate(out: Path) -> None:
    """Write everything that belongs into gen/credit into the empty folder `out`, as credit/."""
    contract = contract_files()
    protoc(
        f"--plugin=protoc-gen-mypy={tool('protoc-gen-mypy')}",
        f"--plugin=protoc-gen-mypy_grpc={tool('protoc-gen-mypy_grpc')}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_async:{out}",
        *contract,
    )
    described = out / GEN.name / DESCRIPTOR_SET
    protoc("--include_imports", f"--descriptor_set_out={described}", *contract, *DESCRIBED_TOO)
    files = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes())
    spell_requests_in_camel_case(files)
    described.write_bytes(files.SerializeToString(deterministic=True))
    for name, text in PACKAGE_FILES.items():
        (out / name).write_text(text, encoding="utf-8")
    (out / GEN.name / OPENAPI).parent.mkdir()
    (out / GEN.name / OPENAPI).write_text(openapi_document(), encoding="utf-8")


def openapi_document() -> str:
    """The OpenAPI document, which needs the contract's comments."""
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder, "commented.binpb")
        protoc(
            *("--include_imports", "--include_source_info", f"--descriptor_set_out={described}"),
            *contract_files(),
        )
        files = descriptor_pb2.FileDescriptorSet.FromString(described.read_bytes())
    return openapi.document(files, __version__, API_PAGE.read_text(encoding="utf-8"))


def generate_typescript(out: Path) -> None:
    """Write the messages and services of the contract as TypeScript into the empty folder `out`."""
    contract = contract_files()
    protoc(
        f"--plugin=protoc-gen-es={ES_PLUGIN}",
        f"--es_out={out}",
        "--es_opt=target=ts,import_extension=js",
        *contract,
        *TYPESCRIPT_TOO,
    )
    modules = (name.replace(".proto", "_pb.js") for name in contract)
    index = "".join(f'export * from "./{module}";\n' for module in modules)
    head = "// Generated from protos/ by scripts/generate.py.\n"
    (out / "index.ts").write_text(head + index, encoding="utf-8")


def errors() -> list[str]:
    """The rows of Envoy's table of errors, in the order in which the contract has the reasons."""
    described = (GEN / DESCRIPTOR_SET).read_bytes()
    rows = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(described).file:
        for enum in (one for one in file.enum_type if one.name == "ErrorReason"):
            for value in enum.value[1:]:
                reason = value.name.removeprefix("ERROR_REASON_")
                kind = KINDS[reason]
                number = code_pb2.Code.Value(kind.grpc_code)
                rows.append(f'{reason} = {{{kind.http_status}, "{kind.error_type}", {number}}},')
    return rows


def routes() -> list[str]:
    """The rows of Envoy's table of routes: a Lua pattern of the path, and its methods."""
    described = (GEN / DESCRIPTOR_SET).read_bytes()
    methods: dict[str, set[str]] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(described).file:
        for method in (m for service in file.service for m in service.method):
            rule = method.options.Extensions[annotations_pb2.http]
            for one in (rule, *rule.additional_bindings):
                verb = one.WhichOneof("pattern")
                if verb is not None:
                    literal = re.sub(r"([-.])", r"%\1", getattr(one, verb))
                    pattern = re.sub(r"{\w+}", "[^/]+", literal)
                    methods.setdefault(pattern, set()).add(verb.upper())
    return [f'{{"^{path}$", "{" ".join(sorted(methods[path]))}"}},' for path in sorted(methods)]


def envoy_yaml() -> str:
    """envoy.yaml with its tables of errors and routes as they are stated elsewhere."""
    text = ENVOY.read_text(encoding="utf-8")
    for name, rows in (("ERRORS", errors()), ("ROUTES", routes())):
        table = re.compile(rf"(?m)^( *)local {name} = \{{\n(?:.*\n)*?\1\}}\n")
        if len(found := table.findall(text)) != 1:
            sys.exit(f"generate: envoy.yaml has no table {name}, or several")
        (indent,) = found
        lines = "".join(f"{indent}  {row}\n" for row in rows)
        first, last = table.split(text)[::2]
        text = f"{first}{indent}local {name} = {{\n{lines}{indent}}}\n{last}"
    return text


def spell_requests_in_camel_case(files: descriptor_pb2.FileDescriptorSet) -> None:
    """Let Envoy read each field of a request in snake_case and in camelCase.

    It reads a field's name and its JSON name; answers are printed by the JSON name. So in what only
    requests hold, the JSON name becomes the default one, in camelCase. What answers hold too has a
    copy for requests: the same fields under the same numbers, so the bytes are the same.
    """
    messages = dict(_messages(files))
    asked, answered = set[str](), set[str]()
    for method in (m for file in files.file for s in file.service for m in s.method):
        _reach(method.input_type, messages, asked)
        _reach(method.output_type, messages, answered)
    ours = {name for name in asked if name.startswith(".credit.v1.")}
    copied = {name: f"{name}InRequest" for name in ours & answered}
    for file in files.file:
        for message in list(file.message_type):
            if f".{file.package}.{message.name}" in copied:
                copy = file.message_type.add()
                copy.CopyFrom(message)
                copy.name = f"{message.name}InRequest"
                messages[f".{file.package}.{copy.name}"] = copy
    for name in ours:
        for field in messages[copied.get(name, name)].field:
            field.json_name = re.sub("_(.)", lambda match: match[1].upper(), field.name)
            if field.type_name in copied:
                field.type_name = copied[field.type_name]


def _messages(
    files: descriptor_pb2.FileDescriptorSet,
) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    """Each message with its full name, those inside others too."""
    waiting = [
        (f".{file.package}", message) for file in files.file for message in file.message_type
    ]
    while waiting:
        scope, message = waiting.pop()
        yield f"{scope}.{message.name}", message
        waiting += [(f"{scope}.{message.name}", inner) for inner in message.nested_type]


def _reach(
    name: str, messages: Mapping[str, descriptor_pb2.DescriptorProto], found: set[str]
) -> None:
    """Add the message, and all that its fields hold, to `found`."""
    if name not in found and name in messages:
        found.add(name)
        for field in messages[name].field:
            _reach(field.type_name, messages, found)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file under the folder, compiled Python aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def differing(fresh: Path, kept: Path) -> list[str]:
    """The files of the folder that was kept that a fresh one changes, adds or removes."""
    new, old = contents(fresh), contents(kept)
    names = (name for name in new | old if new.get(name) != old.get(name))
    return [str(kept.relative_to(ROOT) / name) for name in names]


def stale() -> list[str]:
    """The files that a fresh generation would change, add or remove."""
    with tempfile.TemporaryDirectory() as folder:
        python, google, typescript = (Path(folder, name) for name in ("python", "google", "ts"))
        for made in (python, google, typescript):
            made.mkdir()
        generate(python)
        copy_googleapis(google)
        changed = differing(python / GEN.name, GEN) + differing(google, GOOGLEAPIS)
        if ES_PLUGIN.exists():
            generate_typescript(typescript)
            changed += differing(typescript, TYPESCRIPT)
        else:
            print(f"{TYPESCRIPT.relative_to(ROOT)} is not compared: {ES_PLUGIN_MISSING}")
    if ENVOY.read_text(encoding="utf-8") != envoy_yaml():
        changed.append(ENVOY.name)
    return sorted(changed)


def breaking(revision: str) -> int:
    """Run buf breaking against a git revision; its exit code.

    The other side is that revision's contract in a folder of its own, under today's rules and with
    today's protos of Google, which are no part of what it promised.
    """
    archive = subprocess.run(
        ["git", "archive", revision, "protos"],  # noqa: S607 - whatever git there is
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as protos:
            protos.extractall(folder, filter="data")
        shutil.copytree(GOOGLEAPIS, Path(folder, GOOGLEAPIS.relative_to(ROOT)))
        shutil.copy(ROOT / "buf.yaml", folder)
        command = [str(tool("buf")), "breaking", "--against", folder]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


def has_es_plugin() -> bool:
    """Whether TypeScript can be generated; npm, where it is, installs what that needs."""
    npm = shutil.which("npm")
    if npm is not None and not ES_PLUGIN.exists():
        subprocess.run([npm, "ci", "--ignore-scripts"], cwd=ROOT, check=True)
    return ES_PLUGIN.exists()


def emptied(folder: Path) -> Path:
    """The folder without anything in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate gen/ from protos/.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="exit 1, naming stale files")
    mode.add_argument("--breaking", metavar="REVISION", help="run buf breaking against it")
    arguments = parser.parse_args()
    if arguments.breaking:
        sys.exit(breaking(arguments.breaking))
    if arguments.check:
        if names := stale():
            listed = "\n".join(f"  {name}" for name in names)
            sys.exit(f"not fresh; run python scripts/generate.py\n{listed}")
    else:
        copy_googleapis(emptied(GOOGLEAPIS))
        emptied(GEN)
        generate(GEN.parent)
        if has_es_plugin():
            generate_typescript(emptied(TYPESCRIPT))
        else:
            print(f"{TYPESCRIPT.relative_to(ROOT)} stays as it is: {ES_PLUGIN_MISSING}")
        ENVOY.write_text(envoy_yaml(), encoding="utf-8")


if __name__ == "__main__":
    main()
