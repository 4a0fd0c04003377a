"""The lossy file system as programs see it: through the kernel, with real calls and a real SQLite."""

import errno
import fcntl
import mmap
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chaos.faults import Fault
from chaos.mount import LossyMount, fuse_missing
from consensus.clock import monotonic
from consensus.disk import sync_data, sync_folder

pytestmark = pytest.mark.skipif(bool(fuse_missing()), reason=f"FUSE: {fuse_missing()}")


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyMount]:
    with LossyMount(tmp_path_factory.mktemp("lossy")) as mounted:
        yield mounted


@pytest.fixture
def folder(mount: LossyMount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A durable, empty folder of this test's own."""
    made = mount.folder / request.node.name.replace("[", "-").replace("]", "")
    made.mkdir()
    sync_folder(mount.folder)
    yield made
    mount.fail([])


def _write(path: Path, content: bytes, *, sync: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            sync_data(file.fileno())


def test_data_and_name_are_synced_apart(mount: LossyMount, folder: Path) -> None:
    _write(folder / "both", b"kept", sync=True)
    _write(folder / "name", b"lost", sync=False)
    sync_folder(folder)
    _write(folder / "data", b"lost", sync=True)
    mount.crash()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"both": b"kept", "name": b""}


def test_what_the_page_cache_held_is_gone(mount: LossyMount, folder: Path) -> None:
    path = folder / "f"
    _write(path, b"a" * 100_000, sync=True)
    sync_folder(folder)
    with path.open("r+b") as file:
        file.write(b"b" * 50_000)
    assert path.read_bytes()[:1] == b"b"
    mount.crash()
    assert path.read_bytes() == b"a" * 100_000


def test_rename_needs_its_folder_synced(mount: LossyMount, folder: Path) -> None:
    for name in ("one", "two"):
        _write(folder / name, name.encode(), sync=True)
    sync_folder(folder)
    (folder / "one").rename(folder / "one-moved")
    sync_folder(folder)
    (folder / "two").rename(folder / "two-moved")
    mount.crash()
    assert {path.name for path in folder.iterdir()} == {"one-moved", "two"}


def test_an_open_file_survives_its_name(folder: Path) -> None:
    path = folder / "f"
    _write(path, b"old", sync=True)
    with path.open("rb") as held:
        _write(folder / "new", b"newer", sync=True)
        (folder / "new").replace(path)
        assert held.read() == b"old"
        assert path.read_bytes() == b"newer"
        assert [entry.name for entry in folder.iterdir()] == ["f"]
        path.unlink()
        assert os.fstat(held.fileno()).st_size == 3
    folder.rmdir()


def test_locks_exclude_other_openers(folder: Path) -> None:
    with (folder / "lock").open("wb") as first, (folder / "lock").open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_shared_memory_maps_are_one(mount: LossyMount, folder: Path) -> None:
    path = folder / "shared"
    _write(path, bytes(4096), sync=True)
    sync_folder(folder)
    with (
        path.open("r+b") as one,
        path.open("r+b") as two,
        mmap.mmap(one.fileno(), 4096) as writer,
        mmap.mmap(two.fileno(), 4096) as reader,
    ):
        writer[:5] = b"hello"
        assert reader[:5] == b"hello"
        writer.flush()
    mount.crash()
    assert path.read_bytes()[:5] == b"hello"  # msync(MS_SYNC) is a sync


_INSERT_AND_DIE = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA synchronous=NORMAL")
database.executemany("INSERT INTO kept VALUES (?)", [(value,) for value in range(1000)])
database.commit()
assert database.execute("SELECT count(*) FROM kept").fetchone() == (2000,)
os._exit(0)
"""


def test_sqlite_keeps_what_it_checkpointed_and_stays_whole(mount: LossyMount, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE kept (value INTEGER)")
        database.executemany("INSERT INTO kept VALUES (?)", [(value,) for value in range(1000)])
        database.commit()
    sync_folder(folder)
    subprocess.run([sys.executable, "-c", _INSERT_AND_DIE, str(folder / "db")], check=True)
    mount.crash()
    with closing(sqlite3.connect(folder / "db")) as database:
        assert database.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("operation", ["write", "fsync", "create", "fsyncdir", "rename"])
def test_faults_strike_where_they_are_told(mount: LossyMount, folder: Path, operation: str, error: str) -> None:
    mount.fail([Fault(operation, error, match=folder.name)])
    with pytest.raises(OSError, match=re.escape(os.strerror(getattr(errno, error)))):
        _whole_write(folder)
    mount.fail([])
    _whole_write(folder)
    assert (folder / "f").read_bytes() == b"content"


def _whole_write(folder: Path) -> None:
    descriptor = os.open(folder / "tmp", os.O_CREAT | os.O_WRONLY)
    try:
        rest = b"content"
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        sync_data(descriptor)
    finally:
        os.close(descriptor)
    (folder / "tmp").rename(folder / "f")
    sync_folder(folder)


def test_a_failed_sync_shows_once_the_cache_is_dropped(mount: LossyMount, folder: Path) -> None:
    path = folder / "f"
    _write(path, b"old", sync=True)
    assert path.read_bytes() == b"old"  # and is cached now
    mount.fail([Fault("fsync", "EIO", match=folder.name, times=1)])
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")
        with pytest.raises(OSError, match="Input/output error"):
            sync_data(file.fileno())
        sync_data(file.fileno())
        assert path.read_bytes() == b"new"
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert path.read_bytes() == b"old"


def test_a_disk_that_runs_full_takes_what_still_fits(mount: LossyMount, folder: Path) -> None:
    mount.fail([Fault("write", "ENOSPC", match=folder.name)])
    with (folder / "f").open("wb", buffering=0) as file:
        assert file.write(b"1234") == 2
        mount.fail([])  # whether it is still full or not: what was cut short is told at the next write
        with pytest.raises(OSError, match="No space left"):
            file.write(b"3")
    assert (folder / "f").read_bytes() == b"12"


def test_power_goes_after_so_many_changes(mount: LossyMount, folder: Path) -> None:
    before = mount.cut_power(5)  # create, write, fsync, rename: the fifth is the sync of the folder
    _whole_write(folder)
    assert mount.cut_power(0) - before == 5
    with pytest.raises(OSError, match="Input/output error"):
        (folder / "more").mkdir()
    assert (folder / "f").read_bytes() == b"content"
    mount.crash()
    assert (folder / "f").read_bytes() == b"content"
    (folder / "more").mkdir()


def test_the_kernel_may_write_back_unasked(mount: LossyMount, folder: Path) -> None:
    mount.write_back(1.0)
    _write(folder / "f", b"unasked", sync=False)
    mount.write_back(0.0)
    mount.crash()
    assert (folder / "f").read_bytes() == b"unasked"


def test_slow_syncs_take_their_time(mount: LossyMount, folder: Path) -> None:
    mount.fail([Fault("fsync", delay_seconds=0.3, match=folder.name)])
    started = monotonic()
    _write(folder / "f", b"x", sync=True)
    assert monotonic() - started >= 0.3


def test_free_space_is_what_it_is_told(mount: LossyMount) -> None:
    mount.report_free(10 * 4096)
    assert os.statvfs(mount.folder).f_bavail == 10
    mount.report_free(1 << 40)


def test_unknown_faults_are_refused() -> None:
    for operation, error in (("sneeze", "EIO"), ("write", "EWHATEVER")):
        with pytest.raises(ValueError, match="no such fault"):
            Fault(operation, error)
