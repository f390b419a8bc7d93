"""The OpenAPI document of the REST routes, made from the contract and its comments.

A route is what `google.api.http` says of an RPC. The proxy prints and reads JSON as protobuf does:
64-bit integers are text, and what is not `optional` is always there. Examples of requests are those
of docs/api.md, which a test runs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from creditledger.domain.errors import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
Field = FieldDescriptorProto

PACKAGE = ".credit.v1."
TITLE = "creditledger"
#: A REST path whose variables are whole segments.
VARIABLE = re.compile(r"\{(\w+)\}")
#: Numbers of the fields that lead through a file's descriptor, for the places of comments.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS_OF_MESSAGE, METHODS_OF_SERVICE, VALUES_OF_ENUM = 2, 2, 2

SCALARS: dict[int, Json] = {
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_DOUBLE: {"type": "number", "format": "double"},
    Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    Field.TYPE_INT64: {"type": "string", "format": "int64"},
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BYTES: {"type": "string", "format": "byte"},
}
#: Requests may have a 64-bit integer as a number, too.
ASKED_INT64: Json = {"type": ["integer", "string"], "format": "int64"}
#: Types of protobuf that are JSON of any shape.
WELL_KNOWN: dict[str, Json] = {
    ".google.protobuf.Struct": {"type": "object"},
    ".google.protobuf.Value": {},
    ".google.protobuf.ListValue": {"type": "array", "items": {}},
}
BODY = ".google.api.HttpBody"
#: What the RPCs that answer a file may answer.
FILES = {
    "ExportTransactions": ["text/csv"],
    "Export": ["text/csv", "application/x-ndjson"],
    "WatchEvents": ["text/event-stream"],
    "Render": ["text/csv", "text/html", "application/json"],
    "RenderClosed": ["text/csv", "text/html", "application/json"],
}
#: Statuses that only a change can have.
OF_CHANGES = {402, 409}
IDEMPOTENCY = "idempotency_key"


class Comments:
    """What the contract says of its parts."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._by_place = {
            tuple(one.path): one.leading_comments for one in file.source_code_info.location
        }

    def at(self, *place: int) -> str:
        """The comment above a part, as paragraphs of whole lines."""
        lines = [line.strip() for line in self._by_place.get(place, "").splitlines()]
        return re.sub(r"(?<!\n)\n(?!\n)", " ", "\n".join(lines).strip())


