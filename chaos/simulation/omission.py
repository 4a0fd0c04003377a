"""Leaves one sync of the product out for the length of a run: the simulation has to notice."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType

from chaos.fsyncs import Removal, removals

PRODUCT = Path(__file__).resolve().parent.parent.parent
_SIMULATED = ("consensus/wal.py", "consensus/cuts.py", "consensus/smallfile.py", "consensus/raft/")


def syncs() -> list[Removal]:
    """Those of the log; the state's are SQLite's, or in files that this simulation leaves alone."""
    return [each for each in removals(PRODUCT) if each.path.startswith(_SIMULATED)]


@contextmanager
def left_out(removal: Removal) -> Iterator[None]:
    """The function that makes the call runs without it."""
    module = importlib.import_module(removal.path.removesuffix(".py").replace("/", "."))
    lines = (PRODUCT / removal.path).read_text().splitlines(keepends=True)
    indent = lines[removal.first - 1][: -len(lines[removal.first - 1].lstrip())]
    lines[removal.first - 1 : removal.last] = [f"{indent}pass\n", *["\n"] * (removal.last - removal.first)]
    place = removal.what.partition(":")[0]
    function: object = module
    for name in place.split("."):
        function = getattr(function, name)
    function = getattr(function, "__func__", function)
    assert isinstance(function, FunctionType)
    shipped = function.__code__
    whole = compile("".join(lines), str(module.__file__), "exec", dont_inherit=True)
    function.__code__ = _find(whole, shipped)
    try:
        yield
    finally:
        function.__code__ = shipped


def _find(code: CodeType, like: CodeType) -> CodeType:
    found = [code]
    while found:
        each = found.pop()
        if each.co_qualname == like.co_qualname:
            return each
        found += [inner for inner in each.co_consts if isinstance(inner, CodeType)]
    raise ValueError(f"{like.co_qualname} is not in {like.co_filename}")
