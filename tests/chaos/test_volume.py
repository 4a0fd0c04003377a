"""The model of a forgetful disk, rule by rule: a crash test proves nothing on a disk that forgets nothing."""

import errno
import os
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.volume import SECTOR_BYTES, File, Folder, Node, Volume


def _file(volume: Volume, path: str, content: bytes = b"") -> File:
    file = volume.create(path, 0o644)
    file.write(0, content)
    return file


def _read(volume: Volume, path: str) -> bytes | None:
    try:
        node = volume.find(path)
    except FileNotFoundError:
        return None
    assert isinstance(node, File)
    return bytes(node.data)


@pytest.fixture
def volume() -> Volume:
    """/a and /b are durable folders, /a/f a durable file that holds b"old"."""
    made = Volume()
    for folder in ("/a", "/b"):
        made.mkdir(folder, 0o755)
    _file(made, "/a/f", b"old").sync()
    for folder in ("/", "/a"):
        node = made.find(folder)
        assert isinstance(node, Folder)
        made.sync_folder(node)
    return made


def _sync_folder(volume: Volume, path: str) -> None:
    node = volume.find(path)
    assert isinstance(node, Folder)
    volume.sync_folder(node)


def _sync_file(volume: Volume, path: str) -> None:
    node = volume.find(path)
    assert isinstance(node, File)
    node.sync()


def test_synced_data_under_a_synced_name_stays(volume: Volume) -> None:
    volume.crash()
    assert _read(volume, "/a/f") == b"old"


def test_unsynced_overwrite_is_undone(volume: Volume) -> None:
    _file(volume, "/a/f", b"newer")
    volume.crash()
    assert _read(volume, "/a/f") == b"old"


def test_unsynced_append_is_cut(volume: Volume) -> None:
    file = volume.find("/a/f")
    assert isinstance(file, File)
    file.write(3, b"+1")
    file.sync()
    file.write(5, b"+2")
    volume.crash()
    assert _read(volume, "/a/f") == b"old+1"


def test_unsynced_truncation_is_undone(volume: Volume) -> None:
    file = volume.find("/a/f")
    assert isinstance(file, File)
    file.truncate(1)
    file.truncate(4)
    assert _read(volume, "/a/f") == b"o\0\0\0"
    volume.crash()
    assert _read(volume, "/a/f") == b"old"


def test_synced_truncation_stays_with_zeros_behind_it(volume: Volume) -> None:
    file = volume.find("/a/f")
    assert isinstance(file, File)
    file.truncate(1)
    file.write(3, b"!")
    file.sync()
    volume.crash()
    assert _read(volume, "/a/f") == b"o\0\0!"


def test_synced_data_under_an_unsynced_name_are_lost(volume: Volume) -> None:
    _file(volume, "/a/new", b"x").sync()
    volume.crash()
    assert _read(volume, "/a/new") is None


def test_synced_name_of_unsynced_data_is_an_empty_file(volume: Volume) -> None:
    _file(volume, "/a/new", b"x")
    _sync_folder(volume, "/a")
    volume.crash()
    assert _read(volume, "/a/new") == b""


def test_syncing_a_folder_does_not_make_its_own_name_durable(volume: Volume) -> None:
    volume.mkdir("/a/sub", 0o755)
    _file(volume, "/a/sub/x", b"x").sync()
    _sync_folder(volume, "/a/sub")
    volume.crash()
    assert _tree(volume.root) == {"a": {"f": b"old"}, "b": {}}


def test_unsynced_unlink_and_rmdir_are_undone(volume: Volume) -> None:
    volume.unlink("/a/f")
    volume.rmdir("/a")
    volume.crash()
    assert _read(volume, "/a/f") == b"old"


def test_synced_unlink_stays(volume: Volume) -> None:
    volume.unlink("/a/f")
    _sync_folder(volume, "/a")
    volume.crash()
    assert _read(volume, "/a/f") is None


def test_unsynced_rename_reverts_to_the_durable_name(volume: Volume) -> None:
    volume.rename("/a/f", "/b/g")
    volume.crash()
    assert (_read(volume, "/a/f"), _read(volume, "/b/g")) == (b"old", None)


@pytest.mark.parametrize("synced", ["/a", "/b"])
def test_a_rename_is_one_change_whichever_folder_is_synced(volume: Volume, synced: str) -> None:
    volume.rename("/a/f", "/b/g")
    _sync_folder(volume, synced)
    volume.crash()
    assert (_read(volume, "/a/f"), _read(volume, "/b/g")) == (None, b"old")


def test_a_synced_rename_takes_the_creation_it_depends_on_along(volume: Volume) -> None:
    _file(volume, "/a/tmp", b"new").sync()
    volume.rename("/a/tmp", "/b/g")
    _sync_folder(volume, "/b")
    volume.crash()
    assert (_read(volume, "/a/tmp"), _read(volume, "/b/g")) == (None, b"new")


def test_an_unsynced_replacing_rename_leaves_the_old_content(volume: Volume) -> None:
    _file(volume, "/a/tmp", b"new").sync()
    volume.rename("/a/tmp", "/a/f")
    assert _read(volume, "/a/f") == b"new"
    volume.crash()
    assert (_read(volume, "/a/f"), _read(volume, "/a/tmp")) == (b"old", None)


