"""`meridian replication` against three real regions, one of which is killed in the end, and against a node alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.ports import free_ports
from consensus import clock
from node.cli_replication import _image, _seconds
from node.progress import duration, size
from tests.node.commands import MERIDIAN, clean_environment, meridian
from tests.node.running import MANIFEST_TYPE, RunningNode, digest_of, eventually, push_blob, push_image, running
from tests.node.test_fetch_crashes import Far, far
from tests.node.test_members import Pair, pair
from tests.node.walled_regions import AP, EU, US, Regions, walled_regions

__all__ = ["far", "pair"]


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with walled_regions(tmp_path_factory.mktemp("regions")) as made:
        yield made


class Asked:
    """One command's answer."""

    def __init__(self, regions: Regions, region: int, *arguments: str) -> None:
        folder = regions.cluster.regions[region].folder
        began = clock.monotonic()
        answer = meridian("replication", *arguments, cwd=folder.path, MERIDIAN_CONFIG=str(folder.config_file))
        self.seconds = clock.monotonic() - began
        self.code, self.out, self.error = answer.returncode, answer.stdout, answer.stderr
        assert "Traceback" not in answer.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def layer_of(tag: str) -> str:
    """Of an image that `push_image` makes."""
    return digest_of(tag.encode() * 100)


def metric(regions: Regions, region: int, name: str) -> float:
    text = httpx.get(f"http://{regions.cluster.regions[region].admin}/metrics", trust_env=False).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_status_of_one_and_of_all(regions: Regions) -> None:
    own = Asked(regions, EU, "status")
    assert (own.code, own.out.split()[:3]) == (0, ["MEMBER", "REGION", "STATE"])
    assert [line.split()[:3] for line in own.out.splitlines()[1:]] == [["eu-1", "eu", "ok"]]
    every = Asked(regions, EU, "status", "--all", "--json").json["members"]
    assert [each["member"] for each in every] == ["eu-1", "ap-1", "us-1"]
    (one,) = Asked(regions, EU, "status", "--region", "us", "--json").json["members"]
    assert (one["region"], one["state"], one["replication"]["totals"]["failed"]) == ("us", "ok", {})
    stranger = Asked(regions, EU, "status", "--region", "zz")
    assert (stranger.code, stranger.out) == (2, "")
    assert "no region or member zz; known are ap, eu, us" in stranger.error


def test_waiting_brings_an_image_and_the_lag_is_measured(regions: Regions) -> None:
    push_image(regions.clients[EU], "bring")
    digest = layer_of("bring")
    before = Asked(regions, EU, "why", digest)
    assert before.code == 0
    assert f"{digest}: 500 B, pushed 20" in before.out
    assert "named by: team/app@sha256:" in before.out
    rows = {line.split()[0]: line for line in before.out.splitlines() if line[:5] in {"eu-1 ", "us-1 ", "ap-1 "}}
    assert rows["eu-1"].split() == ["eu-1", "eu", "held", "yes", "held"]
    assert "it was not asked for there lately; held by eu-1" in rows["us-1"]
    only = Asked(regions, EU, "wait", "team/app:bring", "--regions", "us,eu", "--timeout", "30s")
    assert only.code == 0, only.error
    assert sorted(only.out.splitlines()) == [
        f"{name}: holds all of team/app:bring: 2 blobs, 516 B" for name in ("eu-1 [eu]", "us-1 [us]")
    ]
    after = {each["member"]: each for each in Asked(regions, AP, "why", digest, "--json").json["members"]}
    assert {name: each["state"] for name, each in after.items()} == {"eu-1": "held", "us-1": "held", "ap-1": "missing"}
    assert metric(regions, US, "meridian_replication_lag_seconds_count") == 2
    assert 0 < metric(regions, US, "meridian_replication_lag_seconds_sum") < 120
    (us,) = Asked(regions, EU, "status", "--region", "us-1", "--json").json["members"]
    assert (us["replication"]["totals"]["kept"], us["replication"]["lag"]["count"]) == (2, 2)
    assert us["replication"]["lag"]["p50_seconds"] <= us["replication"]["lag"]["p99_seconds"]
    everywhere = Asked(regions, US, "wait", "team/app:bring", "--json")
    assert everywhere.code == 0, everywhere.error
    assert {each["state"] for each in everywhere.json["members"]} == {"complete"}


def test_waiting_without_bringing_says_in_the_end_what_is_missing(regions: Regions) -> None:
    push_image(regions.clients[EU], "look")
    answer = Asked(regions, EU, "wait", "team/app:look", "--regions", "ap", "--timeout", "1.5s", "--no-bring")
    assert (answer.code, answer.out) == (3, "")
    assert 1.5 <= answer.seconds < 15
    lines = answer.error.splitlines()
    assert "meridian: not all of team/app:look is there after 1.5 s" in lines
    assert "  ap-1 [ap]: lacks 2 blobs" in lines
    assert f"    {layer_of('look')} (400 B): it was not asked for there lately; held by eu-1" in lines
    assert "us-1" not in answer.error
    (ap,) = Asked(regions, EU, "status", "--region", "ap", "--json").json["members"]
    assert ap["replication"]["transfers"] == []


