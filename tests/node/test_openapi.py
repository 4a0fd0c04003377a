"""The description of the admin address is true: every path is asked, of real nodes, and each answer is as said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from node.admin import Health, create_admin
from node.overview.openapi import describe
from node.overview.operations import PREFIX
from node.rpc import KeeperClient
from tests.node.running import digest_of, push_blob, push_image
from tests.node.test_admin import launch_in
from tests.node.test_members import Pair, pair

__all__ = ["pair"]


@cache
def document() -> dict[str, Any]:
    """As it is served, but that nothing may be in an answer that it does not name."""
    found: dict[str, Any] = json.loads(describe())
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return found


def require_described(path: str, method: str, answer: httpx.Response) -> None:
    responses = document()["paths"][path][method]["responses"]
    assert str(answer.status_code) in responses, (path, method, answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": document()["components"]}).validate(answer.json())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_document_holds_together() -> None:
    found = document()
    assert found["openapi"] == "3.1.0"
    schemas = found["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
        assert schema.get("description"), schema
    assert {reference.rpartition("/")[2] for reference in references(found)} == set(schemas)
    names = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert {each["name"] for each in operation["parameters"]} == {
                part.strip("{}") for part in path.split("/") if part.startswith("{")
            }


def test_what_is_served_is_described_and_nothing_else(tmp_path: Path) -> None:
    launch = launch_in(tmp_path)

    async def routes() -> set[str]:
        keeper = KeeperClient(launch.keeper_socket)
        found = {route.path.replace(":path", "") for route in create_admin(Health(launch, keeper)).routes}  # type: ignore[attr-defined]
        await keeper.close()
        return found

    served = {path for path in asyncio.run(routes()) if path.startswith(PREFIX)}
    assert served == set(document()["paths"])


def test_every_path_answers_as_described(pair: Pair) -> None:
    eu, us = pair
    with eu.client() as client:
        manifest = push_image(client, "v1")
        layer = push_blob(client, b"a layer")
    image = "/meridian/v1/replication/images/{repository}/manifests/{reference}"
    blob = "/meridian/v1/replication/blobs/{digest}"
    asked: list[tuple[str, str, int]] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{us.admin_port}", timeout=20, trust_env=False) as admin:

        def ask(path: str, status: int, method: str = "get", body: Any = None, **names: str) -> Any:
            url = path
            for name, value in names.items():
                url = url.replace(f"{{{name}}}", value)
            answer = admin.request(method, url, json=body)
            require_described(path, method, answer)
            assert answer.status_code == status, answer.text
            asked.append((path, method, status))
            return answer.json()

        app = {"repository": "team/app", "reference": "v1"}
        assert ask("/meridian/v1/status", 200)["region"] == "us"
        assert ask("/meridian/v1/replication", 200)["state"] == "ok"
        assert {each["state"] for each in ask("/meridian/v1/replication/regions", 200)["members"]} == {"ok"}
        found = ask(image, 200, **app)
        assert (found["digest"], found["blobs"]) == (digest_of(manifest), 2)
        ask(image, 404, repository="team/app", reference="none")
        ask(image, 400, repository="No", reference="v1")
        assert ask(image, 202, "post", {"members": None}, **app)["members"][0]["member"] == "us"
        ask(image, 400, "post", {"members": ["zz"]}, **app)
        ask(image, 404, "post", {}, repository="team/app", reference="none")
        ask(image, 415, "post", **app)
        assert ask(blob, 200, digest=layer)["size_bytes"] == 7
        ask(blob, 404, digest=f"sha256:{'0' * 64}")
        ask(blob, 400, digest="x")
        assert ask("/meridian/v1/openapi.json", 200) == json.loads(describe())
        eu.kill()
        members = {each["member"]: each for each in ask("/meridian/v1/replication/regions", 200)["members"]}
        assert (members["eu"]["state"], members["eu"]["region"]) == ("unreachable", "eu")
        ask(image, 200, repository="team/app", reference=digest_of(manifest))
        ask(blob, 200, digest=layer)
    documented = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert {(path, method) for path, method, _ in asked} == documented
