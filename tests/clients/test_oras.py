import json

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout, digest_of, noise
from tests.clients.workspace import Workspace

PLAIN = "--plain-http"
TYPE = "application/vnd.example.report"


@pytest.fixture
def target(workspace: Workspace, repository: str) -> str:
    return f"{workspace.registry}/{repository}"


@pytest.fixture
def artifact(workspace: Workspace, target: str) -> dict[str, bytes]:
    """Two files pushed as the artifact `v1` with annotations; their names and bytes."""
    files = {"data.bin": noise("oras", 2_000_000), "notes.txt": b"some notes\n"}
    for name, content in files.items():
        (workspace.folder / name).write_bytes(content)
    names = [f"{name}:application/octet-stream" for name in files]
    annotations = ("--annotation=org.example.kind=test", "--annotation=org.example.text=déjà vu")
    workspace.run("oras", "push", PLAIN, f"--artifact-type={TYPE}", *annotations, f"{target}:v1", *names)
    return files


def test_push_and_pull(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, artifact: dict[str, bytes]
) -> None:
    manifest = json.loads(workspace.run("oras", "manifest", "fetch", PLAIN, f"{target}:v1"))
    assert manifest["artifactType"] == TYPE
    assert manifest["annotations"]["org.example.text"] == "déjà vu"
    workspace.run("oras", "pull", PLAIN, f"{target}:v1", "--output=back")
    assert {name: (workspace.folder / "back" / name).read_bytes() for name in artifact} == artifact
    assert workspace.run("oras", "resolve", PLAIN, f"{target}:v1") == inspection.digest(repository, "v1")


def test_attach_and_discover(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, artifact: dict[str, bytes]
) -> None:
    for kind in ("signature", "sbom"):
        (workspace.folder / kind).write_text(kind)
        described = (f"--artifact-type=application/vnd.example.{kind}", f"--annotation=kind={kind}")
        workspace.run("oras", "attach", PLAIN, *described, f"{target}:v1", f"{kind}:text/plain")

    discover = ("oras", "discover", PLAIN, "--distribution-spec=v1.1-referrers-api", "--format=json")
    found = json.loads(workspace.run(*discover, f"{target}:v1"))["referrers"]
    assert {each["artifactType"].rsplit(".", 1)[-1]: each["annotations"]["kind"] for each in found} == {
        "signature": "signature",
        "sbom": "sbom",
    }
    filtered = workspace.run(*discover, "--artifact-type=application/vnd.example.sbom", f"{target}:v1")
    only = json.loads(filtered)["referrers"]
    assert [each["artifactType"] for each in only] == ["application/vnd.example.sbom"]
    assert inspection.tags(repository) == ["v1"], "no fallback tag: the registry has the referrers API"

    workspace.run(
        "oras", "cp", "--recursive", "--from-plain-http", "--to-plain-http", f"{target}:v1", f"{target}/copy:v1"
    )
    copied = json.loads(workspace.run(*discover, f"{target}/copy:v1"))["referrers"]
    assert {each["digest"] for each in copied} == {each["digest"] for each in found}

    workspace.run("oras", "manifest", "delete", PLAIN, "--force", f"{target}@{only[0]['digest']}")
    left = json.loads(workspace.run(*discover, f"{target}:v1"))["referrers"]
    assert {each["digest"] for each in left} == {each["digest"] for each in found} - {only[0]["digest"]}


def test_tags_listing_copy_and_delete(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, artifact: dict[str, bytes]
) -> None:
    workspace.run("oras", "tag", PLAIN, f"{target}:v1", "v2", "latest")
    assert workspace.run("oras", "repo", "tags", PLAIN, target).splitlines() == ["latest", "v1", "v2"]
    listed = workspace.run("oras", "repo", "ls", PLAIN, f"{workspace.registry}/clients").splitlines()
    assert repository.removeprefix("clients/") in listed
    workspace.run("oras", "cp", "--from-plain-http", "--to-plain-http", f"{target}:v2", f"{target}-copy:v9")
    assert inspection.tree(f"{repository}-copy", "v9") == inspection.tree(repository, "v1")
    workspace.run("oras", "manifest", "delete", PLAIN, "--force", f"{target}:latest")
    assert inspection.tags(repository) == []


def test_blobs(workspace: Workspace, inspection: Inspection, repository: str, target: str) -> None:
    content = noise("blob", 300_000)
    digest = digest_of(content)
    (workspace.folder / "blob").write_bytes(content)
    workspace.run("oras", "blob", "push", PLAIN, target, "blob")
    workspace.run("oras", "blob", "fetch", PLAIN, "--output=fetched", f"{target}@{digest}")
    assert (workspace.folder / "fetched").read_bytes() == content
    workspace.run("oras", "blob", "delete", PLAIN, "--force", f"{target}@{digest}")
    assert not inspection.exists(f"{repository}/blobs/{digest}")


def test_manifests_and_indexes(
    workspace: Workspace, inspection: Inspection, images: Layout, repository: str, target: str
) -> None:
    source = ("--from-oci-layout", f"{images.folder}:multi")
    workspace.run("oras", "cp", *source, "--to-plain-http", f"{target}:multi")
    digest = images.tags["multi"]["digest"]
    assert inspection.tree(repository, "multi") == images.tree(digest)
    child = ("--descriptor", "--platform=linux/arm64", f"{target}:multi")
    described = json.loads(workspace.run("oras", "manifest", "fetch", PLAIN, *child))
    workspace.run("oras", "manifest", "index", "create", PLAIN, f"{target}:joined", described["digest"])
    index = inspection.request("GET", f"{repository}/manifests/joined").json()
    assert [each["digest"] for each in index["manifests"]] == [described["digest"]]
    (workspace.folder / "manifest.json").write_bytes(images.content(digest))
    workspace.run("oras", "manifest", "push", PLAIN, f"{target}:again", "manifest.json")
    assert inspection.digest(repository, "again") == digest


def test_backup_and_restore(
    workspace: Workspace, inspection: Inspection, repository: str, target: str, artifact: dict[str, bytes]
) -> None:
    workspace.run("oras", "backup", PLAIN, "--output=saved", f"{target}:v1")
    workspace.run("oras", "restore", PLAIN, "--input=saved", f"{target}/restored:v1")
    assert inspection.tree(f"{repository}/restored", "v1") == inspection.tree(repository, "v1")


def test_login(workspace: Workspace) -> None:
    login = ("oras", "login", PLAIN, "--username=someone", "--password-stdin", workspace.registry)
    assert "Login Succeeded" in workspace.run(*login, stdin="secret")