def test_what_is_wrong_is_one_line(regions: Regions) -> None:
    for arguments, code, text in (
        (("why", "sha256:zz"), 2, "invalid digest"),
        (("why", f"sha256:{'0' * 64}"), 1, "is not known: it was never pushed"),
        (("wait", "team/app:none"), 1, "none is not known in team/app"),
        (("wait", "no/such@sha256:" + "0" * 64), 1, "is not known in no/such"),
        (("wait", "No Such:1"), 2, "expected REPOSITORY:TAG or REPOSITORY@DIGEST"),
        (("wait", "team/app@sha256:1"), 2, "expected REPOSITORY:TAG or REPOSITORY@DIGEST"),
        (("wait", "team/app:bring", "--regions", "zz"), 2, "no region or member zz; the regions are ap, eu, us"),
        (("wait", "team/app:bring", "--regions", ","), 2, "names at least one region"),
        (("wait", "team/app:bring", "--timeout", "soon"), 2, "is not a time like 90s, 5m or 1h"),
    ):
        answer = Asked(regions, EU, *arguments)
        assert (answer.code, answer.out) == (code, ""), answer.error
        (line,) = answer.error.splitlines()
        assert line.startswith("meridian: ")
        assert text in line


def test_regions_are_completed(regions: Regions) -> None:
    folder = regions.cluster.regions[EU].folder

    def complete(*words: str) -> list[str]:
        variables = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        config = {"MERIDIAN_CONFIG": str(folder.config_file)}
        answer = meridian(cwd=folder.path, _MERIDIAN_COMPLETE="bash_complete", **variables, **config)
        return [line.partition(",")[2] for line in answer.stdout.splitlines()]

    assert complete("meridian", "replication", "w") == ["wait", "watch", "why"]
    assert complete("meridian", "replication", "wait", "--regions", "eu,a") == ["eu,ap", "eu,ap-1"]
    assert complete("meridian", "replication", "status", "--region", "us") == ["us", "us-1"]


def met(regions: Regions, region: int) -> set[str]:
    """The members that the region's replicator knows."""
    (own,) = Asked(regions, region, "status", "--json").json["members"]
    return {each["member"] for each in own["replication"]["members"]}


def watching(regions: Regions, output: int, **variables: str) -> subprocess.Popen[bytes]:
    folder = regions.cluster.regions[EU].folder
    environment = clean_environment({"MERIDIAN_CONFIG": str(folder.config_file), **variables})
    return subprocess.Popen([*MERIDIAN, "replication", "watch"], env=environment, cwd=folder.path, stdout=output)


