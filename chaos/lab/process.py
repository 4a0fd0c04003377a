"""The process that a lab is: it holds the WAN and the nodes, and takes orders until it is told to end.

An order is a line of JSON on a Unix socket, and is answered by one: {"do": "status"}, or {"do": "set", "from": "eu",
"to": "us", "both": false, "changes": {"delay_ms": 40}} with the fields of `topology.Change`. What is refused is
answered by {"error": "why"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from chaos.lab.errors import LabError, LabRefused
from chaos.lab.folder import LabFolder, RegionRecord
from chaos.lab.laboratory import Lab, lab, parse_change
from chaos.lab.topology import Topology
from chaos.lab.wan import Kind

_ANSWER_SECONDS = 15.0
_WATCH_SECONDS = 1.0

Tell = Callable[[str], None]


async def serve(topology: Topology, folder: LabFolder, kind: Kind, tell: Tell) -> None:
    """A lab in that folder, until SIGTERM or SIGINT. Raises LabError, OSError; nothing is left then either."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    lab_id = token_hex(16)
    with (
        contextlib.suppress(asyncio.CancelledError),
        folder.hold(lab_id) as record,
        lab(topology, folder.path, kind=kind, lab_id=lab_id) as it,
    ):
        tell(f"lab {lab_id[:6]}: {it.wan.nature.kind}, carried by {it.wan.nature.carried_by}")
        server = await asyncio.start_unix_server(partial(_answer, it), folder.socket)
        record = msgspec.structs.replace(
            record, regions={name: RegionRecord(at.registry, at.admin, at.entry) for name, at in it.wan.places.items()}
        )
        folder.write(record)
        try:
            await _start(it)
            for name, place in it.wan.places.items():
                tell(f"region {name}: http://{place.registry}, admin http://{place.admin}")
            tell("ready")  # first: whoever sees that it is recorded shows what was told
            folder.write(msgspec.structs.replace(record, ready=True))
            await _watch(it, tell)
        finally:
            server.close()
            await it.close()


async def _start(it: Lab) -> None:
    try:
        await it.start()
    except ExceptionGroup as group:
        raise LabRefused("\n".join(map(str, group.exceptions))) from group


async def _watch(it: Lab, tell: Tell) -> None:
    """Tells which nodes end; nobody starts them again."""
    gone: set[str] = set()
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        for name, node in it.nodes.items():
            if not node.is_running and name not in gone:
                gone.add(name)
                tell(f"region {name}: its node has ended")


async def _answer(it: Lab, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            try:
                answer = await _obey(it, json.loads(line))
            except (LabError, ValueError, KeyError, TypeError) as error:
                answer = {"error": str(error) or type(error).__name__}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    writer.close()


async def _obey(it: Lab, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "status":
        return await status(it)
    if order["do"] == "set":
        pairs = it.pairs(order["from"], order["to"], both=order["both"])
        it.change(pairs, parse_change(order["changes"]))
        return {"ways": [way for way in _ways(it) if (way["from"], way["to"]) in pairs]}
    raise LabRefused(f"no such order: {order['do']}")


async def status(it: Lab) -> dict[str, Any]:
    """What `meridian lab status --json` prints."""
    standings = await asyncio.gather(*(it.standing(name) for name in it.nodes))
    nature = it.wan.nature
    return {
        "id": it.id,
        "kind": nature.kind,
        "carried_by": nature.carried_by,
        "carrier_pid": nature.pid,
        "not_emulated": sorted(nature.not_emulated),
        "regions": [
            {
                "region": name,
                "state": "running" if standing else "not ready" if node.is_running else "ended",
                "leads": standing is not None and standing.steward == name,
                "applied": standing.applied if standing else None,
                "address": node.address,
                "admin": node.admin_address,
                "congestion_control": it.topology.congestion_control[name] if nature.kind == "namespaces" else None,
                "pids": node.pids(),
            }
            for (name, node), standing in zip(it.nodes.items(), standings, strict=True)
        ],
        "ways": _ways(it),
    }


def _ways(it: Lab) -> list[dict[str, Any]]:
    counts = it.counters()
    return [
        {
            "from": source,
            "to": sink,
            "delay_ms": link.delay_ms,
            "jitter_ms": link.jitter_ms,
            "loss": None if "loss" in it.wan.nature.not_emulated else link.loss,
            "rate_mbit": link.rate_mbit,
            "queue_bytes": None if "queue_bytes" in it.wan.nature.not_emulated else link.queue_bytes,
            "cut": link.cut,
            **asdict(counts[source, sink]),
        }
        for (source, sink), link in it.links.items()
    ]


def ask(folder: LabFolder, order: dict[str, Any]) -> dict[str, Any]:
    """The answer of the lab that runs in that folder. Raises LabRefused, also with what it answers as an error."""
    folder.running()
    answer: dict[str, Any] = {}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(str(folder.socket))
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
    except (OSError, ValueError) as error:
        raise LabRefused(f"the lab does not answer at {_short(folder.socket)}: {error}") from error
    if error_text := answer.get("error"):
        raise LabRefused(str(error_text))
    return answer


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
