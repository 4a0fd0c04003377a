import json
from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import DOCKER_LIST, Layout
from tests.clients.workspace import Workspace


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"{workspace.registry}/{repository}"


@pytest.fixture
def children(workspace: Workspace, inspection: Inspection, repository: str, target: str, tmp_path: Path) -> list[str]:
    """A Docker image for each architecture, in a repository of its own: their references by digest."""
    layout = Layout(tmp_path / "docker")
    references = []
    for architecture in ("amd64", "arm64"):
        layout.tag(architecture, layout.add_image(architecture, seed="docker"))
        source = f"oci:{tmp_path}/docker:{architecture}"
        destination = f"docker://{target}-{architecture}:v1"
        workspace.run("skopeo", "copy", "--format=v2s2", "--dest-tls-verify=false", source, destination)
        references.append(f"{target}-{architecture}@{inspection.digest(f'{repository}-{architecture}', 'v1')}")
    return references


def test_login_and_logout(workspace: Workspace) -> None:
    login = ("docker", "login", "--username=someone", "--password-stdin", workspace.registry)
    assert "Login Succeeded" in workspace.run(*login, stdin="secret")
    kept = json.loads((workspace.folder / ".docker/config.json").read_text())
    assert workspace.registry in kept["auths"]
    workspace.run("docker", "logout", workspace.registry)


def test_a_manifest_list_is_made_and_pushed(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, children: list[str]
) -> None:
    name = f"{target}:both"
    workspace.run("docker", "manifest", "create", "--insecure", name, *children)
    workspace.run("docker", "manifest", "annotate", "--variant=v8", name, children[1])
    pushed = workspace.run("docker", "manifest", "push", "--insecure", "--purge", name)
    assert inspection.digest(repository, "both") == pushed.splitlines()[-1]

    answer = inspection.request("GET", f"{repository}/manifests/both")
    assert answer.headers["Content-Type"] == DOCKER_LIST
    platforms = [each["platform"] for each in answer.json()["manifests"]]
    assert [(each["architecture"], each.get("variant")) for each in platforms] == [("amd64", None), ("arm64", "v8")]
    inspection.tree(repository, "both")

    inspected = json.loads(workspace.run("docker", "manifest", "inspect", "--insecure", name))
    assert inspected == answer.json()
    verbose = json.loads(workspace.run("docker", "manifest", "inspect", "--insecure", "--verbose", name))
    assert len(verbose) == 2
