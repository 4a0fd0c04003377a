"""Which log a configuration opens. Members among others are in test_regions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from consensus.errors import StateRefused
from consensus.raft.engine import RaftLog
from consensus.solo import SoloLog
from consensus.state import State
from node import engines
from node.authority import Authority
from node.config import Cluster, Config, Listen, Node
from node.engines import next_incarnation
from node.identity import Identity


def member(folder: Path, *others: str) -> Config:
    """A member, and its certificate."""
    authority = Authority.create()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    files = {name: folder / name for name in ("ca.crt", "node.crt", "node.key")}
    for name, content in authority.issue("a").files.items():
        files[name].write_bytes(content)
    return Config(
        node=Node(name="a", data=str(folder / "data")),
        listen=Listen(peers="127.0.0.1:0"),
        cluster=Cluster(
            id=authority.cluster_id,
            members=("a=127.0.0.1:1", *others),
            ca=str(files["ca.crt"]),
            certificate=str(files["node.crt"]),
            key=str(files["node.key"]),
        ),
    )


async def test_a_node_without_members_has_its_log_alone(tmp_path: Path) -> None:
    config = Config(node=Node(name="a", data=str(tmp_path)))
    async with engines.opened(config, Identity.of(config)) as engine:
        assert isinstance(engine.log, SoloLog)
        assert engine.log.status.steward == "a"
        await engines.resign(engine.log)


async def test_a_member_has_its_part_of_the_clusters(tmp_path: Path) -> None:
    config = member(tmp_path)
    for _ in range(2):
        async with engines.opened(config, Identity.of(config)) as engine:
            assert isinstance(engine.log, RaftLog)


async def test_a_member_alone_among_unreachable_ones_ends_at_once(tmp_path: Path) -> None:
    config = member(tmp_path, "b=127.0.0.1:2")
    async with engines.opened(config, Identity.of(config)) as engine:
        assert engine.log.status.steward is None
        await engines.resign(engine.log)


async def test_a_certificate_that_is_missing_or_not_one_is_refused(tmp_path: Path) -> None:
    config = member(tmp_path)
    identity = Identity.of(config)
    (tmp_path / "node.key").write_text("no key")
    with pytest.raises(OSError, match="cannot listen on"):
        async with engines.opened(config, identity):
            pass
    (tmp_path / "node.key").unlink()
    with pytest.raises(OSError, match="No such file"):
        async with engines.opened(config, identity):
            pass


async def test_a_log_that_ends_before_the_state_is_refused_and_the_port_is_free_again(tmp_path: Path) -> None:
    config = member(tmp_path)
    identity = Identity.of(config)
    state = State.open(config.data / "state", identity.cluster_id)
    state.close()
    connection = sqlite3.connect(config.data / "state" / "db-1.sqlite")
    connection.execute("UPDATE meta SET applied = 9")
    connection.commit()
    connection.close()
    for _ in range(2):
        with pytest.raises(StateRefused, match="ends at entry"):
            async with engines.opened(config, identity):
                pass


@pytest.mark.parametrize("before", [None, "", "x", "7", "99999999999999"])
def test_an_incarnation_is_above_all_before_it(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "incarnation"
    if before is not None:
        path.write_text(before)
    first = next_incarnation(path)
    second = next_incarnation(path)
    assert second > first > (int(before) if before and before.isdecimal() else 0)
    assert [each.name for each in tmp_path.iterdir()] == ["incarnation"]
