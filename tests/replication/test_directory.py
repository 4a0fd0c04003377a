from __future__ import annotations

import asyncio

import pytest

from consensus.names import StoreId
from replication import directory
from replication.directory import Directory, PeerIdentity, PeerUnreachable


class Members:
    """Who is where, and how often each was asked."""

    def __init__(self, **nodes: str) -> None:
        self.nodes = nodes
        self.asked: list[str] = []
        self.hanging = asyncio.Event()

    async def ask(self, member: str) -> PeerIdentity:
        self.asked.append(member)
        if member == "hangs":
            await self.hanging.wait()
        if member not in self.nodes:
            raise PeerUnreachable(member)
        return PeerIdentity(member, self.nodes[member], StoreId("s" + self.nodes[member]), "region")


async def test_a_node_or_store_is_found_by_asking_each_once() -> None:
    members = Members(eu="1", us="2")
    found = Directory(["eu", "us", "ap"], members.ask)
    assert await asyncio.gather(*(found.with_node("2") for _ in range(9))) == ["us"] * 9
    assert await found.with_store(StoreId("s1")) == "eu"
    assert sorted(members.asked) == ["ap", "eu", "us"]


async def test_who_is_not_found_is_looked_for_again_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members(eu="1")
    found = Directory(["eu", "us"], members.ask)
    for _ in range(9):
        assert await found.with_node("2") is None
    assert len(members.asked) == 2
    monkeypatch.setattr(directory, "ASK_AGAIN_SECONDS", 0.0)
    members.nodes["us"] = "2"
    assert await found.with_node("2") == "us"


async def test_a_member_that_became_another_node_is_asked_at_once_when_it_failed() -> None:
    members = Members(eu="1")
    found = Directory(["eu"], members.ask)
    assert await found.with_node("1") == "eu"
    members.nodes["eu"] = "2"
    assert await found.with_node("1") == "eu"
    found.forget("eu")
    assert await found.with_node("1") is None
    assert await found.with_node("2") == "eu"


async def test_failing_again_and_again_does_not_mean_asking_again_and_again() -> None:
    members = Members()
    found = Directory(["eu"], members.ask)
    for _ in range(9):
        found.forget("eu")
        assert await found.with_node("1") is None
    assert members.asked == ["eu"]


async def test_a_member_that_hangs_does_not_delay_finding_another() -> None:
    members = Members(eu="1")
    found = Directory(["hangs", "eu"], members.ask)
    async with asyncio.timeout(5):
        assert await found.with_node("1") == "eu"
        looking = asyncio.create_task(found.with_node("2"))
        await asyncio.sleep(0)
        await found.close()
        assert await looking is None


async def test_who_is_forgotten_has_been_met_all_the_same() -> None:
    found = Directory(["eu"], Members(eu="1").ask)
    assert await found.with_node("1") == "eu"
    found.forget("eu")
    assert found.known_with_store(StoreId("s1")) is None
    assert found.met["eu"].store_id == "s1"


async def test_a_store_belongs_to_whoever_said_so_first_and_is_reached() -> None:
    members = Members(eu="1", us="1")
    found = Directory(["eu", "us"], members.ask)
    found.learn(await members.ask("eu"))
    found.learn(await members.ask("us"))
    assert found.known_with_store(StoreId("s1")) == "eu"
    found.forget("eu")
    found.learn(await members.ask("us"))
    assert found.known_with_store(StoreId("s1")) == "us"


async def test_which_store_a_member_has_is_asked_once_and_is_not_what_another_has() -> None:
    members = Members(eu="1", us="1")
    found = Directory(["eu", "us", "ap"], members.ask)
    assert [await found.store_of("eu") for _ in range(3)] == ["s1"] * 3
    assert await found.store_of("us") is None
    with pytest.raises(PeerUnreachable):
        await found.store_of("ap")
    assert members.asked == ["eu", "us", "ap"]
