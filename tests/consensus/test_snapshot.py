"""A snapshot is the state of one index, whatever is applied while it is taken, and is believed only after a check."""

import dataclasses
import hashlib
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import generation, snapshot
from consensus.errors import SnapshotDamaged, SnapshotRefused
from consensus.fingerprint import fingerprint
from consensus.log import Entry
from consensus.snapshot import CHUNK_BYTES, Manifest
from consensus.state import State
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER
from tests.consensus.test_state_properties import logs


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with closing(State.open(tmp_path / "state", CLUSTER)) as opened:
        yield opened


def hash_of(path: Path) -> tuple[int, str]:
    with closing(generation.open_whole(path)) as connection:
        return generation.read_meta(connection).applied, fingerprint(connection)


# Taking


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_made_while_thousands_of_commands_are_applied_is_the_state_of_its_last_step(
    tmp_path: Path, state: State, seed: int
) -> None:
    chance = random.Random(seed)
    states_made.advance(state, 3000)
    copying = state.copy_to(tmp_path / "copy", step_seconds=0.0)
    steps = 0
    while copying.step():
        steps += 1
        states_made.advance(state, state.applied + chance.randint(1, 40))
        if chance.random() < 0.1:
            state.checkpoint()
    applied = state.applied
    states_made.advance(state, applied + 100)
    assert steps > 50
    assert applied > 4000
    assert hash_of(tmp_path / "copy") == (applied, states_made.hash_at(applied))


def test_a_batch_that_is_rolled_back_half_way_leaves_no_trace_in_the_copy(tmp_path: Path, state: State) -> None:
    states_made.advance(state, 3000)
    copying = state.copy_to(tmp_path / "copy", step_seconds=0.0)
    for _ in range(20):
        assert copying.step()
    # Large enough that SQLite writes a part of it into its log before it is rolled back.
    state._connection.execute("PRAGMA cache_size = -100")
    with pytest.raises(ValueError, match="does not follow"):
        state.apply([*states_made.entries(3000, 3900), Entry(7, b"")])
    state._connection.execute(f"PRAGMA cache_size = -{64 * 1024}")
    while copying.step():
        pass
    assert hash_of(tmp_path / "copy") == (3000, states_made.hash_at(3000))


@settings(max_examples=20, deadline=None)
@given(logs(), st.data())
def test_any_log_cut_anywhere_by_the_steps_of_a_copy(log: list[Entry], data: st.DataObject) -> None:
    start = data.draw(st.integers(1, len(log)))
    with tempfile.TemporaryDirectory() as folder, closing(State.open(Path(folder) / "state", "cluster")) as state:
        state.apply(log[:start])
        copying = state.copy_to(Path(folder) / "copy", step_seconds=0.0)
        while copying.step():
            after = state.applied
            state.apply(log[after : after + data.draw(st.integers(0, 3))])
        copied = hash_of(Path(folder) / "copy")
        assert copied == (state.applied, state.hash())
        state.apply(log[state.applied :])
        assert hash_of(Path(folder) / "copy") == copied


# Manifests


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    return states_made.snapshot_at(tmp_path_factory.mktemp("snapshot"), 2000)


def test_a_manifest_says_what_is_in_the_file(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    assert (manifest.cluster_id, manifest.applied, manifest.term) == (CLUSTER, 2000, 7)
    assert manifest.schema_version == generation.SCHEMA_VERSION
    content = path.read_bytes()
    assert manifest.size_bytes == len(content) > 2 * CHUNK_BYTES
    for offset in range(0, len(content), CHUNK_BYTES):
        manifest.verify_chunk(offset, content[offset : offset + CHUNK_BYTES])
    assert Manifest.decode(manifest.encode(), manifest.name) == manifest
    assert snapshot.is_name(manifest.name)
    assert snapshot.verify(path, manifest, CLUSTER).manifest is manifest


def test_a_chunk_is_believed_only_whole_unchanged_and_in_its_place(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    content = path.read_bytes()
    first, second = content[:CHUNK_BYTES], content[CHUNK_BYTES : 2 * CHUNK_BYTES]
    for offset, chunk in (
        (0, second),
        (CHUNK_BYTES, first),
        (0, first[:-1]),
        (0, first + b"x"),
        (0, b""),
        (1, content[1 : CHUNK_BYTES + 1]),
        (0, bytes([first[0] ^ 1]) + first[1:]),
        (manifest.size_bytes, b""),
        (100 * CHUNK_BYTES, first),
    ):
        with pytest.raises(SnapshotDamaged):
            manifest.verify_chunk(offset, chunk)


ANYTHING = st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | st.none()


@given(st.binary(max_size=200) | st.lists(ANYTHING, max_size=9).map(msgpack.packb))
def test_garbage_is_no_manifest(data: bytes) -> None:
    with pytest.raises(SnapshotDamaged):
        Manifest.decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 0},
        {"size_bytes": 2**50},
        {"applied": -1},
        {"term": 2**63},
        {"chunks": b""},
        {"chunks": b"short"},
        {"cluster_id": "c" * 1000},
    ],
    ids=str,
)
def test_a_manifest_out_of_bounds_is_refused(made: tuple[Path, Manifest], change: dict[str, object]) -> None:
    changed = Manifest(**dataclasses.asdict(made[1]) | change)
    with pytest.raises(SnapshotDamaged):
        Manifest.decode(changed.encode())


