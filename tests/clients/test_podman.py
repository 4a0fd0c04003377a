from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout, children_of
from tests.clients.workspace import Workspace


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"{workspace.registry}/{repository}"


def test_push_pull_and_push_again(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    workspace.run("podman", "pull", "--quiet", f"oci:{images.folder}:single")
    image = workspace.run("podman", "images", "--quiet", "--no-trunc")
    workspace.run("podman", "push", "--tls-verify=false", "--digestfile=pushed", image, f"docker://{target}:v1")
    pushed = (workspace.folder / "pushed").read_text()
    assert inspection.digest(repository, "v1") == pushed

    workspace.run("podman", "rmi", "--all", "--force")
    workspace.run("podman", "pull", "--quiet", "--tls-verify=false", f"{target}:v1")
    assert workspace.run("podman", "images", "--quiet", "--no-trunc") == image
    repeated = workspace.run("podman", "image", "inspect", "--format={{.Digest}}", f"{target}:v1")
    assert repeated == pushed

    workspace.run("podman", "tag", f"{target}:v1", f"{target}:v2")
    workspace.run("podman", "push", "--tls-verify=false", f"{target}:v2")
    assert set(inspection.tags(repository)) == {"v1", "v2"}


def test_files_of_every_platform_are_what_was_packed(
    workspace: Workspace, images: Layout, target: str, tmp_path: Path
) -> None:
    workspace.run("podman", "manifest", "create", "packed", f"oci:{images.folder}:single")
    source = f"oci:{images.folder}:multi"
    workspace.run("skopeo", "copy", "--all", "--dest-tls-verify=false", source, f"docker://{target}:multi")
    for architecture in ("amd64", "arm64"):
        pull = ("podman", "pull", "--quiet", "--tls-verify=false", f"--arch={architecture}", f"{target}:multi")
        image = workspace.run(*pull)
        folder = Path(workspace.run("podman", "image", "mount", image))
        assert (folder / "etc/app.conf").read_text() == f"architecture = {architecture}\n"
        assert not (folder / "etc/passwd").exists()
        assert len(list((folder / "usr/share/app").iterdir())) == 200
        workspace.run("podman", "image", "umount", image)


def test_a_manifest_list_is_pushed_with_its_images(
    workspace: Workspace, images: Layout, inspection: Inspection, repository: str, target: str
) -> None:
    workspace.run("podman", "manifest", "create", "both")
    workspace.run("podman", "manifest", "add", "--all", "both", f"oci:{images.folder}:multi")
    workspace.run("podman", "manifest", "push", "--all", "--tls-verify=false", "both", f"docker://{target}:both")
    index = inspection.request("GET", f"{repository}/manifests/both").content
    assert set(children_of(index)) == set(children_of(images.content(images.tags["multi"]["digest"])))
    found = workspace.run("podman", "search", "--list-tags", "--tls-verify=false", target)
    assert "both" in found


def test_login_and_logout(workspace: Workspace) -> None:
    login = ("podman", "login", "--tls-verify=false", "--username=someone", "--password-stdin", workspace.registry)
    assert "Login Succeeded" in workspace.run(*login, stdin="secret")
    workspace.run("podman", "logout", workspace.registry)
