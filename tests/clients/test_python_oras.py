import sys
from pathlib import Path

import pytest

from tests.clients.inspection import Inspection
from tests.clients.layouts import noise
from tests.clients.workspace import Workspace

# A program of its own, because the library reads the credentials of whoever's home it runs in.
PROGRAM = """
import sys
from oras.client import OrasClient

registry, action, target, *arguments = sys.argv[1:]
client = OrasClient(hostname=registry, insecure=True)
if action == "push":
    client.push(target=target, files=arguments, manifest_annotations={"made": "by python"}, quiet=True)
elif action == "push-chunked":
    client.push(target=target, files=arguments, do_chunked=True, chunk_size=400_000, quiet=True)
elif action == "pull":
    for path in client.pull(target=target, outdir=arguments[0]):
        print(path)
elif action == "tags":
    print("\\n".join(client.get_tags(target)))
elif action == "delete":
    print("\\n".join(client.delete_tags(target, arguments)))
"""


class Client:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __call__(self, action: str, target: str, *arguments: str) -> str:
        return self.workspace.run(sys.executable, "-c", PROGRAM, self.workspace.registry, action, target, *arguments)


@pytest.fixture
def client(workspace: Workspace) -> Client:
    (workspace.folder / "data.bin").write_bytes(noise("python", 1_500_000))
    (workspace.folder / "notes.txt").write_text("notes\n")
    return Client(workspace)


@pytest.fixture
def target(registry: str, repository: str) -> str:
    return f"{registry}/{repository}"


def test_push_and_pull(client: Client, inspection: Inspection, repository: str, target: str) -> None:
    client("push", f"{target}:v1", "data.bin:application/octet-stream", "notes.txt:text/plain")
    manifest = inspection.request("GET", f"{repository}/manifests/v1").json()
    assert manifest["annotations"] == {"made": "by python"}
    assert [each["mediaType"] for each in manifest["layers"]] == ["application/octet-stream", "text/plain"]
    inspection.tree(repository, "v1")

    back = Path(client.workspace.folder, "back")
    assert len(client("pull", f"{target}:v1", str(back)).splitlines()) == 2
    assert (back / "data.bin").read_bytes() == noise("python", 1_500_000)


def test_chunked_push(client: Client, inspection: Inspection, repository: str, target: str) -> None:
    client("push-chunked", f"{target}:v1", "data.bin:application/octet-stream")
    assert noise("python", 1_500_000) in inspection.tree(repository, "v1").values()


def test_tags_and_delete(client: Client, inspection: Inspection, repository: str, target: str) -> None:
    client("push", f"{target}:v1", "notes.txt:text/plain")
    client("push", f"{target}:v2", "data.bin:application/octet-stream")
    assert client("tags", target).splitlines() == ["v1", "v2"]
    assert client("delete", target, "v1") == "v1"
    assert inspection.tags(repository) == ["v2"]
