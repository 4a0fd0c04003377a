from __future__ import annotations

import pytest

from consensus.commands import (
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    ManifestFacts,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.names import Digest, RepositoryName, StoreId, Tag
from node import errors
from node.outcomes import refusal

ONE, TWO = (Digest("sha256", digit * 64) for digit in "12")
APP = RepositoryName("team/app")
PUT = PutManifest(APP, ONE, 0, b"", ManifestFacts("a/b", None, None, (), (), ()), (Tag("v1"),), None, False)
RECORD = RecordBlobs(APP, StoreId("a" * 32), ())


@pytest.mark.parametrize(
    ("command", "reason", "expected"),
    [
        (PUT, Reason.TAG_MOVED, errors.TagConflict),
        (PUT, Reason.BLOB_UNKNOWN, errors.ManifestIncomplete),
        (PUT, Reason.SIZE_MISMATCH, errors.SizeConflict),
        (PUT, Reason.STAGE_INCOMPLETE, errors.Undecided),
        (RECORD, Reason.SIZE_MISMATCH, errors.SizeConflict),
        (MountBlob(APP, ONE, None), Reason.BLOB_UNKNOWN, errors.BlobUnknown),
        (DeleteTag(APP, Tag("v1"), None), Reason.TAG_MOVED, errors.TagConflict),
        (DeleteTag(APP, Tag("v1"), None), Reason.TAG_UNKNOWN, errors.ManifestUnknown),
        (DeleteTag(APP, Tag("v1"), None), Reason.REPOSITORY_UNKNOWN, errors.RepositoryUnknown),
        (DeleteManifest(APP, ONE), Reason.MANIFEST_UNKNOWN, errors.ManifestUnknown),
        (DeleteBlob(APP, ONE), Reason.BLOB_UNKNOWN, errors.BlobUnknown),
        (DeleteBlob(APP, ONE), Reason.BLOB_IN_USE, errors.BlobInUse),
        (DeleteBlob(APP, ONE), Reason.PROPOSER_UNKNOWN, errors.Undecided),
        (StageContent(APP, ONE, 0, 1, b"x"), Reason.MALFORMED, errors.Undecided),
        (EnrolProposer("x"), Reason.MALFORMED, errors.Undecided),
    ],
)
def test_refusals(command: Command, reason: Reason, expected: type[errors.RegistryError]) -> None:
    error = refusal(command, Outcome(Status.REFUSED, 7, reason=reason, digests=(TWO,)))
    assert type(error) is expected
    match error:
        case errors.TagConflict():
            assert error.current == TWO
        case errors.ManifestIncomplete():
            assert error.missing == (TWO,)
        case errors.BlobInUse():
            assert error.manifests == (TWO,)


def test_a_tag_that_does_not_exist_has_no_digest() -> None:
    error = refusal(PUT, Outcome(Status.CONFLICT, 7, reason=Reason.TAG_MOVED))
    assert isinstance(error, errors.TagConflict)
    assert error.current is None
