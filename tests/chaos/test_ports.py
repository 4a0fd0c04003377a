from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.ports import _reserve, free_addresses, free_base_port, free_ports

RESERVE = "import sys; from chaos.ports import _reserve; _reserve([0], [int(sys.argv[1])])"


def test_the_system_gives_them_to_no_connection() -> None:
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert max(ports) < least
    assert free_base_port() + 307 < least


def test_no_other_run_gets_them() -> None:
    for port in (free_base_port() + 1, *free_ports(2), int(free_addresses(1)[0].rpartition(":")[2])):
        done = subprocess.run([sys.executable, "-c", RESERVE, str(port)], capture_output=True, timeout=30, check=False)
        assert b"no free ports" in done.stderr
        with pytest.raises(RuntimeError, match="no free ports"):
            _reserve([0], [port])
