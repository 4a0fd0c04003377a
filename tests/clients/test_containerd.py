import json
import subprocess
from pathlib import Path

from tests.clients.containerd import Ctr
from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout, children_of
from tests.clients.workspace import Workspace


def imported(ctr: Ctr, images: Layout, name: str, folder: Path) -> str:
    """Import the multi-platform image under this name; returns its digest."""
    archive = folder / "image.tar"
    layout = Layout(folder / "layout")
    digest = layout.tag(name, layout.add_index(seed="multi"))
    subprocess.run(["tar", "--create", f"--file={archive}", f"--directory={layout.folder}", "."], check=True)
    ctr("images", "import", "--all-platforms", "--no-unpack", archive)
    assert digest == images.tags["multi"]["digest"]
    return digest


def test_push_and_pull_of_all_platforms(
    ctr: Ctr, inspection: Inspection, images: Layout, registry: str, repository: str, tmp_path: Path
) -> None:
    name = f"{registry}/{repository}:v1"
    digest = imported(ctr, images, name, tmp_path)
    ctr("images", "push", "--plain-http", name)
    assert inspection.tree(repository, "v1") == images.tree(digest)

    ctr("images", "rm", "--sync", name)
    ctr("content", "fetch", "--plain-http", "--all-platforms", name)
    held = ctr("content", "ls", "--quiet").splitlines()
    assert set(images.tree(digest)) <= set(held)
    ctr("images", "pull", "--plain-http", "--all-platforms", name)
    assert digest in ctr("images", "ls", f"name=={name}")


def test_pull_of_one_platform_by_digest_unpacks_its_files(
    ctr: Ctr, images: Layout, registry: str, repository: str, workspace: Workspace
) -> None:
    digest = images.tags["multi"]["digest"]
    destination = f"docker://{registry}/{repository}:v1"
    workspace.run("skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{images.folder}:multi", destination)
    pull = ("images", "pull", "--plain-http", "--platform=linux/arm64", "--print-chainid")
    said = ctr(*pull, f"{registry}/{repository}@{digest}")
    chain = next(line.split()[-1] for line in said.splitlines() if "chain ID" in line)
    (mount,) = json.loads(ctr("snapshots", "view", "--mounts", "looked-at", chain))
    root = Path(mount["Source"])
    assert (root / "etc/app.conf").read_text() == "architecture = arm64\n"
    assert not (root / "etc/passwd").exists()


def test_push_of_one_platform(
    ctr: Ctr, inspection: Inspection, images: Layout, registry: str, repository: str, tmp_path: Path
) -> None:
    name = f"{registry}/{repository}:v1"
    child = children_of(images.content(imported(ctr, images, name, tmp_path)))[1]
    ctr("images", "push", "--plain-http", "--platform=linux/arm64", name)
    assert inspection.tree(repository, "v1") == images.tree(child)


def test_push_to_another_repository_mounts(
    ctr: Ctr, inspection: Inspection, images: Layout, registry: str, repository: str, workspace: Workspace
) -> None:
    first, second = f"{registry}/{repository}:v1", f"{registry}/{repository}-second:v1"
    source = f"oci:{images.folder}:multi"
    workspace.run("skopeo", "copy", "--all", "--dest-tls-verify=false", source, f"docker://{first}")
    ctr("images", "pull", "--plain-http", "--all-platforms", first)
    ctr("images", "tag", first, second)
    trace = ctr("images", "push", "--plain-http", "--http-dump", second)
    requests = [line for line in trace.splitlines() if " HTTP/1." in line]
    assert len([line for line in requests if "POST /v2/" in line and "mount=sha256" in line]) == 9
    assert not [line for line in requests if "PUT /v2/" in line and "/blobs/" in line], "nothing is sent again"
    digest = images.tags["multi"]["digest"]
    assert inspection.tree(f"{repository}-second", "v1") == images.tree(digest)
