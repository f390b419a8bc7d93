"""The OpenAPI document says of the REST API what is so."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from creditledger.domain.errors import KINDS
from creditledger.ops import envoy

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    """The document as it is served."""
    path = resources.files("credit.v1") / "openapi" / "openapi.json"
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Verb, path and what is said of each operation."""
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield verb, path, operation


def test_it_is_openapi(document: Json) -> None:
    """By the validator of the specification."""
    assert document["openapi"] == "3.1.0"
    validate(document)


def test_every_route_is_in_it(document: Json) -> None:
    """Each route that the proxy knows, and no other."""
    files = descriptor_pb2.FileDescriptorSet.FromString(envoy.descriptor_set().read_bytes())
    routes = set()
    for file in files.file:
        for method in (one for service in file.service for one in service.method):
            rule = method.options.Extensions[annotations_pb2.http]
            verb = rule.WhichOneof("pattern")
            if verb is not None:
                routes.add((verb, getattr(rule, verb)))
    assert len(routes) > 90
    assert {(verb, path) for verb, path, _ in operations(document)} == routes


def test_everything_is_explained(document: Json) -> None:
    """Operations, parameters and fields say what they are."""
    silent = []
    for verb, path, operation in operations(document):
        if not operation["description"]:
            silent.append(f"{verb} {path}")
        silent += [
            f"{verb} {path} {one['name']}"
            for one in operation["parameters"]
            if "$ref" not in one and not one["description"]
        ]
    for name, schema in document["components"]["schemas"].items():
        silent += [
            f"{name}.{field}"
            for field, one in schema["properties"].items()
            if name != "Error" and not one.get("description")
        ]
    assert silent == []


def test_every_reason_has_its_status(document: Json) -> None:
    """The answers that are refusals name the reasons of their status, and each operation them."""
    responses = document["components"]["responses"]
    for reason, kind in KINDS.items():
        assert f"- `{reason}`:" in responses[str(kind.http_status)]["description"], reason
    for verb, path, operation in operations(document):
        refs = {one["$ref"] for one in operation["responses"].values() if "$ref" in one}
        assert {f"#/components/responses/{one}" for one in ("400", "401", "404", "500")} <= refs, (
            verb,
            path,
        )


def test_examples_are_what_the_schema_says(document: Json) -> None:
    """They come from the page whose commands are run; most bodies have one."""
    with_example = 0
    for verb, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None or "example" not in content:
            continue
        with_example += 1
        errors = list(Draft202012Validator(content["schema"]).iter_errors(content["example"]))
        assert errors == [], (verb, path)
    assert with_example > 25
