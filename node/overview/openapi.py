"""The OpenAPI 3.1 description of /meridian/v1/ on the admin address, made from the types that encode the answers."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from node.overview.operations import OPERATIONS, Operation
from node.overview.shapes import Shape

VERSION = "1.0.0"
_REF = "#/components/schemas/{name}"


@cache
def describe() -> bytes:
    """The document, as JSON."""
    types = [kind for each in OPERATIONS for kind in (*each.answers.values(), each.body) if kind]
    _, components = msgspec.json.schema_components(dict.fromkeys(types), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Meridian, the admin address of a node",
            "version": VERSION,
            "description": "How a node and its replication are. Open to whoever reaches the address: keep it inside.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }
    return msgspec.json.encode(document)


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "description": meaning, "schema": {"type": "string"}}
            for name, meaning in operation.parameters.items()
        ],
        "responses": {
            str(status): {"description": HTTPStatus(status).phrase, "content": _content(kind)}
            for status, kind in sorted(operation.answers.items())
        },
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _content(kind: type[Shape] | None) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name=kind.__name__)} if kind else {"type": "object"}
    return {"application/json": {"schema": schema}}
