"""The only table from exception to OCI error code and status. A class not listed is answered like its nearest base.

    ConsensusError            consensus.errors
    ├── InvalidName           400, by what did not parse: DIGEST_INVALID, NAME_INVALID or MANIFEST_INVALID
    ├── InvalidManifest       400 MANIFEST_INVALID
    ├── InvalidCommand        400 MANIFEST_INVALID: more descriptors and annotations than the log takes at once
    ├── StateRefused          503 UNAVAILABLE, Retry-After: the database in force was changed by hand
    └── LogError              503 UNAVAILABLE, Retry-After
        └── LogFull           507 STORAGE_FULL
    StoreError                replication.stores; 503 UNAVAILABLE, Retry-After
    ├── BlobNotFound          404 BLOB_UNKNOWN
    ├── UploadNotFound        404 BLOB_UPLOAD_UNKNOWN
    ├── UploadBusy            409 BLOB_UPLOAD_INVALID, Retry-After
    ├── DigestMismatch        400 DIGEST_INVALID
    └── StoreFull             507 STORAGE_FULL
    TransferError             replication.sources; 503 UNAVAILABLE, Retry-After, names what is missing
    └── BlobNowhere           503 UNAVAILABLE, Retry-After: the log knows the blob, so its absence is a loss and no 404
    PeerError                 replication.directory; 503 UNAVAILABLE, Retry-After
    AccessDenied              node.access
    ├── Unauthenticated       401 UNAUTHORIZED, WWW-Authenticate
    └── Forbidden             403 DENIED
    RegistryError             node.errors
    ├── RepositoryUnknown     404 NAME_UNKNOWN
    ├── ManifestUnknown       404 MANIFEST_UNKNOWN
    ├── BlobUnknown           404 BLOB_UNKNOWN
    ├── BlobElsewhere         503 UNAVAILABLE, Retry-After
    ├── BlobInUse             405 DENIED, names manifests
    ├── UploadUnknown         404 BLOB_UPLOAD_UNKNOWN
    ├── UploadOutOfOrder      416 BLOB_UPLOAD_INVALID, Range, Location
    ├── UploadLengthWrong     400 SIZE_INVALID
    ├── TooManyUploads        429 TOOMANYREQUESTS, Retry-After
    ├── ContentTooLarge       413 SIZE_INVALID, names the limit
    ├── ContentWrong          400 DIGEST_INVALID
    ├── ManifestIncomplete    400 MANIFEST_BLOB_UNKNOWN, one error for each
    ├── SizeConflict          409 SIZE_INVALID
    ├── TagConflict           412 DENIED, ETag
    ├── ConditionFailed       412 DENIED, ETag
    ├── Disabled              405 UNSUPPORTED, Allow
    ├── Undecided             503 UNAVAILABLE, Retry-After
    └── StateUnconfirmed      503 UNAVAILABLE, Retry-After
    RequestRefused            node.gateway.refusals
    ├── RouteUnknown          404 UNSUPPORTED
    ├── MethodNotAllowed      405 UNSUPPORTED, Allow
    ├── MalformedRequest      400 UNSUPPORTED (the specification's list has nothing nearer)
    │   ├── MalformedRange    400 BLOB_UPLOAD_INVALID
    │   ├── LengthMismatch    400 SIZE_INVALID
    │   └── TooManyParameters 414 UNSUPPORTED
    ├── TagImpossible         404 MANIFEST_UNKNOWN, says why
    ├── TypeNotAcceptable     404 MANIFEST_UNKNOWN, names the type
    ├── RangeUnsatisfiable    416 SIZE_INVALID, Content-Range
    └── Overloaded            503 UNAVAILABLE, Retry-After
    sqlite3.Error             503 UNAVAILABLE, Retry-After: the disk under the state
    anything else             500 UNKNOWN

Codes of 4xx are those of the specification; it leaves those of 5xx open.
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from typing import Any

import msgspec

from consensus.errors import InvalidCommand, InvalidManifest, InvalidName, LogError, LogFull, StateRefused
from node import access, errors
from node.gateway import refusals
from node.gateway.preconditions import entity_tag
from node.gateway.requests import Request
from node.gateway.responses import JSON, Header, Response
from node.gateway.uploads import progress_headers
from replication import directory, sources, stores

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rule:
    """How an exception is answered. `message` replaces its own, which may be about the inside of the node; what is
    `logged` is somebody's business besides the client's."""

    status: int
    code: str
    retry_seconds: int = 0
    message: str = ""
    logged: bool = False


_UNAVAILABLE = Rule(503, "UNAVAILABLE", 2, "nothing can be written at the moment; try again")
_UNCONFIRMED = Rule(
    503, "UNAVAILABLE", 2, "this region cannot reach a majority of the cluster to make sure of the answer; try again"
)
_DISK_REFUSED = Rule(503, "UNAVAILABLE", 5, "the node's storage failed; try again", logged=True)
_FULL = Rule(507, "STORAGE_FULL", 0, "there is no room for more; what is stored can be read")
_UNEXPECTED = Rule(
    500, "UNKNOWN", 0, "something went wrong here; the node's log has more under this request id", logged=True
)
_MALFORMED_NAMES = {"digest": Rule(400, "DIGEST_INVALID"), "repository": Rule(400, "NAME_INVALID")}

RULES: dict[type[BaseException], Rule] = {
    InvalidName: Rule(400, "MANIFEST_INVALID"),
    InvalidManifest: Rule(400, "MANIFEST_INVALID"),
    InvalidCommand: Rule(400, "MANIFEST_INVALID", 0, "the manifest has too many descriptors and annotations"),
    LogError: _UNAVAILABLE,
    LogFull: _FULL,
    stores.StoreError: _DISK_REFUSED,
    stores.BlobNotFound: Rule(404, "BLOB_UNKNOWN", 0, "no such blob"),
    stores.UploadNotFound: Rule(404, "BLOB_UPLOAD_UNKNOWN", 0, "no such upload"),
    stores.UploadBusy: Rule(409, "BLOB_UPLOAD_INVALID", 1, "another request is writing to this upload"),
    stores.DigestMismatch: Rule(400, "DIGEST_INVALID"),
    stores.StoreFull: _FULL,
    sources.TransferError: Rule(503, "UNAVAILABLE", 2, "the blob cannot be brought here at the moment; try again"),
    sources.BlobNowhere: Rule(503, "UNAVAILABLE", 30, "none of the stores that should hold the blob has it"),
    directory.PeerError: Rule(503, "UNAVAILABLE", 2, "another node did not answer; try again", logged=True),
    access.Unauthenticated: Rule(401, "UNAUTHORIZED"),
    access.AccessDenied: Rule(403, "DENIED"),
    errors.RepositoryUnknown: Rule(404, "NAME_UNKNOWN"),
    errors.ManifestUnknown: Rule(404, "MANIFEST_UNKNOWN"),
    errors.BlobUnknown: Rule(404, "BLOB_UNKNOWN"),
    errors.BlobElsewhere: Rule(503, "UNAVAILABLE", 2, logged=True),
    errors.BlobInUse: Rule(405, "DENIED"),
    errors.UploadUnknown: Rule(404, "BLOB_UPLOAD_UNKNOWN"),
    errors.UploadOutOfOrder: Rule(416, "BLOB_UPLOAD_INVALID"),
    errors.UploadLengthWrong: Rule(400, "SIZE_INVALID"),
    errors.TooManyUploads: Rule(429, "TOOMANYREQUESTS", 5),
    errors.ContentTooLarge: Rule(413, "SIZE_INVALID"),
    errors.ContentWrong: Rule(400, "DIGEST_INVALID"),
    errors.ManifestIncomplete: Rule(400, "MANIFEST_BLOB_UNKNOWN"),
    errors.SizeConflict: Rule(409, "SIZE_INVALID"),
    errors.TagConflict: Rule(412, "DENIED"),
    errors.ConditionFailed: Rule(412, "DENIED"),
    errors.Disabled: Rule(405, "UNSUPPORTED"),
    errors.Undecided: _UNAVAILABLE,
    errors.StateUnconfirmed: _UNCONFIRMED,
    refusals.RouteUnknown: Rule(404, "UNSUPPORTED"),
    refusals.MethodNotAllowed: Rule(405, "UNSUPPORTED"),
    refusals.MalformedRequest: Rule(400, "UNSUPPORTED"),
    refusals.MalformedRange: Rule(400, "BLOB_UPLOAD_INVALID"),
    refusals.LengthMismatch: Rule(400, "SIZE_INVALID"),
    refusals.TooManyParameters: Rule(414, "UNSUPPORTED"),
    refusals.TagImpossible: Rule(404, "MANIFEST_UNKNOWN"),
    refusals.TypeNotAcceptable: Rule(404, "MANIFEST_UNKNOWN"),
    refusals.RangeUnsatisfiable: Rule(416, "SIZE_INVALID"),
    refusals.Overloaded: Rule(503, "UNAVAILABLE", 2),
    StateRefused: _DISK_REFUSED,
    sqlite3.Error: _DISK_REFUSED,
}


def rule_of(error: BaseException) -> Rule:
    """The row for this exception."""
    if isinstance(error, InvalidName) and error.kind in _MALFORMED_NAMES:
        return _MALFORMED_NAMES[error.kind]
    return next((RULES[kind] for kind in type(error).__mro__ if kind in RULES), _UNEXPECTED)


def error_response(request: Request, error: Exception) -> Response:
    """The answer, in the OCI form. What the client cannot have caused is logged here, and nowhere else."""
    rule = rule_of(error)
    if rule.logged:
        log.error("request_failed", exc_info=error, extra={"route": request.route, "repository": request.repository})
    message = rule.message or str(error)
    if isinstance(error, errors.ManifestIncomplete):
        found = [_error(rule, message, {"digest": str(digest)}) for digest in error.missing]
    else:
        found = [_error(rule, message, _detail(request, error, rule))]
    return Response(rule.status, _headers(request, error, rule), msgspec.json.encode({"errors": found}))


def _error(rule: Rule, message: str, detail: dict[str, Any] | None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": rule.code, "message": message}
    return error | {"detail": detail} if detail else error


def _detail(request: Request, error: Exception, rule: Rule) -> dict[str, Any] | None:
    match error:
        case InvalidName():
            return {"kind": error.kind, "text": error.text, "reason": error.reason}
        case refusals.TagImpossible():
            return _detail(request, error.invalid, rule)
        case errors.ManifestUnknown():
            return {"reference": str(error.reference)}
        case sources.TransferError() if error.digest:
            return {"digest": str(error.digest), "reason": str(error), "request_id": request.request_id}
        case errors.BlobUnknown() | errors.BlobElsewhere():
            return {"digest": str(error.digest)}
        case errors.BlobInUse():
            return {"manifests": [str(digest) for digest in error.manifests]}
        case errors.TagConflict() | errors.ConditionFailed():
            return {"current": str(error.current) if error.current else None}
        case errors.ContentWrong() | stores.DigestMismatch():
            return {"expected": str(error.expected), "actual": str(error.actual)}
        case errors.ContentTooLarge():
            return {"limit": error.limit}
        case errors.UploadOutOfOrder():
            return {"offset": error.progress.offset}
        case refusals.TypeNotAcceptable():
            return {"mediaType": error.media_type}
        case _:
            return {"request_id": request.request_id} if rule.status >= 500 else None


def _headers(request: Request, error: Exception, rule: Rule) -> list[Header]:
    headers = [JSON]
    if rule.retry_seconds:
        headers.append((b"retry-after", b"%d" % rule.retry_seconds))
    match error:
        case access.Unauthenticated():
            headers.append((b"www-authenticate", b'Basic realm="meridian", charset="UTF-8"'))
        case errors.UploadOutOfOrder():
            headers += progress_headers(error.progress)
        case errors.TagConflict() | errors.ConditionFailed() if error.current:
            headers.append((b"etag", entity_tag(error.current)))
        case refusals.MethodNotAllowed():
            headers.append((b"allow", ", ".join(request.allowed).encode()))
        case errors.Disabled() | errors.BlobInUse():
            headers.append((b"allow", ", ".join(m for m in request.allowed if m != "DELETE").encode()))
        case refusals.RangeUnsatisfiable():
            headers.append((b"content-range", b"bytes */%d" % error.size_bytes))
    return headers
