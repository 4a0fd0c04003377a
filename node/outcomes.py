"""Commands on their way to the log; an outcome that is not DONE becomes a RegistryError.

This is the only table from outcome to error.
"""

from __future__ import annotations

from consensus.commands import (
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.proposer import Proposer
from node.errors import (
    BlobInUse,
    BlobUnknown,
    ManifestIncomplete,
    ManifestUnknown,
    RegistryError,
    RepositoryUnknown,
    SizeConflict,
    TagConflict,
    Undecided,
)


async def carry_out(proposer: Proposer, command: Command) -> Outcome:
    """Proposes the command; returns its outcome if that is DONE. Raises a RegistryError otherwise, and LogFull or
    LogUnavailable as the proposer does."""
    outcome = await proposer.propose(command)
    if outcome.status is Status.DONE:
        return outcome
    raise refusal(command, outcome)


def refusal(command: Command, outcome: Outcome) -> RegistryError:
    """What to tell the caller about an outcome that is not DONE."""
    match command, outcome.reason:
        case (_, Reason.TAG_MOVED):
            return TagConflict(outcome.digests[0] if outcome.digests else None)
        case (PutManifest(), Reason.BLOB_UNKNOWN):
            return ManifestIncomplete(outcome.digests)
        case (MountBlob() | DeleteBlob(), Reason.BLOB_UNKNOWN):
            return BlobUnknown(command.repository, command.digest)
        case (DeleteTag(), Reason.TAG_UNKNOWN):
            return ManifestUnknown(command.repository, command.tag)
        case (DeleteManifest(), Reason.MANIFEST_UNKNOWN):
            return ManifestUnknown(command.repository, command.digest)
        case (DeleteBlob(), Reason.BLOB_IN_USE):
            return BlobInUse(outcome.digests)
        case (RecordBlobs() | PutManifest(), Reason.SIZE_MISMATCH):
            return SizeConflict("the digest is known with another size")
        case (EnrolProposer() | StageContent(), _):
            return Undecided(f"refused: {outcome.reason}")
        case (_, Reason.REPOSITORY_UNKNOWN):
            return RepositoryUnknown(command.repository)
        case _:
            return Undecided(f"refused: {outcome.reason}")
