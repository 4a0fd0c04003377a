"""Opening, refusing, committing and surviving: what the state promises beside what commands do (see the scenarios)."""

import hashlib
import os
import re
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consensus import answers, generation, staging
from consensus.codec import encode
from consensus.commands import (
    BlobFact,
    Command,
    DeleteTag,
    EnrolProposer,
    Envelope,
    ManifestFacts,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.errors import StateRefused
from consensus.log import Entry
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.state import State
from consensus.views import Views

REPOSITORY = RepositoryName("team/app")
STORE = StoreId("0" * 32)
OPAQUE = ManifestFacts("application/x", None, None, (), (), ())


def digest_of(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


def entry(index: int, command: Command, *, proposer: int = 1, sequence: int = 0, acknowledged: int = 0) -> Entry:
    """An entry whose sequence is its index, unless said otherwise."""
    return Entry(index, encode(Envelope(proposer, sequence or index, acknowledged, 1000, command)))


def enrol(index: int) -> Entry:
    return Entry(index, encode(Envelope(0, 0, 0, 1000, EnrolProposer("test"))))


def record(index: int, *contents: bytes, acknowledged: int = 0) -> Entry:
    blobs = tuple(BlobFact(digest_of(content), len(content)) for content in contents)
    return entry(index, RecordBlobs(REPOSITORY, STORE, blobs), acknowledged=acknowledged)


def put(index: int, content: bytes, *tags: str) -> Entry:
    names = tuple(map(Tag, tags))
    return entry(
        index, PutManifest(REPOSITORY, digest_of(content), len(content), content, OPAQUE, names, None, sparse=False)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(folder: Path) -> Iterator[State]:
    opened = State.open(folder, "cluster")
    yield opened
    opened.close()


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    path = generation.current(folder)
    assert path is not None
    connection = sqlite3.connect(path)
    try:
        found = connection.execute(query).fetchall()
        connection.commit()
        return found
    finally:
        connection.close()


# Opening


def test_a_new_state_is_empty_and_in_force(folder: Path, state: State) -> None:
    assert state.applied == 0
    assert (folder / "CURRENT").read_text() == "db-1.sqlite\n"
    assert rows(folder, "PRAGMA journal_mode") == [("wal",)]
    assert state.apply([]) == []


def test_reopening_continues_where_it_was(folder: Path, state: State) -> None:
    state.apply([enrol(1), record(2, b"a")])
    before = state.hash()
    state.close()
    state.close()
    again = State.open(folder, "cluster")
    assert (again.applied, again.hash()) == (2, before)
    again.close()


def test_another_clusters_state_is_refused(folder: Path, state: State) -> None:
    state.close()
    with pytest.raises(StateRefused, match="belongs to cluster cluster, this node to other"):
        State.open(folder, "other")


@pytest.mark.parametrize("version", [0, 1, 99])
def test_a_schema_of_another_version_is_refused(folder: Path, state: State, version: int) -> None:
    state.close()
    rows(folder, f"UPDATE meta SET schema_version = {version}")
    for open_it in (lambda: State.open(folder, "cluster"), lambda: Views(folder)):
        with pytest.raises(StateRefused, match=f"schema {version}.* start the Meridian that wrote it"):
            open_it()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\x00" + bytes(4080), b"\x00" * 8192])
def test_a_file_that_is_no_state_is_refused(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "CURRENT").write_text("db-3.sqlite\n")
    (folder / "db-3.sqlite").write_bytes(content)
    for open_it in (lambda: State.open(folder, "cluster"), lambda: Views(folder)):
        with pytest.raises(StateRefused, match=r"db-3\.sqlite is damaged, or not a state database.*rebuilt"):
            open_it()


def test_a_state_that_was_cut_off_is_refused_with_advice(folder: Path, state: State) -> None:
    state.checkpoint()
    state.close()
    os.truncate(folder / "db-1.sqlite", 4096)
    for open_it in (lambda: State.open(folder, "cluster"), lambda: Views(folder)):
        with pytest.raises(StateRefused, match=r"db-1\.sqlite is damaged.*malformed.*away to have it rebuilt"):
            open_it()


@pytest.mark.parametrize("content", [b"", b"db-2.sqlite\n", b"../../etc/passwd", b"\xff\xfe", b"db-01.sqlite"])
def test_a_useless_current_is_refused_with_advice(folder: Path, state: State, content: bytes) -> None:
    state.close()
    (folder / "CURRENT").write_bytes(content)
    with pytest.raises(StateRefused, match=r"put the name of the newest database"):
        State.open(folder, "cluster")


def test_a_state_that_lost_its_current_is_refused_not_replaced(folder: Path, state: State) -> None:
    state.apply([enrol(1)])
    state.close()
    (folder / "CURRENT").unlink()
    with pytest.raises(StateRefused, match=r"db-1\.sqlite is here, but no CURRENT"):
        State.open(folder, "cluster")
    with pytest.raises(StateRefused, match="no state"):
        Views(folder)
    (folder / "CURRENT").write_text("db-1.sqlite\n")
    again = State.open(folder, "cluster")
    assert again.applied == 1
    again.close()


def test_making_a_state_can_be_repeated_after_a_crash_at_any_point(tmp_path: Path) -> None:
    made = tmp_path / "made"
    generation.create(made, "cluster")
    database = (made / "db-1.sqlite").read_bytes()
    left_behind: list[dict[str, bytes]] = [
        {},
        {"new.sqlite": b""},
        {"new.sqlite": database[:4096], "new.sqlite-journal": b"\x00" * 512},
        {"new.sqlite": database},
        {"db-1.sqlite": database},
        {"db-1.sqlite": database, "CURRENT.new": b"db"},
    ]
    for number, files in enumerate(left_behind):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        state = State.open(folder, "cluster")
        assert state.apply([enrol(1)])[0].status is Status.DONE
        state.close()


# Applying


def test_entries_must_rise(state: State) -> None:
    state.apply([enrol(5)])
    for entries in ([enrol(5)], [enrol(4)], [enrol(7), enrol(7)], [enrol(8), enrol(6)]):
        with pytest.raises(ValueError, match="does not follow"):
            state.apply(entries)
    assert state.applied == 5
    assert state.apply([enrol(9)])[0].index == 9


def test_a_batch_is_all_or_nothing(folder: Path, state: State) -> None:
    state.apply([enrol(1)])
    before = state.hash()
    with pytest.raises(ValueError, match="does not follow"):
        state.apply([record(2, b"a"), put(3, b"m", "t"), enrol(3)])
    assert (state.applied, state.hash()) == (1, before)
    views = Views(folder)
    assert views.applied() == 1
    views.close()


@contextmanager
def no_room_beyond(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond the size: the disk is full, as far as SQLite can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_raises_and_leaves_the_state_as_it_was(folder: Path, state: State) -> None:
    state.apply([enrol(1), record(2, b"a")])
    before = state.hash()
    staged = [StageContent(REPOSITORY, digest_of(b""), part, 64, bytes(90_000)) for part in range(30)]
    entries = [entry(index, command) for index, command in enumerate(staged, 3)]
    wal = folder / "db-1.sqlite-wal"
    with no_room_beyond(wal.stat().st_size + 100_000), pytest.raises(sqlite3.OperationalError):
        state.apply(entries)
    assert (state.applied, state.hash()) == (2, before)
    state.close()
    again = State.open(folder, "cluster")
    assert (again.applied, again.hash()) == (2, before)
    again.apply(entries)
    assert again.applied == 32
    again.close()


def test_what_a_killed_writer_committed_is_there(folder: Path, state: State, tmp_path: Path) -> None:
    state.apply([enrol(1), record(2, b"a")])
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # what the files hold while the writer lives is what a kill -9 leaves
    again = State.open(copy, "cluster")
    assert (again.applied, again.hash()) == (2, state.hash())
    again.close()


# Checkpoints


def test_a_checkpoint_puts_everything_into_the_database(folder: Path, state: State, tmp_path: Path) -> None:
    assert state.checkpoint() == 0
    state.apply([enrol(1), record(2, b"a"), put(3, b"m", "t")])
    assert state.checkpoint() == 3
    assert (folder / "db-1.sqlite-wal").stat().st_size == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("CURRENT", "db-1.sqlite"):
        shutil.copy(folder / name, alone / name)
    views = Views(alone)
    assert views.hash() == (3, state.hash())
    views.close()


def test_a_reader_in_the_middle_of_a_snapshot_does_not_hold_up_a_checkpoint(folder: Path, state: State) -> None:
    state.apply([enrol(1)])
    path = generation.current(folder)
    assert path is not None
    reader = generation.open_reader(path)
    reader.execute("BEGIN")
    assert generation.read_meta(reader).applied == 1
    state.apply([record(2, b"a")])
    assert state.checkpoint() == 2
    assert generation.read_meta(reader).applied == 1
    reader.execute("COMMIT")
    assert generation.read_meta(reader).applied == 2
    state.apply([record(3, b"b")])
    assert state.checkpoint() == 3
    reader.close()


# Bounds


def count(folder: Path, table: str) -> object:
    return rows(folder, f"SELECT count(*) FROM {table}")[0][0]


def test_staged_bytes_are_bounded_and_the_oldest_go_first(folder: Path, state: State) -> None:
    size = 96 * 1024
    fit = staging.MAX_STAGED_BYTES // size
    digests = [digest_of(b"%d" % number) for number in range(fit + 3)]
    staged = [StageContent(REPOSITORY, digest, 0, 2, bytes(size)) for digest in digests]
    state.apply([enrol(1), *(entry(index, command, acknowledged=index - 1) for index, command in enumerate(staged, 2))])
    assert rows(folder, "SELECT min(entry), count(*) FROM staged") == [(5, fit)]


def test_the_number_of_staged_parts_is_bounded(folder: Path, state: State) -> None:
    parts = [(digest_of(b"%d" % (number // 64)), number % 64) for number in range(staging.MAX_STAGED_PARTS + 5)]
    staged = [StageContent(REPOSITORY, digest, part, 64, b"x") for digest, part in parts]
    state.apply([enrol(1), *(entry(index, command, acknowledged=index - 1) for index, command in enumerate(staged, 2))])
    assert rows(folder, "SELECT min(entry), count(*) FROM staged") == [(7, staging.MAX_STAGED_PARTS)]


def test_proposers_are_bounded_and_the_least_recently_used_go_first(folder: Path, state: State) -> None:
    state.apply([enrol(index) for index in range(1, answers.MAX_PROPOSERS + 1)])
    # Log time rises, so that the first proposer is now the most recently used; the second and third are the oldest.
    used = Envelope(1, 1, 0, 2000, DeleteTag(REPOSITORY, Tag("t"), None))
    index = state.applied + 1
    state.apply([Entry(index, encode(used)), enrol(index + 1), enrol(index + 2)])
    assert count(folder, "proposers") == answers.MAX_PROPOSERS
    assert rows(folder, "SELECT min(id) FROM proposers WHERE id > 1") == [(4,)]
    delete = DeleteTag(REPOSITORY, Tag("t"), None)
    (known, forgotten) = state.apply([entry(index + 3, delete, proposer=1), entry(index + 4, delete, proposer=2)])
    assert (known.reason, forgotten.reason) == (Reason.REPOSITORY_UNKNOWN, Reason.PROPOSER_UNKNOWN)


def test_outcomes_go_with_the_watermark(folder: Path, state: State) -> None:
    state.apply([enrol(1), *(record(index, b"a") for index in range(2, 100))])
    assert count(folder, "outcomes") == 98
    state.apply([record(100, b"a", acknowledged=99)])
    assert count(folder, "outcomes") == 1


def test_lists_in_outcomes_are_bounded(state: State) -> None:
    blobs = tuple(digest_of(b"%d" % number) for number in range(1000))
    facts = ManifestFacts("application/x", None, None, blobs, (), ())
    missing = PutManifest(REPOSITORY, digest_of(b"m"), 1, b"m", facts, (), None, sparse=False)
    (_, outcome) = state.apply([enrol(1), entry(2, missing)])
    assert outcome == Outcome(Status.NOT_FOUND, 2, 0, Reason.BLOB_UNKNOWN, blobs[:100])


def test_a_thousand_blobs_and_children_are_found_in_any_number_of_chunks(state: State) -> None:
    contents = [b"%d" % number for number in range(250)]
    digests = tuple(map(digest_of, contents))
    facts = ManifestFacts("application/x", None, None, digests, digests, ())
    manifests = [put(index, content) for index, content in enumerate(contents, 3)]
    whole = PutManifest(REPOSITORY, digest_of(b"m"), 1, b"m", facts, (), None, sparse=False)
    outcomes = state.apply([enrol(1), record(2, *contents), *manifests, entry(300, whole)])
    assert {outcome.status for outcome in outcomes} == {Status.DONE}


def test_one_command_cannot_give_a_blob_two_sizes(state: State) -> None:
    digest = digest_of(b"a")
    twice = RecordBlobs(REPOSITORY, STORE, (BlobFact(digest, 1), BlobFact(digest, 2)))
    (_, outcome) = state.apply([enrol(1), entry(2, twice)])
    assert (outcome.status, outcome.reason, outcome.digests) == (Status.REFUSED, Reason.SIZE_MISMATCH, (digest,))


def test_sha512_content_is_verified_like_any_other(state: State) -> None:
    digest = Digest("sha512", hashlib.sha512(b"m").hexdigest())
    right = PutManifest(REPOSITORY, digest, 1, b"m", OPAQUE, (), None, sparse=False)
    wrong = PutManifest(REPOSITORY, digest, 1, b"x", OPAQUE, (), None, sparse=False)
    (_, refused, done) = state.apply([enrol(1), entry(2, wrong), entry(3, right)])
    assert (refused.reason, done.status) == (Reason.SIZE_MISMATCH, Status.DONE)


# The hash


def test_the_hash_sees_every_column_of_every_table(folder: Path, state: State) -> None:
    """Whatever row is altered by hand, the hash differs: no table or column was forgotten. A content's bytes, which
    its digest stands for, are the exception."""
    subject = ManifestFacts(
        "application/x", "application/y", digest_of(b"s"), (digest_of(b"a"),), (digest_of(b"m"),), ()
    )
    referrer = PutManifest(REPOSITORY, digest_of(b"r"), 1, b"r", subject, (), None, sparse=False)
    stage = StageContent(REPOSITORY, digest_of(b"x"), 0, 2, b"x")
    state.apply([enrol(1), record(2, b"a"), put(3, b"m", "t"), entry(4, referrer), entry(5, stage)])
    state.checkpoint()
    expected = state.hash()
    for table, column, kind in list(columns(folder)):
        if (table, column) in (("contents", "bytes"), ("meta", "one"), ("meta", "schema_version")):
            continue
        copy = folder.parent / f"{table}-{column}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
        other = {
            "INTEGER": "1000 + coalesce({0}, 0)",
            "TEXT": "coalesce({0}, '') || 'x'",
            "BLOB": "CAST(x'00' || {0} AS BLOB)",
        }[kind]
        rows(copy, f"UPDATE {table} SET {column} = {other.format(column)}")
        views = Views(copy)
        assert views.hash()[1] != expected, f"{table}.{column} is not in the hash"
        views.close()


def columns(folder: Path) -> Iterator[tuple[str, str, str]]:
    for (table,) in rows(folder, "SELECT name FROM sqlite_schema WHERE type = 'table'"):
        assert count(folder, str(table)), f"{table} is empty: this test would see nothing"
        for _, column, kind, *_ in rows(folder, f"PRAGMA table_info({table})"):
            yield str(table), str(column), str(kind)


def test_every_table_is_strict(folder: Path, state: State) -> None:
    assert state.applied == 0
    for name, text in rows(folder, "SELECT name, sql FROM sqlite_schema WHERE type = 'table'"):
        assert re.search(r"\) STRICT(, WITHOUT ROWID)?$", str(text)), name
