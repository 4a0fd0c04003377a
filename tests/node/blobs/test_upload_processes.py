"""Uploads between processes, and in processes with limits."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replication.stores import UploadBusy
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.suite import MIB, digest_of, noise, pull

ROOT = Path(__file__).parents[3]
MEMORY_BYTES = 12 * MIB  # two batches, one read, and what the allocator keeps


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileStores]:
    with FileStores(tmp_path) as files:
        yield files


def command(task: str, data: Path) -> list[str]:
    return [sys.executable, "-m", "tests.node.blobs.worker", task, str(data)]


def run(task: str, data: Path) -> str:
    return subprocess.run(command(task, data), cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


@contextmanager
def holding(data: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds an upload, and the upload's id."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command("hold", data), cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def test_an_upload_is_held_against_other_processes_until_its_own_dies(files: FileStores) -> None:
    with holding(files.data) as (process, upload_id):
        uploads = files.uploads()
        with pytest.raises(UploadBusy):
            await uploads.resume(upload_id)
        assert await uploads.reap(-3600.0) == 0
        process.kill()
        process.wait()
        upload = await uploads.resume(upload_id)
        assert upload.offset == 2 * MIB  # what was written after the last suspend was never acknowledged
        assert (await upload.commit(digest_of(noise(2 * MIB)))).size_bytes == 2 * MIB
        assert await pull(files.store(), digest_of(noise(2 * MIB))) == noise(2 * MIB)


def test_a_limit_on_the_size_of_files_is_a_full_store(tmp_path: Path) -> None:
    run("limit", tmp_path)


def test_memory_stays_flat_however_large_the_upload(tmp_path: Path) -> None:
    assert int(run("memory", tmp_path)) < MEMORY_BYTES