def test_watching_prints_lines_until_it_is_interrupted(regions: Regions, tmp_path: Path) -> None:
    path = tmp_path / "seen"
    with path.open("wb") as file, watching(regions, file.fileno(), PYTHONUNBUFFERED="1") as process:
        try:
            eventually(lambda: b"us-1 [us]: 0 arriving" in path.read_bytes())
            content = os.urandom(48 * 1024 * 1024)
            digest = push_blob(regions.clients[AP], content)
            assert regions.clients[US].get(f"/v2/team/app/blobs/{digest}").content == content
            kept = [line for line in path.read_bytes().splitlines() if b"us-1 [us]" in line]
            eventually(lambda: len([x for x in path.read_bytes().splitlines() if b"us-1 [us]" in x]) > len(kept))
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_watching_at_a_terminal_draws(regions: Regions) -> None:
    controller, terminal = os.openpty()
    with watching(regions, terminal, TERM="xterm", COLUMNS="120") as process:
        os.close(terminal)
        shown = b""
        deadline = time.monotonic() + 30
        while shown.count(b"us-1 [us]") < 2:
            assert time.monotonic() < deadline, shown
            shown += os.read(controller, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(controller)


def test_a_region_that_is_gone(regions: Regions) -> None:
    push_image(regions.clients[US], "gone")
    digest = layer_of("gone")
    assert Asked(regions, EU, "status", "--all").code == 0
    eventually(lambda: met(regions, EU) == {"us-1", "ap-1"}, 30)
    regions.kill(US)
    eventually(lambda: regions.clients[EU].get("/v2/team/app/manifests/gone").status_code == 200, 60)
    status = Asked(regions, EU, "status", "--all")
    assert status.code == 3
    assert "us-1 [us]: ClientConnectorError" in status.out
    away = Asked(regions, EU, "wait", "team/app:gone", "--regions", "us", "--timeout", "3")
    assert (away.code, away.out) == (3, "")
    assert "  us-1 [us]: cannot be reached: ClientConnectorError" in away.error
    lacking = Asked(regions, EU, "wait", "team/app:gone", "--regions", "ap", "--timeout", "12")
    assert lacking.code == 3
    assert f"{digest} (400 B): it could not be brought " in lacking.error
    assert "HoldersUnreachable: " in lacking.error
    assert "of those that the log names us-1 cannot be reached" in lacking.error
    regions.start(US)
    assert Asked(regions, EU, "wait", "team/app:gone", "--timeout", "60").code == 0


def test_a_slow_transfer_is_seen_and_waited_for(far: Far) -> None:
    with far.eu.client() as client:
        digest = push_blob(client, os.urandom(6 * 1024 * 1024))
        push_manifest(client, "slow", digest)
    far.narrow(2 * 1024 * 1024)
    command = [*MERIDIAN, "replication", "wait", "team/app:slow", "--regions", "us"]
    environment = clean_environment({"MERIDIAN_CONFIG": str(far.eu.config_file)})
    with subprocess.Popen(command, env=environment, cwd=far.eu.folder, stdout=subprocess.PIPE) as waiting:
        try:
            seen: set[int] = set()

            def look() -> bool:
                found = far.us.admin("/meridian/v1/replication").json()["replication"]
                if any(each["digest"] == digest and each["bytes_per_second"] for each in found["transfers"]):
                    (transfer,) = (each for each in found["transfers"] if each["digest"] == digest)
                    assert transfer["bytes_per_second"] < 8 * 1024 * 1024
                    assert [source["member"] for source in transfer["sources"]] == ["eu"]
                    seen.add(transfer["received_bytes"])
                return len(seen) > 3

            eventually(look, 60)
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
        assert waiting.stdout
        assert b"us [us]: holds all of team/app:slow: 1 blobs, 6.0 MiB" in waiting.stdout.read()


def test_without_a_majority_a_digest_is_found_and_a_tag_is_not(pair: Pair) -> None:
    eu, us = pair
    with eu.client() as client:
        manifest = digest_of(push_image(client, "v1"))
    us.kill()
    eu.stop()
    eu.start(wait=False)  # it has never heard of us, since
    eventually(lambda: answers(eu), 60)

    def wait(reference: str, regions: str) -> subprocess.CompletedProcess[str]:
        arguments = ("wait", f"team/app{reference}", "--regions", regions, "--timeout", "2")
        answer = meridian("replication", *arguments, cwd=eu.folder)
        assert "Traceback" not in answer.stderr
        return answer

    assert wait(f"@{manifest}", "eu").returncode == 0
    nowhere = wait(f"@{manifest}", "ap")
    assert nowhere.returncode == 3
    assert "  ap: no member that answers stands there" in nowhere.stderr
    unmet = meridian("replication", "status", "--region", "ap", cwd=eu.folder)
    assert (unmet.returncode, unmet.stdout) == (3, "")
    assert unmet.stderr == "meridian: no member that was ever met stands in ap; not met yet: us\n"
    by_tag = wait(":v1", "eu")
    assert by_tag.returncode == 3
    assert "  the node does not say how far it is: " in by_tag.stderr


def answers(node: RunningNode) -> bool:
    try:
        return node.admin("/meridian/v1/replication").status_code == 200
    except httpx.TransportError:
        return False


def push_manifest(client: httpx.Client, tag: str, digest: str) -> None:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": 6 * 1024 * 1024}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": layer, "layers": [layer]}
    answer = client.put(f"/v2/team/app/manifests/{tag}", json=manifest, headers={"content-type": MANIFEST_TYPE})
    assert answer.status_code == 201, answer.text


def test_a_node_that_stands_alone(tmp_path: Path) -> None:
    with running(tmp_path, gateways=1) as node, node.client() as client:
        push_image(client, "v1")

        def ask(*arguments: str) -> Any:
            answer = meridian("replication", *arguments, cwd=tmp_path)
            assert answer.returncode == 0, answer
            return json.loads(answer.stdout)

        (own,) = ask("status", "--all", "--json")["members"]
        assert (own["state"], own["reason"]) == ("alone", "this node is no member of a cluster")
        assert ask("wait", "team/app:v1", "--json")["members"][0]["state"] == "complete"
        assert ask("why", layer_of("v1"), "--json")["members"][0]["state"] == "held"


def test_a_node_that_is_away(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    for arguments in (("status",), ("watch",), ("why", f"sha256:{'0' * 64}"), ("wait", "team/app:v1")):
        answer = meridian("replication", *arguments, cwd=tmp_path, MERIDIAN_LISTEN_ADMIN=f"127.0.0.1:{port}")
        assert answer.returncode == 1, answer
        assert f"http://127.0.0.1:{port}: no answer" in answer.stderr
        assert len(answer.stderr.splitlines()) == 1


def test_texts() -> None:
    seconds: Any = _seconds
    assert [seconds(None, None, text) for text in ("90", "1.5s", "5m", "1h")] == [90, 1.5, 300, 3600]
    assert [size(count) for count in (0, 1023, 1536, 5 * 1024**2, 2 * 1024**4, 3000 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "2.0 TiB",
        "3000.0 TiB",
    ]
    assert [duration(text) for text in (None, 0.25, 90, 7200)] == ["-", "0.2 s", "1.5 min", "2.0 h"]
    assert [tuple(map(str, _image(text))) for text in ("a/b:1", "a/b", f"a@sha256:{'0' * 64}")] == [
        ("a/b", "1"),
        ("a/b", "latest"),
        ("a", f"sha256:{'0' * 64}"),
    ]
