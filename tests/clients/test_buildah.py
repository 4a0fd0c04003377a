from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import DOCKER_MANIFEST, children_of, noise
from tests.clients.workspace import Workspace


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"{workspace.registry}/{repository}"


def build(workspace: Workspace, name: str, architecture: str) -> None:
    """Two layers: one committed image, and another on top of it."""
    (workspace.folder / "payload").write_bytes(noise(architecture, 500_000))
    (workspace.folder / "conf").write_text(architecture)
    base = workspace.run("buildah", "from", f"--arch={architecture}", "scratch")
    workspace.run("buildah", "add", base, "payload", "/srv/payload")
    workspace.run("buildah", "commit", "--quiet", "--rm", base, f"{name}-base")
    top = workspace.run("buildah", "from", "--pull-never", f"--arch={architecture}", f"localhost/{name}-base")
    workspace.run("buildah", "config", f"--arch={architecture}", "--os=linux", "--entrypoint=/srv/payload", top)
    workspace.run("buildah", "add", top, "conf", "/etc/conf")
    workspace.run("buildah", "commit", "--quiet", "--rm", top, name)


def test_build_push_and_start_from_it(
    workspace: Workspace, inspection: Inspection, repository: str, target: str
) -> None:
    build(workspace, "built", "amd64")
    workspace.run("buildah", "push", "--tls-verify=false", "--digestfile=pushed", "built", f"docker://{target}:v1")
    assert inspection.digest(repository, "v1") == (workspace.folder / "pushed").read_text()

    workspace.run("buildah", "rmi", "--all", "--force")
    container = workspace.run("buildah", "from", "--tls-verify=false", f"{target}:v1")
    folder = Path(workspace.run("buildah", "mount", container))
    assert (folder / "srv/payload").read_bytes() == noise("amd64", 500_000)
    assert (folder / "etc/conf").read_text() == "amd64"
    workspace.run("buildah", "umount", container)
    workspace.run("buildah", "rm", container)


def test_docker_format(workspace: Workspace, inspection: Inspection, repository: str, target: str) -> None:
    build(workspace, "built", "amd64")
    workspace.run("buildah", "push", "--tls-verify=false", "--format=v2s2", "built", f"docker://{target}:v1")
    answer = inspection.request("GET", f"{repository}/manifests/v1")
    assert answer.headers["Content-Type"] == DOCKER_MANIFEST
    inspection.tree(repository, "v1")


def test_a_manifest_list_of_two_platforms(
    workspace: Workspace, inspection: Inspection, repository: str, target: str
) -> None:
    workspace.run("buildah", "manifest", "create", "both")
    for architecture in ("amd64", "arm64"):
        build(workspace, architecture, architecture)
        workspace.run("buildah", "manifest", "add", f"--arch={architecture}", "both", architecture)
    workspace.run("buildah", "manifest", "push", "--all", "--tls-verify=false", "both", f"docker://{target}:both")
    index = inspection.request("GET", f"{repository}/manifests/both")
    assert {each["platform"]["architecture"] for each in index.json()["manifests"]} == {"amd64", "arm64"}
    assert len(children_of(index.content)) == 2
    inspection.tree(repository, "both")
