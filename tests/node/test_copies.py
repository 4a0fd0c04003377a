"""Three real members, of which those that a blob was pushed to die, while another has a copy that a pull left there."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.node.descent import is_alive
from tests.node.members_apart import MIB, Apart, Member, members_apart, pull, take
from tests.node.running import digest_of, eventually

SIZE = 24 * MIB + 77


class Three:
    """Three members, and the ways that blobs take between them."""

    def __init__(self, apart: Apart) -> None:
        self._apart = apart
        self.narrow, self.push, self.ready = apart.narrow, apart.push, apart.ready

    def __getitem__(self, name: str) -> Member:
        return self._apart[name]

    def pulls(self, name: str, digest: str) -> bool:
        """Whether the node answers with the right bytes."""
        with self[name].client() as client:
            answer = client.get(f"/v2/team/app/blobs/{digest}")
        return answer.status_code == 200 and digest_of(answer.content) == digest

    def known(self, at: str, member: str) -> int:
        """Copies that a node knows of a member."""
        found = re.search(rf'^meridian_copies_known{{member="{member}"}} (\S+)$', self[at].admin("/metrics").text, re.M)
        return int(float(found[1])) if found else 0

    def blob_file(self, name: str, digest: str) -> Path:
        hexadecimal = digest.partition(":")[2]
        return self[name].folder / "data" / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    with members_apart(tmp_path, "eu", "us", "ap", gateways=1) as apart:
        yield Three(apart)


def killed(node: Member) -> None:
    """All of its processes, at once."""
    children = node.kill()
    eventually(lambda: not any(map(is_alive, children)))


def test_a_copy_is_pulled_when_the_node_that_took_the_push_is_gone(three: Three) -> None:
    content = os.urandom(9 * MIB)
    digest = three.push(content)
    assert three.pulls("us", digest)
    began = time.monotonic()
    eventually(lambda: three.known("ap", "us"))
    print(f"ap knew of the copy {time.monotonic() - began:.2f} s after the pull at us")
    assert three.known("eu", "us") + three.known("us", "ap") + three.known("us", "eu") in (0, 1)
    killed(three["eu"])
    assert three.pulls("ap", digest)
    killed(three["us"])  # and now it is here, where nobody can confirm anything any more
    assert three.pulls("ap", digest)


def test_a_copy_is_pulled_though_nobody_had_the_time_to_hear_of_it(three: Three) -> None:
    for _ in range(3):
        digest = three.push(os.urandom(MIB))
        assert three.pulls("us", digest)
        killed(three["eu"])
        assert three.pulls("ap", digest)
        three["eu"].start()
        three.ready("eu")


def test_a_pull_goes_on_from_a_copy_and_its_client_does_not_notice(three: Three) -> None:
    content = os.urandom(SIZE)
    digest = three.push(content)
    assert three.pulls("us", digest)
    eventually(lambda: three.known("ap", "us"))
    three.narrow(12e6)
    chunks = pull(three["ap"], digest)
    received = take(chunks, 4 * MIB)
    killed(three["eu"])
    assert received + b"".join(chunks) == content


def test_a_pull_goes_on_from_a_copy_that_came_only_after_it_had_begun(three: Three) -> None:
    content = os.urandom(SIZE)
    digest = three.push(content)
    three.narrow(3e6, ("eu", "ap"), ("ap", "eu"))
    chunks = pull(three["ap"], digest)
    received = take(chunks, MIB)
    assert three.pulls("us", digest)
    eventually(lambda: three.known("ap", "us"))
    killed(three["eu"])
    assert received + b"".join(chunks) == content


def test_without_a_copy_it_is_503_until_the_node_is_back(three: Three) -> None:
    digest = three.push(os.urandom(MIB))
    killed(three["eu"])
    with three["ap"].client() as client:
        answer = client.get(f"/v2/team/app/blobs/{digest}")
    assert (answer.status_code, answer.json()["errors"][0]["detail"]["digest"]) == (503, digest)
    assert int(answer.headers["retry-after"]) > 0
    assert not three["ap"].events("blob_lost")
    three["eu"].start()
    three.ready("eu")
    eventually(lambda: three.pulls("ap", digest))


def test_replicators_that_are_killed_know_all_of_it_again(three: Three) -> None:
    digests = [three.push(os.urandom(1000)) for _ in range(8)]
    for number, digest in enumerate(digests):
        assert three.pulls("us", digest)
        eventually(three.blob_file("us", digest).exists)  # the client has it a moment before
        os.kill(three[("us", "ap")[number % 2]].child("replicator"), signal.SIGKILL)
    eventually(lambda: three.known("ap", "us") == len(digests))
    killed(three["us"])
    three["us"].start()
    three.ready("us")
    three["us"].wait_for("replicator_serving")
    killed(three["eu"])
    for digest in digests:
        eventually(partial(three.pulls, "ap", digest))
    assert three.known("ap", "us") == len(digests)
    eventually(lambda: three.known("us", "ap") == len(digests))


def test_a_copy_that_is_gone_costs_one_request_and_is_told_no_more(three: Three) -> None:
    content = os.urandom(MIB)
    digest = three.push(content)
    assert three.pulls("us", digest)
    eventually(lambda: three.known("ap", "us"))
    three.blob_file("us", digest).unlink()
    three["us"].signal(signal.SIGTERM)  # whoever starts again looks through the store
    assert three["us"].process
    three["us"].process.wait(30)
    killed(three["eu"])
    three["us"].start()
    three.ready("us")
    eventually(lambda: three.known("ap", "us") == 0)
    with three["ap"].client() as client:
        assert client.get(f"/v2/team/app/blobs/{digest}").status_code == 503
    three["eu"].start()
    three.ready("eu")
    eventually(lambda: three.pulls("ap", digest))
