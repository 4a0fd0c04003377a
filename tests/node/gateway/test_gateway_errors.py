from __future__ import annotations

import re
import sqlite3
from typing import Any

import msgspec
import pytest

from consensus import errors as consensus_errors
from consensus.errors import InvalidName
from consensus.names import Digest, RepositoryName, Tag
from node import access
from node import errors as registry_errors
from node.errors import UploadProgress
from node.gateway import errors, refusals
from node.gateway.requests import Request
from replication import directory, sources, stores

ONE = Digest("sha256", "1" * 64)
APP = RepositoryName("team/app")
ROOTS = (
    consensus_errors.ConsensusError,
    stores.StoreError,
    access.AccessDenied,
    registry_errors.RegistryError,
    refusals.RequestRefused,
    sources.TransferError,
    directory.PeerError,
)
OF_THE_SPECIFICATION = re.findall(
    "[A-Z_]+",
    """BLOB_UNKNOWN BLOB_UPLOAD_INVALID BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN MANIFEST_INVALID
    MANIFEST_UNKNOWN NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED UNSUPPORTED TOOMANYREQUESTS""",
)


def below(kind: type[BaseException]) -> list[type[BaseException]]:
    return [kind, *(found for child in kind.__subclasses__() for found in below(child))]


# What ends a process at its start, or stays inside the keeper, and so never gets as far as a request.
ELSEWHERE = {stores.StoreRefused, *below(consensus_errors.SnapshotError)}
MODULES = {root.__module__ for root in ROOTS}
CLASSES = [
    kind
    for root in ROOTS
    for kind in below(root)
    if kind not in ROOTS and kind not in ELSEWHERE and kind.__module__ in MODULES
]


async def _nothing(*_: Any) -> Any:
    raise AssertionError


def answer(error: Exception) -> tuple[int, dict[str, str], list[dict[str, Any]]]:
    """Status, headers and errors."""
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"x-request-id", b"id")]}
    request = Request(scope, _nothing, _nothing)
    request.allowed = ("GET", "DELETE")
    response = errors.error_response(request, error)
    headers = {name.decode(): value.decode() for name, value in response.headers}
    assert headers.pop("content-type") == "application/json"
    return response.status, headers, msgspec.json.decode(response.body)["errors"]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_its_row(kind: type[BaseException]) -> None:
    assert any(base in errors.RULES for base in kind.__mro__)


def test_codes_of_4xx_are_those_of_the_specification() -> None:
    for rule in (*errors.RULES.values(), errors.rule_of(InvalidName("digest", "", ""))):
        assert re.fullmatch("[A-Z_]+", rule.code)
        if rule.status < 500:
            assert rule.code in OF_THE_SPECIFICATION


def test_the_drawing_is_the_table() -> None:
    assert errors.__doc__
    drawn = dict(re.findall(r"(?:── |^    )(\w+) +(?:[\w.]+; )?(\d{3} [A-Z_]+)", errors.__doc__, re.MULTILINE))
    for kind, rule in errors.RULES.items():
        if kind not in (InvalidName, sqlite3.Error, access.AccessDenied):
            assert drawn[kind.__name__] == f"{rule.status} {rule.code}"
    assert drawn.keys() - {kind.__name__ for kind in errors.RULES} == {"Forbidden"}


@pytest.mark.parametrize(
    ("error", "status", "code", "headers", "detail"),
    [
        (
            InvalidName("digest", "x", "why"),
            400,
            "DIGEST_INVALID",
            {},
            {"kind": "digest", "text": "x", "reason": "why"},
        ),
        (InvalidName("tag", "x", "y"), 400, "MANIFEST_INVALID", {}, {"kind": "tag", "text": "x", "reason": "y"}),
        (access.Forbidden("not allowed"), 403, "DENIED", {}, None),
        (registry_errors.ManifestUnknown(APP, Tag("v1")), 404, "MANIFEST_UNKNOWN", {}, {"reference": "v1"}),
        (registry_errors.BlobInUse([ONE]), 405, "DENIED", {"allow": "GET"}, {"manifests": [str(ONE)]}),
        (registry_errors.TagConflict(ONE), 412, "DENIED", {"etag": f'"{ONE}"'}, {"current": str(ONE)}),
        (registry_errors.TagConflict(None), 412, "DENIED", {}, {"current": None}),
        (registry_errors.Disabled("off"), 405, "UNSUPPORTED", {"allow": "GET"}, None),
        (registry_errors.Undecided("x"), 503, "UNAVAILABLE", {"retry-after": "2"}, {"request_id": "id"}),
        (registry_errors.SizeConflict("x"), 409, "SIZE_INVALID", {}, None),
        (refusals.MethodNotAllowed("X", ["GET"]), 405, "UNSUPPORTED", {"allow": "GET, DELETE"}, None),
        (refusals.RangeUnsatisfiable(7), 416, "SIZE_INVALID", {"content-range": "bytes */7"}, None),
        (refusals.Overloaded("x"), 503, "UNAVAILABLE", {"retry-after": "2"}, {"request_id": "id"}),
        (stores.UploadBusy("x"), 409, "BLOB_UPLOAD_INVALID", {"retry-after": "1"}, None),
        (stores.StoreFull("x"), 507, "STORAGE_FULL", {}, {"request_id": "id"}),
        (consensus_errors.LogFull("x"), 507, "STORAGE_FULL", {}, {"request_id": "id"}),
        (consensus_errors.LogUnavailable("x"), 503, "UNAVAILABLE", {"retry-after": "2"}, {"request_id": "id"}),
    ],
)
def test_answers(
    error: Exception, status: int, code: str, headers: dict[str, str], detail: dict[str, Any] | None
) -> None:
    assert answer(error)[:2] == (status, headers)
    (only,) = answer(error)[2]
    assert (only["code"], only.get("detail")) == (code, detail)


def test_where_to_go_on_is_told() -> None:
    progress = UploadProgress(APP, "token", "uuid", 10)
    status, headers, _ = answer(registry_errors.UploadOutOfOrder(progress))
    assert status == 416
    assert headers == {
        "location": "/v2/team/app/blobs/uploads/token",
        "range": "0-9",
        "docker-upload-uuid": "uuid",
    }


@pytest.mark.parametrize(
    "error",
    [
        stores.StoreFailed("/secret/path: Input/output error"),
        sqlite3.OperationalError("/secret/path"),
        KeyError("/secret/path"),
        consensus_errors.LogCorrupt("/secret/path"),
        stores.StoreFull("/secret/path"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_inside_of_the_node_is_not_told(error: Exception) -> None:
    assert "secret" not in str(answer(error))


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [
        (stores.StoreFailed("x"), True),
        (sqlite3.OperationalError("x"), True),
        (registry_errors.BlobElsewhere(ONE), True),
        (KeyError("x"), True),
        (consensus_errors.LogUnavailable("x"), False),
        (stores.StoreFull("x"), False),
        (stores.UploadBusy("x"), False),
    ],
)
def test_only_what_is_an_operators_business_is_logged(
    caplog: pytest.LogCaptureFixture, error: Exception, is_logged: bool
) -> None:
    answer(error)
    assert len(caplog.records) == is_logged
