"""The one release of pysyncobj that `core` overrides private parts of, checked before anything of it is used.

Three of its globals are replaced: pickle (nothing may be unpickled from disk or network), the factory of journals (ours
are handed over ready-made), and the clock (the house's, or a simulation's).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pysyncobj.syncobj as syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

from consensus import clock

RELEASE = "0.3.17"
SOURCE_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"

__all__ = ["Node", "SyncObj", "SyncObjConf", "Transport", "now", "pin", "use_clock"]


class WrongRelease(ImportError):
    """The pysyncobj installed is not the one whose private parts are known here."""


class _NoPickle:
    """Stands where the module pickle stood."""

    @staticmethod
    def dumps(*_: Any) -> NoReturn:
        raise RuntimeError("nothing is pickled here")

    loads = dumps


def pin() -> None:
    """Raises WrongRelease. Done once, by importing this module."""
    found = hashlib.sha256(Path(str(syncobj.__file__)).read_bytes()).hexdigest()
    if (VERSION, found) != (RELEASE, SOURCE_SHA256):
        raise WrongRelease(
            f"pysyncobj {RELEASE} is needed exactly; {VERSION} is installed, its syncobj.py has SHA-256 {found}. "
            f"Install what requirements.lock names."
        )
    syncobj.pickle = _NoPickle
    syncobj.createJournal = lambda journal: journal
    use_clock(clock.monotonic)


def now() -> float:
    """What pysyncobj takes for the time, in seconds."""
    return float(syncobj.monotonicTime())


def use_clock(reading: Callable[[], float]) -> None:
    """What pysyncobj takes for the time from now on, in seconds: for simulations, which run one after the other."""
    syncobj.monotonicTime = reading


pin()