class Contract:
    """The messages, RPCs and reasons of the contract, with their comments."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.comments: dict[str, str] = {}
        self.services: list[tuple[str, str, list[tuple[MethodDescriptorProto, str]]]] = []
        self.reasons: dict[str, str] = {}
        for file in files.file:
            comments = Comments(file)
            for number, message in enumerate(file.message_type):
                name = f".{file.package}.{message.name}"
                self.messages[name] = message
                self.comments[name] = comments.at(MESSAGES, number)
                for inner in message.nested_type:
                    self.messages[f"{name}.{inner.name}"] = inner
                for at, field in enumerate(message.field):
                    place = (MESSAGES, number, FIELDS_OF_MESSAGE, at)
                    self.comments[f"{name}.{field.name}"] = comments.at(*place)
            for number, service in enumerate(file.service):
                methods = [
                    (method, comments.at(SERVICES, number, METHODS_OF_SERVICE, at))
                    for at, method in enumerate(service.method)
                ]
                self.services.append((service.name, comments.at(SERVICES, number), methods))
            for number, enum in enumerate(file.enum_type):
                for at, value in enumerate(enum.value):
                    reason = value.name.removeprefix("ERROR_REASON_")
                    if reason in KINDS:
                        text = comments.at(ENUMS, number, VALUES_OF_ENUM, at)
                        self.reasons[reason] = text.partition(" [")[0]


def document(files: FileDescriptorSet, version: str, examples: str) -> str:
    """The document as JSON.

    `files` have their comments; `examples` is the text of docs/api.md.
    """
    contract = Contract(files)
    schemas: dict[str, Json] = {}
    paths: dict[str, Json] = defaultdict(dict)
    bodies = _bodies(examples)
    for service, _, methods in sorted(contract.services):
        for method, comment in methods:
            for verb, path, has_body in _routes(method):
                operation = _operation(contract, service, method, comment, verb, path, schemas)
                if has_body:
                    schema = _asked(contract, method.input_type, set(VARIABLE.findall(path)))
                    content: Json = {"schema": schema}
                    if example := _example(bodies, verb, path):
                        content["example"] = example
                    operation["requestBody"] = {
                        "required": True,
                        "content": {"application/json": content},
                    }
                paths[path][verb] = operation
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": version,
            "description": "A ledger of prepaid credit. Amounts are decimals as text.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": []}],
        "tags": [
            {"name": name, "description": comment}
            for name, comment, methods in sorted(contract.services)
            if any(list(_routes(method)) for method, _ in methods)
        ],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "parameters": {"IdempotencyKey": _idempotency_header()},
            "schemas": {**dict(sorted(schemas.items())), "Error": _error()},
            "responses": dict(_refusals(contract)),
        },
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _routes(method: MethodDescriptorProto) -> Iterator[tuple[str, str, bool]]:
    """Verb, path, and whether it has a body, of each route of an RPC."""
    rule = method.options.Extensions[annotations_pb2.http]
    for one in (rule, *rule.additional_bindings):
        verb = one.WhichOneof("pattern")
        if verb is not None:
            yield verb, getattr(one, verb), one.body == "*"


def _operation(
    contract: Contract,
    service: str,
    method: MethodDescriptorProto,
    comment: str,
    verb: str,
    path: str,
    schemas: dict[str, Json],
) -> Json:
    """An operation without its body."""
    changes = verb != "get"
    statuses = sorted({kind.http_status for kind in KINDS.values()} | {405})
    refused = [one for one in statuses if changes or one not in OF_CHANGES]
    operation: Json = {
        "operationId": f"{service}.{method.name}",
        "tags": [service],
        "summary": re.split(r"(?<=[a-z])[.:;] ", comment + " ", maxsplit=1)[0].rstrip(". "),
        "description": comment,
        "parameters": list(_parameters(contract, method.input_type, verb, path)),
        "responses": {
            "200": _answer(contract, method, schemas),
            **{str(one): {"$ref": f"#/components/responses/{one}"} for one in refused},
        },
    }
    return operation


def _parameters(contract: Contract, name: str, verb: str, path: str) -> Iterator[Json]:
    """Those in the path; in the query what is left, where there is no body."""
    in_path = VARIABLE.findall(path)
    has_query = verb in {"get", "delete"}
    fields = contract.messages[name].field
    for field in fields:
        where = "path" if field.name in in_path else "query"
        comment = contract.comments[f"{name}.{field.name}"]
        if where == "path" or has_query:
            yield {
                "name": field.name if where == "path" else field.json_name,
                "in": where,
                "required": where == "path" or _is_required(comment),
                "description": comment,
                "schema": _with_description(contract, field, "", asked=True),
            }
    if verb != "get" and any(field.name == IDEMPOTENCY for field in fields):
        yield {"$ref": "#/components/parameters/IdempotencyKey"}


def _is_required(comment: str) -> bool:
    return re.search(r"\bRequired([.;]|, so )", comment) is not None


def _asked(contract: Contract, name: str, without: set[str]) -> Json:
    """The body of a request: its fields but for those in the path."""
    message = contract.messages[name]
    fields = [field for field in message.field if field.name not in without]
    # Over REST its header is another place for it.
    required = [
        field.json_name
        for field in fields
        if field.name != IDEMPOTENCY
        and _is_required(contract.comments.get(f"{name}.{field.name}", ""))
    ]
    return _object(contract, name, fields, required, asked=True)


def _shown(contract: Contract, name: str, schemas: dict[str, Json]) -> Json:
    """A reference to the schema of what an answer holds, which is made if it is not there."""
    title = name.removeprefix(PACKAGE)
    if title not in schemas:
        schemas[title] = {}  # so that a message within itself finds it
        message = contract.messages[name]
        required = [field.json_name for field in message.field if _is_always_there(field)]
        made = _object(contract, name, list(message.field), required, asked=False)
        schemas[title] = _resolved(made, contract, schemas)
    return {"$ref": f"#/components/schemas/{title}"}


def _is_always_there(field: Field) -> bool:
    if field.label == Field.LABEL_REPEATED:
        return True
    return not (
        field.proto3_optional or field.HasField("oneof_index") or field.type == Field.TYPE_MESSAGE
    )


def _object(
    contract: Contract, name: str, fields: list[Field], required: list[str], *, asked: bool
) -> Json:
    made: Json = {"type": "object"}
    if comment := contract.comments.get(name):
        made["description"] = comment
    made["properties"] = {
        field.json_name: _with_description(
            contract, field, contract.comments.get(f"{name}.{field.name}", ""), asked=asked
        )
        for field in fields
    }
    if required:
        made["required"] = required
    return made


def _with_description(contract: Contract, field: Field, comment: str, *, asked: bool) -> Json:
    made = dict(_type(contract, field, asked=asked))
    if comment:
        made["description"] = comment
    return made


def _type(contract: Contract, field: Field, *, asked: bool) -> Json:
    """The schema of a field. That of a message of an answer is a name, to be looked up later."""
    if field.type == Field.TYPE_MESSAGE:
        message = contract.messages.get(field.type_name)
        if message is not None and message.options.map_entry:
            return {"type": "object", "additionalProperties": {"type": "string"}}
        if field.type_name in WELL_KNOWN:
            one: Json = WELL_KNOWN[field.type_name]
        elif asked:
            one = _asked(contract, field.type_name, set())
        else:
            one = {"$message": field.type_name}
    elif asked and field.type == Field.TYPE_INT64:
        one = ASKED_INT64
    else:
        one = SCALARS[field.type]
    if field.label == Field.LABEL_REPEATED:
        return {"type": "array", "items": one}
    return one


def _resolved(schema: Any, contract: Contract, schemas: dict[str, Json]) -> Any:
    """The schema with references for the names of messages."""
    if isinstance(schema, list):
        return [_resolved(one, contract, schemas) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$message" in schema:
        rest = {name: value for name, value in schema.items() if name != "$message"}
        return {**_shown(contract, schema["$message"], schemas), **rest}
    return {name: _resolved(value, contract, schemas) for name, value in schema.items()}


def _answer(contract: Contract, method: MethodDescriptorProto, schemas: dict[str, Json]) -> Json:
    name = method.output_type
    if name == BODY:
        content: Json = {kind: {"schema": {"type": "string"}} for kind in FILES[method.name]}
        return {"description": "A file, in pieces.", "content": content}
    if name in WELL_KNOWN:
        schema = WELL_KNOWN[name]
        comment = ""
    else:
        schema = _shown(contract, name, schemas)
        comment = contract.comments[name]
    return {
        "description": comment or "The answer.",
        "content": {"application/json": {"schema": schema}},
    }


# --- refusals -------------------------------------------------------------------------------------


def _error() -> Json:
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    error = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": sorted({k.error_type for k in KINDS.values()})},
            "message": {"type": "string", "description": "For people."},
            "code": {"type": "string", "enum": sorted(KINDS), "description": "For programs."},
            "param": {"type": "string", "description": "The field at fault. Absent if none is."},
            "metadata": {**texts, "description": "The values that the reason names."},
            "request_id": {"type": "string", "description": "What the log has the call under."},
        },
        "required": ["type", "message", "code", "metadata", "request_id"],
    }
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _refusals(contract: Contract) -> Iterator[tuple[str, Json]]:
    """A response for each status: its reasons, each with what it means."""
    by_status: dict[int, list[str]] = defaultdict(list)
    for reason in contract.reasons:
        by_status[KINDS[reason].http_status].append(reason)
    by_status[405] = ["UNKNOWN_PATH"]
    for status, reasons in sorted(by_status.items()):
        lines = [f"- `{reason}`: {contract.reasons[reason]}" for reason in reasons]
        schema = {"$ref": "#/components/schemas/Error"}
        yield (
            str(status),
            {
                "description": "\n".join(lines),
                "content": {"application/json": {"schema": schema}},
            },
        )


def _idempotency_header() -> Json:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "Another place for the field `idempotency_key`. If both are there, they"
        " must be equal.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    }


# --- examples -------------------------------------------------------------------------------------


def _bodies(text: str) -> dict[str, list[tuple[str, Json]]]:
    """By verb, the paths and JSON bodies that the curl commands of a page send."""
    found: dict[str, list[tuple[str, Json]]] = defaultdict(list)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for command in re.sub(r"\\\n", " ", block).split("\n" + "curl "):
            sent = re.search(r"""\$REST(/[^\s"']*)""", command)
            try:
                words = shlex.split(command.partition(" | ")[0])
            except ValueError:
                continue
            if sent is None or "-d" not in words:
                continue
            try:
                body = json.loads(words[words.index("-d") + 1])
            except ValueError:
                continue
            verb = words[words.index("-X") + 1].lower() if "-X" in words else "post"
            found[verb].append((sent[1].partition("?")[0], body))
    return found


def _example(bodies: dict[str, list[tuple[str, Json]]], verb: str, path: str) -> Json | None:
    """The first body that is sent to a route."""
    pattern = re.compile(
        VARIABLE.sub("[^/:]+", re.escape(path).replace(r"\{", "{").replace(r"\}", "}"))
    )
    return next((body for to, body in bodies[verb] if pattern.fullmatch(to)), None)
