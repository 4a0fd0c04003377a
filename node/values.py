"""What the keys of the configuration accept, read from their types."""

from __future__ import annotations

from typing import Any

import msgspec


def is_list(expected: Any) -> bool:
    """Whether a key takes several values."""
    return expected is not None and isinstance(_bare(expected), msgspec.inspect.VarTupleType)


def _bare(expected: Any) -> Any:
    kind: Any = msgspec.inspect.type_info(expected)
    return kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind


def bound(expected: Any) -> str:
    """What a key accepts, in words."""
    kind = _bare(expected)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return (
            f"a list of at most {kind.max_length} texts like NAME=HOST:PORT[/PORT] (in a variable: separated by commas)"
        )
    if isinstance(kind, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(kind, msgspec.inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in kind.values)
    if isinstance(kind, msgspec.inspect.StrType):
        if kind.pattern and kind.pattern.endswith(r":[0-9]{1,5}\Z"):
            return "host:port"
        return "text like " + kind.pattern.removeprefix("^").removesuffix(r"\Z") if kind.pattern else "text"
    name = "a whole number" if isinstance(kind, msgspec.inspect.IntType) else "a number"
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    limits = [f"{word} {getattr(kind, at)}" for at, word in words if getattr(kind, at) is not None]
    return " ".join([name, " and ".join(limits)]).strip()