def test_a_manifest_is_that_of_its_name_only(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    other = dataclasses.replace(manifest, term=8)
    assert other.name != manifest.name
    with pytest.raises(SnapshotDamaged, match="not the manifest of snapshot"):
        Manifest.decode(other.encode(), manifest.name)


# Verifying


def test_another_clusters_or_schemas_snapshot_is_refused(made: tuple[Path, Manifest]) -> None:
    path, manifest = made
    with pytest.raises(SnapshotRefused, match="of cluster"):
        snapshot.verify(path, manifest, "other")
    with pytest.raises(SnapshotRefused, match="schema 99"):
        snapshot.verify(path, dataclasses.replace(manifest, schema_version=99), CLUSTER)


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_changed_byte_is_found(tmp_path: Path, made: tuple[Path, Manifest], place: int) -> None:
    content = bytearray(made[0].read_bytes())
    content[place] ^= 1
    (tmp_path / "copy").write_bytes(content)
    with pytest.raises(SnapshotDamaged, match="not what its manifest says"):
        snapshot.verify(tmp_path / "copy", made[1], CLUSTER)


def test_a_file_that_ends_early_is_found(tmp_path: Path, made: tuple[Path, Manifest]) -> None:
    (tmp_path / "copy").write_bytes(made[0].read_bytes()[:CHUNK_BYTES])
    with pytest.raises(SnapshotDamaged, match="does not hold all"):
        snapshot.verify(tmp_path / "copy", made[1], CLUSTER)


def test_a_database_that_is_not_sound_is_found_although_its_manifest_fits(
    tmp_path: Path, made: tuple[Path, Manifest]
) -> None:
    """As when the sender's own disk was damaged before it took the snapshot."""
    content = made[0].read_bytes()
    damaged = tmp_path / "damaged"
    whole = 4096 * 40  # the schema, and the roots of the tables: behind them it looks like a state
    damaged.write_bytes(content[:whole] + bytes(4096 * 400) + content[whole + 4096 * 400 :])
    manifest = snapshot.describe(damaged, 7)
    with pytest.raises(SnapshotDamaged, match="no sound database"):
        snapshot.verify(damaged, manifest, CLUSTER)
    not_a_state = tmp_path / "not-a-state"
    with closing(sqlite3.connect(not_a_state)) as connection:
        connection.execute("CREATE TABLE t (x)")
    lying = dataclasses.replace(
        manifest,
        size_bytes=not_a_state.stat().st_size,
        chunks=hashlib.sha256(not_a_state.read_bytes()).digest(),
    )
    with pytest.raises(SnapshotDamaged, match="no sound database"):
        snapshot.verify(not_a_state, lying, CLUSTER)


def test_a_manifest_that_lies_about_the_index_is_found(made: tuple[Path, Manifest]) -> None:
    with pytest.raises(SnapshotDamaged, match="holds entry 2000"):
        snapshot.verify(made[0], dataclasses.replace(made[1], applied=2001), CLUSTER)


# Installing


def verified(folder: Path, made: tuple[Path, Manifest]) -> snapshot.VerifiedSnapshot:
    path = folder / "incoming.sqlite"
    shutil.copy(made[0], path)
    return snapshot.verify(path, made[1], CLUSTER)


def test_an_installed_snapshot_is_the_state_and_goes_on_from_there(
    tmp_path: Path, state: State, made: tuple[Path, Manifest]
) -> None:
    states_made.advance(state, 100)
    state.install(verified(tmp_path, made))
    assert state.applied == 2000
    assert state.hash() == states_made.hash_at(2000)
    states_made.advance(state, 2300)
    assert state.checkpoint() == 2300
    found = {path.name for path in (tmp_path / "state").iterdir()}
    assert found <= {"CURRENT", "db-2.sqlite", "db-2.sqlite-wal", "db-2.sqlite-shm"}
    assert not (tmp_path / "incoming.sqlite").exists()
    state.close()
    with closing(State.open(tmp_path / "state", CLUSTER)) as again:
        assert (again.applied, again.hash()) == (2300, states_made.hash_at(2300))


def test_a_snapshot_that_is_not_ahead_is_refused_and_changes_nothing(
    tmp_path: Path, state: State, made: tuple[Path, Manifest]
) -> None:
    states_made.advance(state, 2000)
    with pytest.raises(SnapshotRefused, match="ends at entry 2000, the state is at 2000"):
        state.install(verified(tmp_path, made))
    states_made.advance(state, 2001)
    assert state.hash() == states_made.hash_at(2001)


def test_installing_gives_up_a_copy_under_way(tmp_path: Path, state: State, made: tuple[Path, Manifest]) -> None:
    states_made.advance(state, 1000)
    copying = state.copy_to(tmp_path / "copy", step_seconds=0.0)
    assert copying.step()
    state.install(verified(tmp_path, made))
    assert state.hash() == states_made.hash_at(2000)


def test_what_a_crash_left_beside_the_generation_in_force_goes_and_its_number_is_not_used(
    tmp_path: Path, state: State, made: tuple[Path, Manifest]
) -> None:
    folder = tmp_path / "state"
    (folder / "db-7.sqlite-wal").write_bytes(b"of a generation that never was")
    state.install(verified(tmp_path, made))
    assert (folder / "CURRENT").read_text() == "db-8.sqlite\n"
    state.close()
    (folder / "db-9.sqlite").write_bytes(b"never put in force")
    with closing(State.open(folder, CLUSTER)) as again:
        assert again.applied == 2000
    assert not list(folder.glob("db-[79]*"))


def test_many_installs_one_after_the_other(tmp_path: Path, state: State) -> None:
    for number, upto in enumerate((100, 200, 300), start=2):
        state.install(verified(tmp_path, states_made.snapshot_at(tmp_path / "made", upto)))
        assert (tmp_path / "state" / "CURRENT").read_text() == f"db-{number}.sqlite\n"
        assert state.applied == upto
