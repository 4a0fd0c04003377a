"""The commands that ask a node, against a real one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chaos.ports import free_base_port
from consensus import clock
from node.local import Cluster, LocalRegion, stop
from tests.node.commands import meridian

REPOSITORIES = ["a", "team/app", "team/lib", "z/y/x"]
TAGS = ["1.0", "1.1", "latest", "nightly", "old"]


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegion]:
    """A node whose pages hold two entries, started in the module's folder, with something in it."""
    folder = tmp_path_factory.mktemp("machine")
    variables = {"MERIDIAN_DATA": str(folder / ".meridian"), "BASE_PORT": str(free_base_port()), "REGIONS": "eu"}
    (chosen,) = Cluster.from_environment(variables).regions
    try:
        answer = meridian("local", "start", "eu", cwd=folder, MERIDIAN_LIMITS_PAGE_SIZE="2", **variables)
        assert answer.returncode == 0, answer.stderr
        with httpx.Client(base_url=f"http://{chosen.address}", trust_env=False) as client:
            for name in REPOSITORIES:
                push(client, name, TAGS if name == "team/app" else ["latest"])
        yield chosen
    finally:
        stop([chosen.folder])


def push(client: httpx.Client, repository: str, tags: list[str]) -> None:
    config = b"{}"
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    answer = client.post(f"/v2/{repository}/blobs/uploads/", params={"digest": digest}, content=config)
    assert answer.status_code == 201, answer.text
    media_type = "application/vnd.oci.image.manifest.v1+json"
    descriptor = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": len(config)}
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": descriptor, "layers": []}
    for tag in tags:
        url = f"/v2/{repository}/manifests/{tag}"
        answer = client.put(url, content=json.dumps(manifest), headers={"content-type": media_type})
        assert answer.status_code == 201, answer.text


def ask(region: LocalRegion, *arguments: str, code: int = 0) -> str:
    answer = meridian(*arguments, cwd=region.folder.path, MERIDIAN_CONFIG=str(region.folder.config_file))
    assert answer.returncode == code, answer
    return answer.stderr if code == 1 else answer.stdout


def test_repositories_of_all_pages(region: LocalRegion) -> None:
    assert ask(region, "repo", "list").split() == ["REPOSITORY", *REPOSITORIES]
    assert json.loads(ask(region, "repo", "list", "--json")) == {"repositories": REPOSITORIES}


def test_tags_of_all_pages(region: LocalRegion) -> None:
    assert ask(region, "tag", "list", "team/app").split() == ["TAG", *TAGS]
    assert json.loads(ask(region, "tag", "list", "team/app", "--json")) == {"name": "team/app", "tags": TAGS}


def test_another_registry_can_be_asked(region: LocalRegion, tmp_path: Path) -> None:
    for address in (region.address, f"http://{region.address}"):
        answer = meridian("repo", "list", "--registry", address, "--json", cwd=tmp_path)
        assert json.loads(answer.stdout) == {"repositories": REPOSITORIES}


def test_what_the_registry_refuses_is_one_line(region: LocalRegion) -> None:
    error = ask(region, "tag", "list", "no/such", code=1)
    assert error.count("\n") == 1
    assert "/v2/no/such/tags/list: 404: " in error


def test_the_state_hash_is_read_from_the_data(region: LocalRegion) -> None:
    applied, digest = ask(region, "state", "hash").split()
    assert int(applied) > 0
    assert len(digest) == 64
    assert json.loads(ask(region, "state", "hash", "--json")) == {"applied": int(applied), "hash": digest}


def test_the_first_region_of_this_machine_is_asked_by_default(region: LocalRegion, tmp_path: Path) -> None:
    data = str(region.folder.path.parent)
    answer = meridian("status", "--json", cwd=tmp_path, MERIDIAN_DATA=data, REGIONS="eu")
    assert json.loads(answer.stdout)["address"] == region.address


def test_status(region: LocalRegion) -> None:
    table = {line.split("  ")[0]: line.split()[-1] for line in ask(region, "status").splitlines()}
    assert (table["region"], table["node"], table["ready"], table["check: keeper"]) == ("eu", "eu-1", "yes", "ok")
    status = json.loads(ask(region, "status", "--json"))
    assert status["ready"] is True
    assert status["checks"]["state"] == "ok"
    assert status["applied"] == json.loads(ask(region, "state", "hash", "--json"))["applied"]


def test_a_node_that_is_not_ready_has_an_exit_code_of_its_own(region: LocalRegion) -> None:
    keeper = json.loads(ask(region, "status", "--json"))["keeper_pid"]
    os.kill(keeper, signal.SIGSTOP)
    try:
        deadline = clock.monotonic() + 20
        while (
            meridian("status", cwd=region.folder.path, MERIDIAN_CONFIG=str(region.folder.config_file)).returncode != 3
        ):
            assert clock.monotonic() < deadline
        status = json.loads(ask(region, "status", "--json", code=3))
        assert (status["ready"], status["checks"]["keeper"]) == (False, "does not answer")
    finally:
        os.kill(keeper, signal.SIGCONT)
