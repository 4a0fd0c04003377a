import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import INDEX, Layout, children_of, tagged
from tests.clients.workspace import Workspace


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"{workspace.registry}/{repository}"


@pytest.fixture
def multi(workspace: Workspace, images: Layout, target: str, tmp_path: Path) -> str:
    """The digest of a multi-platform image pushed as `v1`."""
    single = Layout(tmp_path / "multi")
    digest = single.tag("v1", single.add_index(seed="multi"))
    workspace.run("crane", "push", "--insecure", tmp_path / "multi", f"{target}:v1")
    assert digest == images.tags["multi"]["digest"]
    return digest


def test_push_and_pull_of_all_platforms(
    workspace: Workspace, inspection: Inspection, images: Layout, repository: str, target: str, multi: str
) -> None:
    assert inspection.tree(repository, "v1") == images.tree(multi)
    workspace.run("crane", "pull", "--format=oci", f"{target}:v1", "back")
    assert tagged(workspace.folder / "back") == multi
    assert Layout(workspace.folder / "back").tree(multi) == images.tree(multi)
    workspace.run("crane", "validate", f"--remote={target}:v1")


def test_reads(workspace: Workspace, images: Layout, repository: str, target: str, multi: str) -> None:
    assert workspace.run("crane", "digest", f"{target}:v1") == multi
    assert workspace.run("crane", "manifest", f"{target}:v1").encode() == images.content(multi)
    arm = json.loads(workspace.run("crane", "config", "--platform=linux/arm64", f"{target}:v1"))
    assert arm["architecture"] == "arm64"
    assert repository in workspace.run("crane", "catalog", workspace.registry).splitlines()
    workspace.run("crane", "export", "--platform=linux/arm64", f"{target}:v1", "files.tar")
    with tarfile.open(workspace.folder / "files.tar") as files:
        assert "etc/passwd" not in files.getnames()
        configuration = files.extractfile("etc/app.conf")
        assert configuration is not None
        assert configuration.read() == b"architecture = arm64\n"


def test_tags_are_listed_over_pages(workspace: Workspace, target: str, multi: str) -> None:
    names = [f"r{n:02}" for n in range(12)]
    for name in names:
        workspace.run("crane", "tag", f"{target}:v1", name)
    assert workspace.run("crane", "ls", target).splitlines() == [*names, "v1"]


def test_copy_mounts_into_another_repository(
    workspace: Workspace, inspection: Inspection, images: Layout, repository: str, target: str, multi: str
) -> None:
    log = workspace.attempt("crane", "--verbose", "cp", f"{target}:v1", f"{target}/deep/er:v1").stderr
    assert log.count("mounted blob:") == 9, "seven different layers and two configurations"
    assert "PATCH /v2/" not in log
    assert inspection.tree(f"{repository}/deep/er", "v1") == images.tree(multi)


def test_append_and_mutate(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, multi: str
) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("added"), io.BytesIO())
    (workspace.folder / "added.tar").write_bytes(content.getvalue())
    base = ("--platform=linux/amd64", f"--base={target}:v1")
    workspace.run("crane", "append", *base, "--new_layer=added.tar", f"--new_tag={target}:appended")
    appended = inspection.request("GET", f"{repository}/manifests/appended").json()
    assert len(appended["layers"]) == 5

    workspace.run(
        "crane", "mutate", "--label=checked=yes", "--annotation=a=b", f"--tag={target}:mutated", f"{target}:appended"
    )
    mutated = inspection.request("GET", f"{repository}/manifests/mutated").json()
    assert mutated["annotations"] == {"a": "b"}
    inspection.tree(repository, "mutated")


def test_an_index_is_put_together(
    workspace: Workspace, inspection: Inspection, images: Layout, repository: str, target: str, multi: str
) -> None:
    amd64, arm64 = children_of(images.content(multi))
    members = (f"--manifest={target}@{amd64}", f"--manifest={target}@{arm64}")
    workspace.run("crane", "index", "append", *members, f"--tag={target}:joined")
    joined = inspection.request("GET", f"{repository}/manifests/joined")
    assert joined.headers["Content-Type"] == INDEX
    assert set(children_of(joined.content)) == {amd64, arm64}


def test_deletes(workspace: Workspace, inspection: Inspection, repository: str, target: str, multi: str) -> None:
    workspace.run("crane", "tag", f"{target}:v1", "v2")
    workspace.run("crane", "delete", f"{target}:v2")
    assert inspection.tags(repository) == ["v1"]
    workspace.run("crane", "delete", f"{target}@{multi}")
    assert inspection.tags(repository) == []
    assert workspace.attempt("crane", "manifest", f"{target}:v1").returncode != 0
