"""Small valid commands for tests that care about the way of a command, not about what it does."""

import hashlib

from consensus.commands import BlobFact, MountBlob, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId

REPOSITORY = RepositoryName.parse("team/app")
STORE = StoreId("0" * 32)


def digest_of(number: int) -> Digest:
    return Digest("sha256", hashlib.sha256(b"%d" % number).hexdigest())


def record(number: int, repository: RepositoryName = REPOSITORY) -> RecordBlobs:
    """Blob `number` becomes known; `created` only the first time."""
    return RecordBlobs(repository, STORE, (BlobFact(digest_of(number), 10 + number),))


def mount(number: int) -> MountBlob:
    """NOT_FOUND unless blob `number` is known."""
    return MountBlob(REPOSITORY, digest_of(number), None)
