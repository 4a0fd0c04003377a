"""A network namespace for each region of a lab: an interface to the emulated WAN, and one to this machine.

They have no name and no mount. A namespace lives as long as a process in it or a descriptor of it, and all its
interfaces with it: when the process that made them ends, however it does, nothing is left. (A connection that ended in
mid-air keeps the kernel's share of it for another minute or two.)

A region has one address, 198.18.N.i (198.18.0.0/15 is set aside for test networks), N the lab's own on this machine.
The other regions reach it through the WAN (`wan0`, a TUN interface), the machine through a pair of veth that nothing
delays. There is no other way in or out: no route leads further.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Self, TypeVar

from chaos.claims import claim
from chaos.lab.errors import NamespacesRefused
from chaos.lab.topology import CongestionControl

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_TUN = Path("/dev/net/tun")
_TOOLS = ("ip", "nsenter")
_MOST_LABS = 254
_MTU_BYTES = 1500
_QUEUED_PACKETS = 2000  # between the region and the carrier while that has no processor: not part of the emulation
_SYSCTLS = {  # so that neither the buffers nor what earlier connections found out decide how fast a connection is
    "tcp_rmem": "4096 131072 67108864",
    "tcp_wmem": "4096 65536 67108864",
    "tcp_no_metrics_save": "1",
}
_libc = ctypes.CDLL(None, use_errno=True)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Namespace:
    """One region's: descriptors of the namespace and of the WAN's end of its TUN interface, and its only address."""

    descriptor: int
    tun: int
    address: str

    @property
    def entry(self) -> tuple[str, ...]:
        """The command in front of one that is to run in it, while this process lives."""
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self.descriptor}", "--")


def namespaces_missing() -> str:
    """Why there can be none here; nothing if there can."""
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    try:
        _TUN.open("r+b", buffering=0).close()
        _in_a_thread(_unshare)
    except (OSError, NamespacesRefused) as error:
        return str(error)
    return ""


class Namespaces:
    """One for each region, while the context lasts; raises NamespacesRefused. `lab_id` makes the names of interfaces
    unique: hexadecimal, of which six digits are used."""

    def __init__(self, congestion_control: Mapping[str, CongestionControl], lab_id: str) -> None:
        self._congestion_control = congestion_control
        self._lab_id = lab_id
        self._stack = contextlib.ExitStack()
        self.regions: dict[str, Namespace] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            number = stack.enter_context(_claim())
            stack.callback(remove_interfaces, self._lab_id)
            addresses = {name: f"198.18.{number}.{at}" for at, name in enumerate(self._congestion_control, 1)}
            for at, (name, address) in enumerate(addresses.items()):
                others = [other for other in addresses.values() if other != address]
                plan = _Plan(f"{_interfaces(self._lab_id)}{at}", address, others, self._congestion_control[name])
                self.regions[name] = _in_a_thread(lambda plan=plan: _make(plan, stack))  # type: ignore[misc]
                _ip(plan.outside)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


@dataclass(frozen=True, slots=True)
class _Plan:
    interface: str
    address: str
    others: Iterable[str]
    congestion_control: CongestionControl

    @property
    def machine(self) -> str:
        """The address that this machine has for the regions."""
        return f"{self.address.rpartition('.')[0]}.254"

    @property
    def inside(self) -> list[str]:
        """Orders to `ip` in the namespace. What TCP does about loss belongs to the routes, as the system-wide list of
        what a namespace may set for all of its sockets is not ours to change; a socket may still choose another."""
        return [
            "link set lo up",
            f"link add name host0 type veth peer name {self.interface} netns {os.getpid()}",
            "link set host0 up",
            f"link set wan0 mtu {_MTU_BYTES} txqueuelen {_QUEUED_PACKETS} up",
            f"address add {self.address}/32 dev wan0",
            f"route add {self.machine}/32 dev host0 src {self.address}",
            *(f"route add {other}/32 dev wan0 congctl {self.congestion_control}" for other in self.others),
        ]

    @property
    def outside(self) -> list[str]:
        """Orders to `ip` on this machine."""
        return [
            f"address add {self.machine}/32 dev {self.interface}",
            f"link set {self.interface} up",
            f"route add {self.address}/32 dev {self.interface} src {self.machine}",
        ]


def _make(plan: _Plan, stack: contextlib.ExitStack) -> Namespace:
    """For a thread of its own: it leaves this machine's namespace for good."""
    _unshare()
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    stack.callback(os.close, descriptor)
    tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, tun)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wan0", _IFF_TUN | _IFF_NO_PI))
    for name, value in _SYSCTLS.items():
        Path("/proc/sys/net/ipv4", name).write_text(value)
    _ip(plan.inside)
    return Namespace(descriptor, tun, plan.address)


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NamespacesRefused(f"no network namespace for this user: {os.strerror(number)}")


def _in_a_thread(work: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@contextlib.contextmanager
def _claim() -> Iterator[int]:
    """A number that no other lab of this machine has while the context lasts."""
    start = SystemRandom().randrange(_MOST_LABS)
    for number in ((start + step) % _MOST_LABS for step in range(_MOST_LABS)):
        try:
            mark = claim(f"lab-{number}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        with mark:
            yield number
        return
    raise NamespacesRefused(f"{_MOST_LABS} labs are up on this machine: no more")


def _ip(orders: Iterable[str]) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(orders), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NamespacesRefused(f"ip: {done.stderr.strip()}")


def remove_interfaces(lab_id: str) -> None:
    """Those of a lab on this machine, with their peers in the regions. The kernel does so by itself when the lab has
    ended, but some time later."""
    for name in Path("/sys/class/net").glob(f"{_interfaces(lab_id)}*"):
        subprocess.run(["ip", "link", "delete", name.name], check=False, capture_output=True)


def _interfaces(lab_id: str) -> str:
    return f"mlab{lab_id[:6]}-"
