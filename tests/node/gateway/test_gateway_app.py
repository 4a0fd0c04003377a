from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from consensus.names import RepositoryName
from node.access import Action, Principal
from node.gateway.app import CLIENT_GONE
from tests.node.gateway.rig import Rig, code, running


class Raising:
    """A policy with a fault."""

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        raise RuntimeError("a secret of the inside")


class Closed:
    """Nobody may do anything."""

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        return False


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
async def test_the_base_says_that_this_is_a_registry(rig: Rig, path: str) -> None:
    response = await rig.client.get(path)
    assert response.status_code == 200
    assert response.headers["docker-distribution-api-version"] == "registry/2.0"
    assert response.json() == {}
    head = await rig.client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "2")


async def test_login_to_an_open_registry_works_with_any_password(rig: Rig) -> None:
    assert (await rig.client.get("/v2/", auth=("somebody", "guess"))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1/_ping", "/v2/x", "/v2/x/y", "/v2/x/_catalog", "/v2/tags/list", "/v2/_catalog/", "/metrics"]
)
async def test_other_paths_are_unknown(rig: Rig, path: str) -> None:
    response = await rig.client.get(path)
    assert (response.status_code, code(response)) == (404, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/", "GET, HEAD"),
        ("/v2/_catalog", "GET, HEAD"),
        ("/v2/a/manifests/x", "GET, HEAD, PUT, DELETE"),
        ("/v2/a/blobs/x", "GET, HEAD, DELETE"),
        ("/v2/a/blobs/uploads/", "POST"),
        ("/v2/a/blobs/uploads/x", "GET, HEAD, PATCH, PUT, DELETE"),
        ("/v2/a/tags/list", "GET, HEAD"),
        ("/v2/a/referrers/x", "GET, HEAD"),
    ],
)
async def test_other_methods_are_told_which_ones_there_are(rig: Rig, path: str, allowed: str) -> None:
    for method in ("OPTIONS", "TRACE", "BREW"):
        response = await rig.client.request(method, path)
        assert (response.status_code, code(response), response.headers["allow"]) == (405, "UNSUPPORTED", allowed)


async def test_a_request_id_is_kept_if_it_is_harmless_and_drawn_otherwise(rig: Rig) -> None:
    given = await rig.client.get("/v2/", headers={"x-request-id": "Trace.1-2_3"})
    assert given.headers["x-request-id"] == "Trace.1-2_3"
    for bad in ("", "a b", "x" * 129, "a\tb", "é"):
        drawn = (await rig.client.get("/v2/", headers={b"x-request-id": bad.encode()})).headers["x-request-id"]
        assert len(drawn) == 32
        assert drawn.isalnum()
    assert rig.records.ended[0].request_id == "Trace.1-2_3"


async def test_errors_of_head_have_no_body(rig: Rig) -> None:
    response = await rig.client.head("/v2/a/manifests/latest")
    assert (response.status_code, response.content) == (404, b"")
    assert int(response.headers["content-length"]) > 0


async def test_what_nobody_expected_is_500_with_the_request_id_and_logged_once(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(data, policy=Raising()) as rig:
        response = await rig.client.get("/v2/", headers={"x-request-id": "look-for-me"})
    assert (response.status_code, code(response)) == (500, "UNKNOWN")
    assert "secret" not in response.text
    assert response.json()["errors"][0]["detail"] == {"request_id": "look-for-me"}
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in logged] == ["request_failed"]
    assert logged[0].exc_info
    assert rig.records.ended[0].status == 500


async def test_whoever_is_refused_learns_nothing_about_the_repository(data: Path) -> None:
    async with running(data, policy=Closed()) as rig:
        answers = [
            await rig.client.request(method, path)
            for method, path in [
                ("GET", "/v2/"),
                ("GET", "/v2/_catalog"),
                ("GET", "/v2/a/tags/list"),
                ("GET", "/v2/a/manifests/latest"),
                ("PUT", "/v2/a/manifests/not~valid"),
                ("DELETE", "/v2/a/manifests/latest"),
                ("HEAD", "/v2/a/blobs/sha256:short"),
                ("POST", "/v2/a/blobs/uploads/?digest=nonsense"),
                ("PATCH", "/v2/a/blobs/uploads/forged"),
                ("GET", "/v2/a/referrers/nonsense"),
            ]
        ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {'Basic realm="meridian", charset="UTF-8"'}
    assert code(answers[0]) == "UNAUTHORIZED"


async def test_telemetry_learns_of_every_request(rig: Rig) -> None:
    await rig.push_blob("team/app", b"12345")
    await rig.client.get("/v2/team/app/tags/list?n=x", headers={"traceparent": "00-aa-bb-01"})
    await rig.client.get("/nowhere")
    push, listing, nowhere = rig.records.ended
    assert rig.records.begun == 3
    assert (push.method, push.route, push.repository, push.status) == ("POST", "uploads", "team/app", 201)
    assert (push.bytes_in, push.bytes_out, push.client) == (5, 0, "127.0.0.1")
    assert push.seconds > 0
    assert (listing.status, listing.route, listing.traceparent) == (400, "tags", "00-aa-bb-01")
    assert listing.bytes_out > 0
    assert (nowhere.route, nowhere.status, nowhere.repository) == ("unknown", 404, "")


def _scope(kind: str, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {"type": kind, "method": method, "path": path, "query_string": b"", "headers": headers, "client": None}


async def test_a_client_that_leaves_during_its_request_is_recorded_as_gone(rig: Rig) -> None:
    location = await rig.begin("a")

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await rig.app(_scope("http", "PATCH", location, [(b"content-length", b"9")]), receive, send)
    record = rig.records.ended[-1]
    assert (record.status, record.route, record.client) == (CLIENT_GONE, "upload", "")


async def test_a_client_that_leaves_during_its_answer_is_recorded_as_gone(rig: Rig) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is to be received")

    async def send(message: Any) -> None:
        raise ConnectionResetError

    await rig.app(_scope("http", "GET", "/v2/", []), receive, send)
    assert rig.records.ended[-1].status == CLIENT_GONE


async def test_lifespan_and_websockets_are_answered(rig: Rig) -> None:
    incoming = ["lifespan.startup", "lifespan.shutdown"]
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": incoming.pop(0)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await rig.app({"type": "lifespan"}, receive, send)
    await rig.app({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