@pytest.mark.parametrize("seed", range(20))
def test_replacing_a_file_that_is_open_stays_atomic(volume: Volume, seed: int) -> None:
    _file(volume, "/a/tmp", b"new").sync()
    volume.unlink("/a/f", is_hiding=True)
    volume.rename("/a/tmp", "/a/f")
    volume.crash(kept=0.5, chance=Random(seed))
    assert _read(volume, "/a/f") in {b"old", b"new"}


def test_after_a_failed_sync_the_data_are_never_durable(volume: Volume) -> None:
    file = volume.find("/a/f")
    assert isinstance(file, File)
    file.write(0, b"NEW")
    file.sync_failed()
    file.sync()
    file.write(3, b"+more")
    file.sync_failed()
    file.write(8, b"!")
    file.sync()
    volume.crash()
    assert _read(volume, "/a/f") == b"old\0\0\0\0\0!"


def test_a_second_name_is_a_change_of_its_own(volume: Volume) -> None:
    volume.link("/a/f", "/b/g")
    volume.crash()
    assert (_read(volume, "/a/f"), _read(volume, "/b/g")) == (b"old", None)


def test_sectors_survive_by_chance() -> None:
    survivors = set()
    for seed in range(30):
        volume = Volume()
        _file(volume, "/f", b"x" * (3 * SECTOR_BYTES))
        _sync_folder(volume, "/")
        volume.crash(kept=0.5, chance=Random(seed))
        content = _read(volume, "/f")
        assert content is not None
        survivors.add(
            tuple(content[at : at + SECTOR_BYTES].strip(b"\0") for at in range(0, len(content), SECTOR_BYTES))
        )
    assert len(survivors) == 8  # every combination of three sectors, holes included


def test_a_cut_can_be_half_made() -> None:
    length, end = 10, 3 * SECTOR_BYTES
    found = set()
    for seed in range(30):
        volume = Volume()
        file = _file(volume, "/f", b"x" * end)
        file.sync()
        _sync_folder(volume, "/")
        file.truncate(length)
        volume.crash(kept=0.5, chance=Random(seed))
        found.add(_read(volume, "/f"))
    hole = b"x" * length + bytes(SECTOR_BYTES - length) + b"x" * (end - SECTOR_BYTES)
    assert found == {b"x" * end, b"x" * length, hole}


@pytest.mark.parametrize(
    ("number", "operation"),
    [
        (errno.ENOENT, lambda volume: volume.find("/a/none")),
        (errno.ENOTDIR, lambda volume: volume.find("/a/f/x")),
        (errno.EEXIST, lambda volume: volume.mkdir("/a", 0o755)),
        (errno.EEXIST, lambda volume: volume.link("/a/f", "/b")),
        (errno.EPERM, lambda volume: volume.link("/a", "/c")),
        (errno.ENOTEMPTY, lambda volume: volume.rmdir("/a")),
        (errno.ENOTDIR, lambda volume: volume.rmdir("/a/f")),
        (errno.EISDIR, lambda volume: volume.unlink("/a")),
        (errno.ENOTEMPTY, lambda volume: volume.rename("/b", "/a")),
    ],
)
def test_refusals_carry_their_errno(volume: Volume, number: int, operation: Callable[[Volume], object]) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        operation(volume)


def _tree(node: Node) -> object:
    if isinstance(node, Folder):
        return {name: _tree(child) for name, child in node.entries.items()}
    assert isinstance(node, File)
    return bytes(node.data)


def _sync_everything(volume: Volume, node: Node) -> None:
    if isinstance(node, File):
        node.sync()
    elif isinstance(node, Folder):
        volume.sync_folder(node)
        for child in node.entries.values():
            _sync_everything(volume, child)


_PATHS = st.sampled_from(["/f", "/g", "/a", "/a/f", "/a/b", "/a/b/f", "/c", "/c/f"])
Step = tuple[Any, ...]
_STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("write"), _PATHS, st.integers(0, 9), st.binary(max_size=6)),
    st.tuples(st.just("truncate"), _PATHS, st.integers(0, 12)),
    st.tuples(st.sampled_from(["create", "mkdir", "unlink", "rmdir"]), _PATHS),
    st.tuples(st.sampled_from(["rename", "link"]), _PATHS, _PATHS),
)


def _step(volume: Volume, step: Step) -> None:
    verb, path, *rest = step
    try:
        if verb in {"write", "truncate"}:
            node = volume.find(path)
            if isinstance(node, File):
                getattr(node, verb)(*rest)
        elif verb in {"create", "mkdir"}:
            getattr(volume, verb)(path, 0o755)
        elif not (verb == "rename" and (rest[0] + "/").startswith(path + "/")):  # the kernel refuses loops itself
            getattr(volume, verb)(path, *rest)
    except OSError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.lists(_STEPS, max_size=25), st.lists(_STEPS, max_size=25))
def test_a_crash_goes_back_to_the_last_time_everything_was_synced(before: list[Step], after: list[Step]) -> None:
    volume = Volume()
    for step in before:
        _step(volume, step)
    _sync_everything(volume, volume.root)
    durable = _tree(volume.root)
    for step in after:
        _step(volume, step)
    volume.crash()
    assert _tree(volume.root) == durable


@settings(max_examples=100, deadline=None)
@given(st.lists(_STEPS, max_size=40))
def test_a_disk_that_keeps_everything_loses_nothing(steps: list[Step]) -> None:
    volume = Volume()
    for step in steps:
        _step(volume, step)
    seen = _tree(volume.root)
    volume.crash(kept=1.0)
    assert _tree(volume.root) == seen
