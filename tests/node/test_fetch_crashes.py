"""Kills of the processes that bring blobs, give them and hand them on, in the middle of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.node.members_apart import MIB, Apart, Member, members_apart, pull, take
from tests.node.running import digest_of, eventually, push_blob

SIZE = 24 * MIB + 77
KILLS = int(os.environ.get("MERIDIAN_KILLS", "6"))
FETCHES_EACH = 20  # to a kill


class Far:
    """Two members; us fetches from eu by a way that can be narrowed."""

    def __init__(self, apart: Apart) -> None:
        self.eu, self.us = apart["eu"], apart["us"]
        self.narrow, self.push, self.ready = apart.narrow, apart.push, apart.ready

    def fetched_bytes(self) -> int:
        """By transfers that ended."""
        found = re.search(r"^meridian_fetched_bytes_total (\S+)$", self.us.admin("/metrics").text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    def arrivals(self) -> list[str]:
        return os.listdir(self.us.folder / "data" / "arrivals")


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    with members_apart(tmp_path, "eu", "us", gateways=2) as apart:
        yield Far(apart)


def test_a_client_does_not_notice_that_the_replicator_was_killed(far: Far) -> None:
    content = os.urandom(SIZE)
    digest = far.push(content)
    far.narrow(12e6)
    chunks = pull(far.us, digest)
    received = take(chunks, 8 * MIB)
    os.kill(far.us.child("replicator"), signal.SIGKILL)
    before = len(received)
    received += b"".join(chunks)
    assert received == content
    eventually(lambda: far.fetched_bytes() > 0)
    assert far.fetched_bytes() <= SIZE - before  # what had come was not fetched again
    eventually(lambda: not far.arrivals())


def test_a_transfer_outlives_the_gateway_that_asked_for_it(far: Far) -> None:
    content = os.urandom(SIZE)
    digest = far.push(content)
    far.narrow(12e6)
    chunks = pull(far.us, digest)
    received = take(chunks, 4 * MIB)
    for name in ("gateway-0", "gateway-1"):
        os.kill(far.us.child(name), signal.SIGKILL)
    received += b"".join(chunks)
    assert content.startswith(received)
    assert len(received) < len(content)
    far.us.wait_for("gateway_serving", 3)
    assert b"".join(pull(far.us, digest)) == content
    assert SIZE <= far.fetched_bytes() < SIZE + 4 * MIB  # not again: a piece at most, asked for twice


def test_a_client_does_not_notice_that_the_giver_was_killed(far: Far) -> None:
    content = os.urandom(SIZE)
    digest = far.push(content)
    far.narrow(12e6)
    chunks = pull(far.us, digest)
    received = take(chunks, 4 * MIB)
    for name in ("gateway-0", "gateway-1"):
        os.kill(far.eu.child(name), signal.SIGKILL)
    assert received + b"".join(chunks) == content


def test_a_node_that_was_killed_goes_on_with_what_had_come(far: Far) -> None:
    content = os.urandom(SIZE)
    digest = far.push(content)
    far.narrow(12e6)
    chunks = pull(far.us, digest)
    received = take(chunks, 12 * MIB)
    far.us.kill()
    assert content.startswith(received + b"".join(chunks))
    far.us.start()
    far.ready()
    assert b"".join(pull(far.us, digest)) == content
    assert far.fetched_bytes() <= SIZE - len(received)
    eventually(lambda: not far.arrivals())


def test_without_a_replicator_what_is_here_is_pulled_and_the_rest_is_503_soon(far: Far) -> None:
    away, here = far.push(b"away" * 9), b"here" * 9
    with far.us.client() as client:
        kept = push_blob(client, here)
        os.kill(far.us.child("replicator"), signal.SIGSTOP)
        began = time.monotonic()
        answer = client.get(f"/v2/team/app/blobs/{away}")
        assert (answer.status_code, answer.json()["errors"][0]["detail"]["digest"]) == (503, away)
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() - began < 25
        assert client.get(f"/v2/team/app/blobs/{kept}").content == here
        assert client.head(f"/v2/team/app/blobs/{away}").status_code == 200
        ready = far.us.admin("/readyz")
        assert (ready.status_code, ready.json()["replicator"]) == (200, "does not answer")
        os.kill(far.us.child("replicator"), signal.SIGCONT)
        eventually(lambda: client.get(f"/v2/team/app/blobs/{away}").content == b"away" * 9)


def test_a_node_that_is_stopped_in_the_middle_ends_in_time(far: Far) -> None:
    digest = far.push(os.urandom(SIZE))
    far.narrow(1e6)
    far.us.config_file.write_text(far.us.config_file.read_text().replace("drain_seconds = 10", "drain_seconds = 0.5"))
    far.us.signal(signal.SIGHUP)
    far.us.wait_for("node_reloaded")
    chunks = pull(far.us, digest)
    take(chunks, MIB)
    began = time.monotonic()
    assert far.us.stop() == 0
    assert time.monotonic() - began < 10
    assert far.arrivals()


class Killer:
    """Kills one process of either node after another, at moments that a seed decides."""

    def __init__(self, far: Far, seed: int) -> None:
        self.kills: list[str] = []
        self._far = far
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        while len(self.kills) < KILLS and not self._over.is_set():
            self._over.wait(self._random.uniform(0.1, 2.0))
            node = self._random.choice((self._far.us, self._far.us, self._far.eu))
            name = self._random.choice(("replicator", "replicator", "gateway-0", "gateway-1", "keeper"))
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(node.child(name), signal.SIGKILL)
                self.kills.append(f"{node.folder.name} {name}")


def outcome(node: Member, digest: str) -> str:
    """Of one pull: "right", or the kind of its clean end. Fails for a wrong answer."""
    running = hashlib.sha256()
    try:
        with node.client() as client, client.stream("GET", f"/v2/team/app/blobs/{digest}") as answer:
            if answer.status_code != 200:
                assert answer.status_code in {502, 503}, answer.read()
                return str(answer.status_code)
            for chunk in answer.iter_raw():
                running.update(chunk)
    except httpx.TransportError:
        return "broken off"
    assert f"sha256:{running.hexdigest()}" == digest
    return "right"


def _is_right(node: Member, digest: str) -> bool:
    return outcome(node, digest) == "right"


@pytest.mark.timeout(120 + 20 * KILLS)
def test_kills_at_any_moment_never_make_an_answer_wrong(far: Far) -> None:
    seed = int(os.environ.get("MERIDIAN_SEED", "1"))
    chance = random.Random(seed)
    sizes = [1, 70_000, MIB, 5 * MIB, 9 * MIB]
    far.narrow(40e6, delay_seconds=0.005)
    outcomes: dict[str, int] = {}
    digests: list[str] = []
    with Killer(far, seed) as killer, ThreadPoolExecutor(6) as pool:
        while len(killer.kills) < KILLS or len(digests) < KILLS * FETCHES_EACH:
            content = chance.randbytes(chance.choice(sizes))
            with contextlib.suppress(httpx.HTTPError, AssertionError):
                far.push(content)
                digests.append(digest_of(content))
            for found in pool.map(lambda digest: outcome(far.us, digest), digests[-3:] * 2):
                outcomes[found] = outcomes.get(found, 0) + 1
    far.ready()
    for digest in digests:
        eventually(partial(_is_right, far.us, digest), 30)
    eventually(lambda: not far.arrivals())
    print(f"seed {seed}: {len(killer.kills)} kills, {len(digests)} blobs, pulls {outcomes}")
    assert outcomes["right"] > sum(outcomes.values()) / 2
