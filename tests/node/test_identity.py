import json
from pathlib import Path

import pytest

from node.config import Cluster, Config, Node
from node.identity import Identity, IdentityRefused


def test_drawn_once_and_kept(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path)
    assert Identity.load_or_create(tmp_path) == first
    assert len({first.cluster_id, first.node_id, first.store_id}) == 3
    assert len(first.upload_secret) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert Identity.load_or_create(tmp_path / "a") != Identity.load_or_create(tmp_path / "b")


def test_a_leftover_of_a_crash_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "identity.new").write_bytes(b"half")
    Identity.load_or_create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("name", ["wal", "state", "blobs"])
def test_missing_beside_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(IdentityRefused, match="put the file back"):
        Identity.load_or_create(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"format":1,"cluster_id":"x"}'])
def test_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity").write_bytes(content)
    with pytest.raises(IdentityRefused, match="is damaged"):
        Identity.load_or_create(tmp_path)


def test_a_future_format_is_refused(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    path = tmp_path / "identity"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3, "more": True}))
    with pytest.raises(IdentityRefused, match="format 3"):
        Identity.load_or_create(tmp_path)


CLUSTER, OTHER = "c" * 32, "d" * 32


def test_a_member_has_the_clusters_id_and_keeps_its_name(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path, cluster_id=CLUSTER, member="eu-1")
    assert (first.cluster_id, first.member) == (CLUSTER, "eu-1")
    assert Identity.load_or_create(tmp_path, cluster_id=CLUSTER, member="eu-1") == first


def test_the_configuration_says_which(tmp_path: Path) -> None:
    alone = Config(node=Node(name="eu-1", data=str(tmp_path / "a")))
    members = Config(
        node=Node(name="eu-1", data=str(tmp_path / "b")), cluster=Cluster(id=CLUSTER, members=("eu-1=127.0.0.1:1",))
    )
    for folder in "ab":
        (tmp_path / folder).mkdir()
    assert Identity.of(alone).member == ""
    assert (Identity.of(members).cluster_id, Identity.of(members).member) == (CLUSTER, "eu-1")


@pytest.mark.parametrize(
    ("before", "now", "advice"),
    [
        (("", ""), (CLUSTER, "eu-1"), r"stands alone.*take \[cluster\] members out"),
        ((CLUSTER, "eu-1"), ("", ""), r"put \[cluster\] members back"),
        ((CLUSTER, "eu-1"), (OTHER, "eu-1"), "a data folder of its own"),
        ((CLUSTER, "eu-1"), (CLUSTER, "us-1"), "belongs to eu-1 of cluster c.*a data folder of its own"),
    ],
)
def test_the_data_of_another_are_refused(
    tmp_path: Path, before: tuple[str, str], now: tuple[str, str], advice: str
) -> None:
    Identity.load_or_create(tmp_path, cluster_id=before[0], member=before[1])
    with pytest.raises(IdentityRefused, match=advice):
        Identity.load_or_create(tmp_path, cluster_id=now[0], member=now[1])
