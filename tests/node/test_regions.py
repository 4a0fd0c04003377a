"""Three real regions as one registry: what one has answered, every other one answers, at once and ever after."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from node.local import stop
from tests.node.descent import descendants
from tests.node.running import digest_of, eventually
from tests.node.walled_regions import AP, EU, PLAIN, READY_SECONDS, US, Regions, walled_regions

UNDECIDED = (503, 504)  # it may or may not have happened


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with walled_regions(tmp_path_factory.mktemp("regions")) as made:
        yield made


def test_no_region_can_look_into_the_folder_of_another(regions: Regions) -> None:
    """So whatever holds in this file holds without a shared file. (Elsewhere there is only what they promise.)"""
    if not regions.walled:
        pytest.skip("unshare --mount is not permitted here")
    for region, other in itertools.permutations((EU, US, AP), 2):
        folder = regions.cluster.regions[other].folder.path
        supervisor = regions.cluster.regions[region].folder.supervisor()
        assert supervisor is not None
        for pid in (supervisor, *descendants(supervisor)):
            assert os.listdir(f"/proc/{pid}/root{folder}") == []
        assert list(folder.iterdir())


def test_what_one_region_answers_the_others_know(regions: Regions) -> None:
    for number in range(30):
        content = f"image {number}".encode()
        digest = regions.push(EU, content)
        for region in (US, AP):
            assert regions.get(region) == content
            assert regions.get(region, digest) == content
        moved = content + b", retagged"
        digest = regions.push(US, moved)
        assert regions.get(AP) == moved
        assert regions.clients[AP].delete(f"/v2/team/app/manifests/{digest}").status_code == 202
        assert regions.get(EU) is None
        assert regions.get(EU, digest) is None


def test_every_request_of_a_push_may_reach_another_region_and_every_region_has_the_blob(regions: Regions) -> None:
    for number in range(6):
        content = bytes([number]) * 250_000
        turns = itertools.cycle([*regions.clients[number % 3 :], *regions.clients[: number % 3]])
        location = next(turns).post("/v2/team/blobs/blobs/uploads/").raise_for_status().headers["location"]
        for start in range(0, len(content), 100_000):
            patched = next(turns).patch(location, content=content[start : start + 100_000])
            assert patched.status_code == 202, patched.text
            location = patched.headers["location"]
        digest = digest_of(content)
        put = next(turns).put(location, params={"digest": digest})
        assert put.status_code == 201, put.text
        for client in regions.clients:
            assert client.get(f"/v2/team/blobs/blobs/{digest}").content == content


def test_a_blob_that_was_deleted_in_one_region_is_in_none(regions: Regions) -> None:
    for number in range(20):
        content = f"blob {number}".encode()
        digest, at, elsewhere = digest_of(content), number % 3, (number + 1 + number % 2) % 3
        location = regions.clients[at].post("/v2/gone/blobs/uploads/").headers["location"]
        assert regions.clients[at].put(location, params={"digest": digest}, content=content).status_code == 201
        path = f"/v2/gone/blobs/{digest}"
        assert regions.clients[elsewhere].head(path).status_code == 200
        assert regions.clients[at].delete(path).status_code == 202
        assert regions.clients[elsewhere].head(path).status_code == 404
        assert regions.clients[elsewhere].get(path).status_code == 404


def test_lists_and_referrers_are_never_behind(regions: Regions) -> None:
    subject = regions.push(EU, b"subject", repository="lists")
    for number in range(10):
        regions.push(number % 3, b"tagged", f"t{number}", repository="lists")
        for region in (EU, US, AP):
            tags = regions.clients[region].get("/v2/lists/tags/list").json()["tags"]
            assert f"t{number}" in tags
        regions.push(number % 3, b"first", repository=f"list-{number}")
        for region in (EU, US, AP):
            assert f"list-{number}" in regions.clients[region].get("/v2/_catalog").json()["repositories"]
        index = (
            '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],'
            f'"annotations":{{"n":"{number}"}},"subject":{{"mediaType":"{PLAIN}","digest":"{subject}","size":7}}}}'
        ).encode()
        headers = {"content-type": "application/vnd.oci.image.index.v1+json"}
        put = regions.clients[number % 3].put(f"/v2/lists/manifests/{digest_of(index)}", content=index, headers=headers)
        assert put.status_code == 201, put.text
        for region in (EU, US, AP):
            found = regions.clients[region].get(f"/v2/lists/referrers/{subject}").json()["manifests"]
            assert digest_of(index) in {each["digest"] for each in found}


def test_compare_and_swap_has_one_winner_wherever_they_come_in(regions: Regions) -> None:
    for number in range(10):
        contents = [f"{number} by {region}".encode() for region in (EU, US, AP)]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            answers = list(
                pool.map(
                    lambda region: (
                        regions.put(
                            region,
                            contents[region],  # noqa: B023  all of them end within the loop's round
                            f"race-{number}",  # noqa: B023
                            **{"if-none-match": "*"},
                        ).status_code
                    ),
                    (EU, US, AP),
                )
            )
        assert sorted(answers) == [201, 412, 412]
        for region in (EU, US, AP):
            assert regions.get(region, f"race-{number}") == contents[answers.index(201)]


def until_longer(acknowledged: dict[str, bytes]) -> None:
    count = len(acknowledged) + 20
    eventually(lambda: len(acknowledged) > count, 60)


def test_the_death_of_the_stewards_keeper_loses_nothing(regions: Regions) -> None:
    """Pushes go on through the other two; whatever was acknowledged, before or after, is read everywhere."""
    acknowledged: dict[str, bytes] = {}
    stopping = threading.Event()

    def push_on(region: int) -> None:
        number = 0
        while not stopping.is_set():
            tag, content = f"r{region}-{number}", f"{region} {number}".encode()
            answer = regions.put(region, content, tag, "kill")
            assert answer.status_code in {201, *UNDECIDED}, answer.text
            if answer.status_code == 201:
                acknowledged[tag] = content
            number += 1

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        pushing = [pool.submit(push_on, region) for region in (EU, US, AP)]
        try:
            for _ in range(2):
                until_longer(acknowledged)
                os.kill(int(str(regions.status(regions.steward())["keeper_pid"])), signal.SIGKILL)
                until_longer(acknowledged)
        finally:
            stopping.set()
        for each in pushing:
            each.result()
    eventually(lambda: all(regions.cluster.regions[region].ready() for region in (EU, US, AP)), READY_SECONDS)
    for region in (EU, US, AP):
        for tag, content in acknowledged.items():
            assert regions.get(region, tag, "kill") == content


def test_two_regions_go_on_without_the_third(regions: Regions) -> None:
    steward = regions.steward()
    regions.kill(steward)
    first, second = sorted({EU, US, AP} - {steward})
    contents = [f"without {number}".encode() for number in range(10)]
    eventually(lambda: regions.put(first, b"again", "again", "two").status_code == 201, 60)
    for content in contents:
        regions.push(first, content, repository="two")
        assert regions.get(second, repository="two") == content
    regions.start(steward)
    assert regions.get(steward, repository="two") == contents[-1]


def test_a_region_that_was_away_for_longer_than_the_log_goes_back(regions: Regions) -> None:
    """It gets a snapshot, and its gateways, which read the state from before at their start, follow."""
    away = next(region for region in (AP, US) if region != regions.steward())
    regions.kill(away)
    for number in range(150):
        regions.push(EU, b"%d " % number * 500, "newest", repository="away")
        regions.push(EU, b"%d " % number * 500, f"tag-{number}", repository="away")
    regions.start(away)
    log = regions.cluster.regions[away].folder.log_file.read_bytes()
    assert b'"snapshot_installed"' in log
    assert regions.get(away, "newest", "away") == b"149 " * 500
    assert len(regions.clients[away].get("/v2/away/tags/list").json()["tags"]) == 151
    regions.push(away, b"on", "newest", repository="away")
    assert regions.get(EU, "newest", "away") == b"on"


def test_a_steward_that_is_stopped_hands_over(regions: Regions) -> None:
    steward, term = regions.steward(), regions.status(EU)["term"]
    regions.push(steward, b"before", repository="drain")
    region = regions.cluster.regions[steward]
    mark = region.folder.log_bytes()
    assert stop([region.folder]) == [region.name]
    resigned = [line for line in region.folder.tail(mark).splitlines() if "keeper_resigned" in line]
    assert json.loads(resigned[0])["handed_over"] is True
    other = min({EU, US, AP} - {steward})
    assert regions.get(other, repository="drain") == b"before"
    assert int(str(regions.status(other)["term"])) == int(str(term)) + 1
    regions.start(steward)


def test_one_region_of_three_shows_nothing_old_and_recovers(regions: Regions) -> None:
    regions.push(EU, b"before", repository="one")
    blob = b"layer"
    location = regions.clients[EU].post("/v2/one/blobs/uploads/").headers["location"]
    digest = digest_of(blob)
    assert regions.clients[EU].put(location, params={"digest": digest}, content=blob).status_code == 201
    for region in (US, AP):
        regions.kill(region)
    for path in ("/v2/one/manifests/v1", "/v2/one/tags/list", "/v2/_catalog"):
        answer = regions.clients[EU].get(path)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0
    assert regions.put(EU, b"lost", repository="one").status_code == 503
    assert regions.clients[EU].get(f"/v2/one/blobs/{digest}").content == blob
    eventually(lambda: not regions.cluster.regions[EU].ready())
    assert regions.cluster.regions[EU].folder.supervisor() is not None
    regions.start(US, AP)
    eventually(lambda: regions.cluster.regions[EU].ready(), READY_SECONDS)
    found = {regions.get(region, repository="one") for region in (EU, US, AP)}
    assert len(found) == 1
    assert found <= {b"before", b"lost"}
