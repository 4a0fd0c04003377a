"""Stock pysyncobj in a process of its own (ours replaces globals of it): plays one scenario, prints what came of it.

python -m tests.consensus.raft.stock <scenario> [<folder>]
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from tests.consensus.raft.faults import SCENARIOS, Found, Lab

SECONDS = 10  # of waiting for a socket of this process


class ProgramError(Exception):
    """Raised by the program that uses the library."""


class _Wire(Transport):  # type: ignore[misc]
    """Hands what is sent to the lab."""

    def __init__(self, member: _Member, me: Node, others: Iterable[Node]) -> None:
        super().__init__(member, me, others)
        self._member = member
        self._me = me

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        return self._member.lab.send(self._me.id, node.id, message)

    def addNode(self, node: Node) -> None:  # noqa: N802
        pass


class _Member(SyncObj):  # type: ignore[misc]
    """A list of labels, replicated."""

    def __init__(self, me: str, lab: StockLab, *, dynamic: bool = False) -> None:
        configuration = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=0.15,
            raftMinTimeout=1.0,
            raftMaxTimeout=2.0,
            appendEntriesBatchSizeBytes=1024 * 1024,
            dynamicMembershipChange=dynamic,
        )
        self.lab = lab
        self.labels: list[str] = []
        self.acknowledged: list[str] = []
        others = [Node(name) for name in lab.names if name != me]
        super().__init__(Node(me), others, configuration, nodeClass=Node, transportClass=_Wire)

    @replicated  # type: ignore[untyped-decorator]
    def put(self, content: str) -> None:
        if content == "poison":
            raise ProgramError(content)
        self.labels.append(content.rstrip())


class StockLab(Lab):
    """Over the stock release as it is: its defaults but for batching and the two election timeouts, which are ours."""

    def __init__(self, names: str, *, dynamic: bool = False) -> None:
        super().__init__(names)
        syncobj.monotonicTime = lambda: self.now
        random.seed(1)
        self.members = {name: _Member(name, self, dynamic=dynamic) for name in names}
        for name, member in self.members.items():
            for other in names:
                if other != name:
                    member._SyncObj__onNodeConnected(Node(other))

    def put(self, name: str, label: str, size: int = 0) -> None:
        member = self.members[name]

        def answered(_: object, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                member.acknowledged.append(label)

        member.put(label.ljust(size), callback=answered)
        member._checkCommandsToApply()  # from its queue to its log

    def turn(self, name: str) -> None:
        self.members[name]._SyncObj__newAppendEntriesTime = 0
        self.tick(name)

    def tick(self, name: str) -> None:
        # Who ticks by hand goes on after an error of the program's own.
        with suppress(ProgramError):
            self.members[name].doTick(0)

    def receive(self, name: str, sender: str, message: dict[str, Any]) -> None:
        self.members[name]._SyncObj__onMessageReceived(Node(sender), message)
        self.tick(name)

    def call_election(self, name: str) -> None:
        self.members[name]._SyncObj__raftElectionDeadline = 0

    def leads(self, name: str) -> bool:
        return bool(self.members[name]._isLeader())

    def term(self, name: str) -> int:
        return int(self.members[name].raftCurrentTerm)

    def acknowledged(self, name: str) -> list[str]:
        return list(self.members[name].acknowledged)

    def applied(self, name: str) -> list[str]:
        return self.members[name].labels


def an_exception_in_a_callback() -> Found:
    """A client's callback raises when it is told."""
    lab = StockLab("abc")
    lab.elect("a")

    def fail(*_: object) -> None:
        raise ProgramError("the client's")

    lab.members["a"].put("once", callback=fail)
    lab.settle()
    return {"leader": lab.applied("a"), "follower": lab.applied("b")}


def an_exception_in_apply() -> Found:
    """One command cannot be applied; the next one could."""
    lab = StockLab("abc")
    lab.elect("a")
    lab.put("a", "poison")
    lab.put("a", "next")
    lab.settle()
    return {"applied": lab.applied("a"), "acknowledged": lab.acknowledged("a")}


def two_changes_of_members() -> Found:
    """The second one is asked for before the first one is committed."""
    lab = StockLab("abc", dynamic=True)
    lab.elect("a")
    denied: list[int] = []
    for name in "de":
        lab.members["a"].addNodeToCluster(Node(name), callback=lambda _, error: denied.append(error))
    lab.cut = {"b", "c"}
    lab.turn("a")
    return {"members": sorted(node.id for node in lab.members["a"].otherNodes), "denied": denied}


class _OnDisk(SyncObj):  # type: ignore[misc]
    """With its own network, journal and snapshots, on a port of the kernel's choice."""

    def __init__(self, folder: Path) -> None:
        configuration = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=0.003,
            raftMinTimeout=0.01,
            raftMaxTimeout=0.02,
            useFork=False,
            journalFile=str(folder / "journal"),
            fullDumpFile=str(folder / "dump"),
            logCompactionMinEntries=10**9,
            logCompactionMinTime=10**9,
        )
        super().__init__("127.0.0.1:0", [], configuration)
        self.labels: list[str] = []  # set behind the line above: what was there before is no part of its snapshots
        self.told: list[str] = []

    @replicated  # type: ignore[untyped-decorator]
    def append(self, label: str) -> None:
        self.labels.append(label)

    def put(self, *labels: str) -> None:
        """Until all of them are acknowledged."""

        def answered(label: str, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                self.told.append(label)

        for label in labels:
            self.append(label, callback=lambda _, error, label=label: answered(label, error))
        while not set(labels) <= set(self.told):
            self.doTick(0.001)


def killed_between_snapshot_and_journal(folder: Path) -> Found:
    """The first process takes a snapshot and is killed before the tick that would shorten the journal; the second one
    shows what is left."""
    if not (folder / "dump").exists():
        member = _OnDisk(folder)
        member.put("one", "two", "three")
        member.forceLogCompaction()
        member.doTick(0)
        member._SyncObj__tryLogCompaction = lambda: None
        member.doTick(0)
        member.put("four", "five")
        print(json.dumps({"acknowledged": member.told}), flush=True)
        os._exit(0)
    member = _OnDisk(folder)
    while not member.isReady():
        member.doTick(0.001)
    return {"kept": member.labels}


def a_pickle_from_a_stranger(folder: Path, bomb: bytes) -> Found:
    """Who reaches the port needs no password."""
    member = _OnDisk(folder)
    port = member._SyncObj__transport._server._TcpServer__socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), SECONDS) as stranger:
        content = zlib.compress(bomb)
        stranger.sendall(struct.pack("i", len(content)) + content)
        for _ in range(SECONDS * 100):
            member.doTick(0.01)
            if (folder / "exploded").exists():
                break
    return {"exploded": (folder / "exploded").exists()}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    name, *arguments = sys.argv[1:]
    if name in SCENARIOS:
        names, scenario = SCENARIOS[name]
        print(json.dumps(scenario(StockLab(names))))
    elif name == "a_pickle_from_a_stranger":
        print(json.dumps(a_pickle_from_a_stranger(Path(arguments[0]), bytes.fromhex(arguments[1]))))
    else:
        print(json.dumps(globals()[name](*map(Path, arguments))))
