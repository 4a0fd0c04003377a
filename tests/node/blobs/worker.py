"""A process of its own with a store: `python -m tests.node.blobs.worker TASK DATA` from the project's folder."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from consensus.names import Digest
from replication.stores import StoreFull
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.suite import MIB, digest_of, noise, pull

LIMIT_BYTES = 3 * MIB
UPLOAD_BYTES = 256 * MIB


async def hold(files: FileStores) -> None:
    """Suspends an upload of `noise(2 MiB)`, resumes it, writes more, says its id, and waits to be killed."""
    uploads = files.uploads()
    upload = await uploads.begin()
    await upload.write(noise(2 * MIB))
    await upload.suspend()
    upload = await uploads.resume(upload.upload_id)
    await upload.write(b"x" * MIB)
    print(upload.upload_id, flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def limit(files: FileStores) -> None:
    """No file may grow over LIMIT_BYTES: more is refused as a full disk, less goes on as before."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    uploads, content = files.uploads(), noise(2 * MIB)
    upload = await uploads.begin()
    await upload.write(content)
    await upload.write(noise(4 * MIB))
    try:
        await upload.commit(digest_of(b"never"))
        raise AssertionError("a file grew beyond its limit")
    except StoreFull:
        assert upload.offset == len(content), upload.offset
    upload = await uploads.resume(upload.upload_id)
    assert upload.offset == len(content), upload.offset
    await upload.commit(digest_of(content))
    assert await pull(files.store(), digest_of(content)) == content


async def memory(files: FileStores) -> None:
    """Prints by how many bytes the most memory ever used rose during an upload of UPLOAD_BYTES and its reading back."""
    store, uploads = files.store(), files.uploads()
    expected, piece = hashlib.sha256(), 200_000
    count = UPLOAD_BYTES // piece
    before = peak_bytes()
    upload = await uploads.begin()
    for number in range(count):
        chunk = number.to_bytes(8, "big") * (piece // 8)
        expected.update(chunk)
        await upload.write(chunk)
    digest = Digest("sha256", expected.hexdigest())
    size = (await upload.commit(digest)).size_bytes
    reader = await store.open(digest)
    for offset in range(0, size, MIB):
        await reader.read(offset, MIB)
    reader.close()
    print(peak_bytes() - before)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


TASKS: dict[str, Callable[[FileStores], Awaitable[None]]] = {"hold": hold, "limit": limit, "memory": memory}


async def main(task: str, data: Path) -> None:
    with FileStores(data) as files:
        await TASKS[task](files)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
