from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import DOCKER_LIST, DOCKER_MANIFEST, Layout, tagged
from tests.clients.workspace import Workspace

PLAIN = ("--src-tls-verify=false", "--dest-tls-verify=false")


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"docker://{workspace.registry}/{repository}"


def copy(workspace: Workspace, source: str, destination: str, *options: str) -> str:
    """Copy an image; returns what skopeo said while it did."""
    done = workspace.attempt("skopeo", "--debug", "copy", *PLAIN, *options, source, destination)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_image_comes_back_byte_for_byte(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str, tmp_path: Path
) -> None:
    digest = images.tags["single"]["digest"]
    copy(workspace, f"oci:{images.folder}:single", f"{target}:v1")
    assert inspection.tree(repository, "v1") == images.tree(digest)

    copy(workspace, f"{target}:v1", f"oci:{tmp_path}/back:v1")
    assert tagged(tmp_path / "back") == digest
    assert Layout(tmp_path / "back").tree(digest) == images.tree(digest)


def test_all_platforms_of_an_index_come_back_byte_for_byte(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str, tmp_path: Path
) -> None:
    digest = images.tags["multi"]["digest"]
    copy(workspace, f"oci:{images.folder}:multi", f"{target}:v1", "--all")
    assert inspection.tree(repository, "v1") == images.tree(digest)

    copy(workspace, f"{target}@{digest}", f"oci:{tmp_path}/back:v1", "--all")
    assert Layout(tmp_path / "back").tree(digest) == images.tree(digest)

    copy(workspace, f"{target}:v1", f"dir:{tmp_path}/arm", "--override-arch=arm64")
    assert b"arm64" in b"".join(
        path.read_bytes() for path in (tmp_path / "arm").iterdir() if path.stat().st_size < 4096
    )


def test_conversion_to_docker_schema_2_and_back(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    copy(workspace, f"oci:{images.folder}:multi", f"{target}:docker", "--all", "--format=v2s2")
    listed = inspection.request("GET", f"{repository}/manifests/docker")
    assert listed.headers["Content-Type"] == DOCKER_LIST
    assert {each["mediaType"] for each in listed.json()["manifests"]} == {DOCKER_MANIFEST}
    inspection.tree(repository, "docker")

    copy(workspace, f"{target}:docker", f"{target}:oci", "--all", "--format=oci")
    restored = set(inspection.tree(repository, "oci"))
    layers = {digest for digest, content in images.tree(images.tags["multi"]["digest"]).items() if content[:1] != b"{"}
    assert layers <= restored


def test_copy_between_repositories_mounts_layers(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    copy(workspace, f"oci:{images.folder}:multi", f"{target}:v1", "--all")
    said = copy(workspace, f"{target}:v1", f"{target}-copy/nested:v1", "--all")
    # Four layers each, of which one is shared. What it knows of where else a layer is comes from a cache of its own,
    # which other processes of the machine use as well and may hold locked: what it asks for counts.
    asked, granted = said.count("Trying to mount"), said.count("... mount OK")
    assert 4 <= granted == asked, [line for line in said.splitlines() if "mount" in line.lower()]
    assert inspection.tree(f"{repository}-copy/nested", "v1") == inspection.tree(repository, "v1")


def test_inspect_list_and_delete(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    for tag in ("v2", "v1", "latest"):
        copy(workspace, f"oci:{images.folder}:single", f"{target}:{tag}")
    digest = images.tags["single"]["digest"]
    assert workspace.run("skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", f"{target}:v1") == digest
    raw = workspace.run("skopeo", "inspect", "--tls-verify=false", "--raw", f"{target}:v1")
    assert raw.encode() == images.content(digest)
    assert '"seed": "single"' in workspace.run("skopeo", "inspect", "--tls-verify=false", "--config", f"{target}:v1")

    listing = workspace.run("skopeo", "list-tags", "--tls-verify=false", target)
    assert all(f'"{tag}"' in listing for tag in ("latest", "v1", "v2"))

    workspace.run("skopeo", "delete", "--tls-verify=false", f"{target}:v1")
    assert not inspection.exists(f"{repository}/manifests/{digest}")
    assert inspection.tags(repository) == []
    assert workspace.attempt("skopeo", "inspect", "--tls-verify=false", f"{target}:v1").returncode != 0


def test_sync_of_a_whole_repository(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    copy(workspace, f"oci:{images.folder}:single", f"{target}:one")
    copy(workspace, f"oci:{images.folder}:multi", f"{target}:two", "--all")
    source, destination = target.removeprefix("docker://"), f"{workspace.registry}/mirror"
    workspace.run("skopeo", "sync", *PLAIN, "--all", "--src=docker", "--dest=docker", source, destination)
    name = f"mirror/{repository.rsplit('/', 1)[-1]}"
    assert inspection.tree(name, "one") == images.tree(images.tags["single"]["digest"])
    assert inspection.tree(name, "two") == images.tree(images.tags["multi"]["digest"])
