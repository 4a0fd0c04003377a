"""Image after image pushed and pulled by the same clients. MERIDIAN_IMAGES says how many; a soak takes 100."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients.containerd import Ctr
from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout, tagged
from tests.clients.workspace import Workspace

IMAGES = int(os.environ.get("MERIDIAN_IMAGES", "2"))

pytestmark = pytest.mark.timeout(120 + 10 * IMAGES)


def image(folder: Path, seed: str) -> tuple[str, str]:
    """A new image as skopeo names it, and its digest."""
    images = Layout(folder)
    return f"oci:{folder}:it", images.tag("it", images.add_image(seed=seed))


def test_skopeo(workspace: Workspace, repository: str, tmp_path: Path) -> None:
    for number in range(2 * IMAGES):
        source, digest = image(tmp_path / f"{number}", f"{repository}/{number}")
        target = f"docker://{workspace.registry}/{repository}:v{number}"
        workspace.run("skopeo", "copy", "--dest-tls-verify=false", source, target)
        workspace.run("skopeo", "copy", "--src-tls-verify=false", target, f"oci:{tmp_path}/{number}-back:it")
        assert tagged(tmp_path / f"{number}-back") == digest


def test_podman(workspace: Workspace, inspection: Inspection, repository: str, tmp_path: Path) -> None:
    for number in range(max(1, IMAGES // 2)):
        source, _ = image(tmp_path / f"{number}", f"{repository}/{number}")
        target = f"{workspace.registry}/{repository}:v{number}"
        workspace.run("podman", "pull", "--quiet", source)
        held = workspace.run("podman", "images", "--quiet", "--no-trunc")
        workspace.run("podman", "push", "--tls-verify=false", held, f"docker://{target}")
        workspace.run("podman", "rmi", "--all", "--force")
        workspace.run("podman", "pull", "--quiet", "--tls-verify=false", target)
        assert workspace.run("podman", "images", "--quiet", "--no-trunc") == held
        assert inspection.exists(f"{repository}/manifests/v{number}")
        workspace.run("podman", "rmi", "--all", "--force")


def test_containerd(ctr: Ctr, workspace: Workspace, inspection: Inspection, repository: str, tmp_path: Path) -> None:
    for number in range(max(1, IMAGES // 2)):
        source, digest = image(tmp_path / f"{number}", f"{repository}/{number}")
        name = f"{workspace.registry}/{repository}:v{number}"
        workspace.run("skopeo", "copy", source, f"oci-archive:{tmp_path}/{number}.tar:{name}")
        ctr("images", "import", "--no-unpack", tmp_path / f"{number}.tar")
        ctr("images", "push", "--plain-http", name)
        assert inspection.digest(repository, f"v{number}") == digest
        ctr("images", "rm", "--sync", name)
        ctr("images", "pull", "--plain-http", name)
        ctr("images", "rm", "--sync", name)
