import os
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from consensus.state import State
from node.config import Cluster, Config, Listen, Node
from node.premises import (
    MAX_DATA_PATH_BYTES,
    MAX_SOCKET_PATH_BYTES,
    PremisesRefused,
    address_of,
    occupied,
    runtime_folder,
)


def configuration(data: Path, runtime: str = "", address: str = "127.0.0.1:0") -> Config:
    return Config(node=Node(data=str(data), runtime=runtime), listen=Listen(address=address, admin="127.0.0.1:0"))


def test_what_a_node_occupies(tmp_path: Path) -> None:
    data = tmp_path / "some" / "data"
    with occupied(configuration(data)) as premises:
        assert premises.runtime == data / "run"
        assert stat.S_IMODE(premises.runtime.stat().st_mode) == 0o700
        assert (data / "lock").read_text() == f"{os.getpid()}\n"
        for listener in (premises.registry, premises.admin):
            socket.create_connection(listener.getsockname()).close()
        assert address_of(premises.registry) == f"127.0.0.1:{premises.registry.getsockname()[1]}"
        identity = premises.identity
    with occupied(configuration(data)) as premises:
        assert premises.identity == identity


def member(data: Path, congestion_control: str = "") -> Config:
    alone = configuration(data)
    listen = msgspec.structs.replace(alone.listen, transfers="127.0.0.1:0")
    cluster = Cluster(id="c" * 32, members=("node-1=127.0.0.1:1",), congestion_control=congestion_control)
    return msgspec.structs.replace(alone, listen=listen, cluster=cluster)


def test_only_a_member_of_a_cluster_listens_for_others(tmp_path: Path) -> None:
    with occupied(configuration(tmp_path / "alone")) as premises:
        assert premises.transfers is None
    with occupied(member(tmp_path / "member")) as premises:
        assert premises.transfers
        socket.create_connection(premises.transfers.getsockname()).close()


def test_what_tcp_does_about_loss_can_be_chosen(tmp_path: Path) -> None:
    with occupied(member(tmp_path, "reno")) as premises:
        assert premises.transfers
        with socket.create_connection(premises.transfers.getsockname()):
            accepted, _ = premises.transfers.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(b"\0") == b"reno"
    with (
        pytest.raises(PremisesRefused, match=r"nosuch cannot be had here .* allowed are .*reno"),
        occupied(member(tmp_path, "nosuch")),
    ):
        pass


def test_stale_sockets_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "keeper.sock").write_bytes(b"")
    with occupied(configuration(tmp_path)):
        assert not (tmp_path / "run" / "keeper.sock").exists()


def test_sockets_move_where_their_path_is_short_enough(tmp_path: Path) -> None:
    data = tmp_path / ("d" * MAX_SOCKET_PATH_BYTES)
    folder = runtime_folder(configuration(data))
    assert folder.parent == Path("/tmp")
    assert folder == runtime_folder(configuration(data))
    assert folder != runtime_folder(configuration(data / "other"))
    assert runtime_folder(configuration(data, str(tmp_path))) == tmp_path
    assert runtime_folder(configuration(Path("/a,b"))).parent == Path("/tmp")


def test_a_data_folder_with_a_path_too_long_for_its_database_is_refused(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * 200)
    longest /= "b" * (MAX_DATA_PATH_BYTES - len(os.fsencode(longest)) - 1)
    with occupied(configuration(longest)):
        State.open(longest / "state", "c" * 32).close()
    with (
        pytest.raises(PremisesRefused, match="at most"),
        occupied(configuration(longest.with_name(longest.name + "b"))),
    ):
        pass


@pytest.mark.parametrize("name", ["d" * MAX_SOCKET_PATH_BYTES, "a,b"])
def test_a_runtime_folder_whose_path_a_socket_cannot_have_is_refused(tmp_path: Path, name: str) -> None:
    config = configuration(tmp_path, str(tmp_path / name))
    with pytest.raises(PremisesRefused, match="at most"), occupied(config):
        pass


def test_a_runtime_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(PremisesRefused, match="has to be a folder"),
        occupied(configuration(tmp_path, str(tmp_path / "link"))),
    ):
        pass


def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(PremisesRefused, match=r"192\.0\.2\.1:5000"),
        occupied(
            Config(
                node=Node(data=str(tmp_path)),
                listen=Listen(address="192.0.2.1:5000", admin="127.0.0.1:0", allow_remote_open=True),
            )
        ),
    ):
        pass


def test_ipv6(tmp_path: Path) -> None:
    with occupied(configuration(tmp_path, address="[::1]:0")) as premises:
        assert address_of(premises.registry).startswith("[::1]:")
