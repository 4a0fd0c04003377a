"""A node with TLS: its start, and the renewal of its certificate."""

import json
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.node.certificates import make_certificate
from tests.node.commands import meridian
from tests.node.running import RunningNode, push_image, running


def with_tls(node: RunningNode) -> None:
    text = node.config_file.read_text()
    node.config_file.write_text(text.replace("[listen]", '[listen]\ntls_certificate = "c.pem"\ntls_key = "k.pem"'))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running(tmp_path) as node:
        yield node


def shown(node: RunningNode) -> str:
    """The certificate that the registry presents to a new connection."""
    return ssl.get_server_certificate(("127.0.0.1", node.port), timeout=5)


def renew(folder: Path) -> str:
    make_certificate(folder / "c.pem", folder / "k.pem")
    return (folder / "c.pem").read_text()


def test_a_renewed_certificate_is_taken_at_a_reload(node: RunningNode, tmp_path: Path) -> None:
    first = renew(tmp_path)
    with_tls(node)
    node.signal(signal.SIGHUP)
    node.wait_for("node_reloaded")
    node.wait_for("gateway_stopped", 2)
    assert shown(node) == first
    second = renew(tmp_path)
    node.signal(signal.SIGHUP)
    node.wait_for("node_reloaded", 2)
    node.wait_for("gateway_stopped", 4)
    assert shown(node) == second
    trust = ssl.create_default_context(cafile=str(tmp_path / "c.pem"))
    with httpx.Client(base_url=f"https://127.0.0.1:{node.port}", verify=trust, trust_env=False) as client:
        push_image(client, "v1")


def test_a_certificate_that_cannot_be_used_changes_nothing(node: RunningNode) -> None:
    before = set(node.children())
    with_tls(node)
    node.signal(signal.SIGHUP)
    assert "c.pem: No such file" in node.wait_for("reload_refused")["reason"]
    assert set(node.children()) == before


def test_a_node_does_not_start_with_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    done = meridian("serve", cwd=tmp_path, MERIDIAN_LISTEN_TLS_CERTIFICATE="c.pem", MERIDIAN_LISTEN_TLS_KEY="k.pem")
    assert done.returncode == 1
    assert f"{tmp_path / 'c.pem'}: No such file" in json.loads(done.stderr)["reason"]
    assert list(tmp_path.iterdir()) == []
