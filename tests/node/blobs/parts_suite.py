"""What a blob store with its uploads says of the parts of blobs: to be subclassed beside `StoreSuite`."""

from __future__ import annotations

import pytest

from consensus.commands import BlobFact
from consensus.parts import PartsHash
from tests.node.blobs.suite import MIB, Stores, digest_of, noise


def fact_of(content: bytes) -> BlobFact:
    parts = PartsHash()
    parts.update(content)
    return BlobFact(digest_of(content), len(content), parts.digests(len(content)))


class PartsSuite:
    """The promises of `Upload.commit`."""

    @pytest.mark.parametrize("offsets", [(), (5,), (16384, 3 * MIB), (4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 8 * MIB)])
    async def test_the_parts_are_the_same_wherever_an_upload_was_interrupted(
        self, stores: Stores, offsets: tuple[int, ...]
    ) -> None:
        content = noise(8 * MIB + 77)
        upload = await stores.uploads.begin()
        for offset in (*offsets, len(content)):
            await upload.write(content[upload.offset : offset])
            await upload.suspend()
            upload = await stores.elsewhere.resume(upload.upload_id)
        assert await upload.commit(digest_of(content)) == fact_of(content)
        again = await stores.uploads.resume(upload.upload_id)
        assert await again.commit(digest_of(content)) == fact_of(content)
