"""Is every fsync needed, and would the crash test notice? Take each out in turn and run the test until it fails.

A call that can go without the test failing is either superfluous or not tested: both are to be mended.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.crash import Plan, run_campaign

PACKAGES = ("consensus", "replication", "node")
_DOOR = "consensus/disk.py"
_CALLS = frozenset({"sync_data", "sync_file", "sync_folder"})
_SQLITE = (
    # SQLite syncs by itself; these take that away.
    ("consensus/state.py", "synchronous = FULL", "synchronous = OFF"),
    ("consensus/state.py", "synchronous = NORMAL", "synchronous = OFF"),
    ("consensus/generation.py", "synchronous = NORMAL", "synchronous = OFF"),
)
# What a short campaign has to look like to bring out each kind of mistake: a first start, a disk that forgets all or a
# part, syncs slow enough to be killed in, a disk that is full for moments.
_ATTEMPTS = (
    Plan(rounds=3, lossy=True, most_seconds=0.3),
    Plan(rounds=4, lossy=True, most_seconds=1.0, kept=0.5),
    Plan(rounds=4, lossy=True, most_seconds=0.5, slow_seconds=0.03),
    Plan(rounds=4, lossy=True, most_seconds=0.7, slow_seconds=0.03, kept=0.5),
    Plan(rounds=4, lossy=True, most_seconds=0.7, full=0.02, kept=0.5),
)


@dataclass(frozen=True, slots=True)
class Removal:
    """One fsync to be taken out: lines `first` to `last` of a file become `pass`; for SQLite's, texts are replaced."""

    path: str
    what: str
    first: int = 0
    last: int = 0
    texts: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether and how the loss of an fsync was noticed: by kills of a whole node, by power cuts at every change."""

    removal: Removal | None
    kills: int
    by_kills: str
    by_cuts: str

    @property
    def noticed(self) -> bool:
        """By either."""
        return bool(self.by_kills or self.by_cuts)

    @property
    def row(self) -> str:
        """One line of the table, in Markdown."""
        where = f"`{self.removal.path}`: `{self.removal.what}`" if self.removal else "nothing (control)"
        return f"| {where} | {self.kills} | {_brief(self.by_kills)} | {_brief(self.by_cuts)} |"


HEADER = "| removed | kills | what the audit said | what power cuts at every change showed |\n| --- | --- | --- | --- |"


def _brief(finding: str) -> str:
    words = " ".join(finding.split()).replace("|", "/")
    words = re.sub(r"sha(256|512):([0-9a-f]{8})[0-9a-f]+", r"sha\1:\2", re.sub(r"/\S+/(?=\S)", "", words))
    return (words[:140] + "...") if len(words) > 140 else (words or "-")


def removals(product: Path) -> list[Removal]:
    """Every call of the door of durability in the product, and SQLite's own.

    Raises ValueError for a call that is not a statement of its own: it could not be taken out.
    """
    found = []
    for package in PACKAGES:
        for file in sorted((product / package).rglob("*.py")):
            path = str(file.relative_to(product))
            if path != _DOOR:
                found += list(_calls(path, file.read_text()))
    return [*found, Removal("SQLite", "PRAGMA synchronous", texts=_SQLITE)]


async def judge(removal: Removal | None, work: Path, product: Path, tell: Callable[[str], None]) -> Verdict:
    """Kills and cuts a copy of the product without that fsync (None: the control) until one is noticed."""
    copy = work / "product"
    shutil.rmtree(work, ignore_errors=True)
    _copy(product, copy, removal)
    kills, by_kills = 0, ""
    for number, attempt in enumerate(_ATTEMPTS, start=1):
        plan = replace(attempt, seed=number, product=copy)
        report = await run_campaign(plan, work / f"attempt-{number}", tell)
        kills += report.rounds + bool(report.violations)
        if report.violations:
            by_kills = str(report.violations[0])
            break
    return Verdict(removal, kills, by_kills, _cut(copy, product, removal.path if removal else ""))


def _cut(copy: Path, product: Path, path: str) -> str:
    # This package comes from `product`, everything below it from the copy.
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{product}"}
    command = [sys.executable, "-m", "chaos.powercuts", path]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise RuntimeError(done.stderr)
    return done.stdout.strip() if done.returncode else ""


def _calls(path: str, source: str) -> Iterator[Removal]:
    tree = ast.parse(source)
    statements = {id(node.value): node for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    scopes = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and _name(node) in _CALLS and isinstance(node.ctx, ast.Load):
            call = next((c for c in ast.walk(tree) if isinstance(c, ast.Call) and c.func is node), None)
            statement = statements.get(id(call))
            if call is None or statement is None:
                raise ValueError(f"{path}:{node.lineno}: {_name(node)} is not a statement of its own")
            inside = [s.name for s in scopes if s.lineno <= node.lineno <= (s.end_lineno or s.lineno)]
            what = f"{'.'.join(inside)}: {ast.unparse(call)}"
            yield Removal(path, what, statement.lineno, statement.end_lineno or statement.lineno)


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _copy(product: Path, copy: Path, removal: Removal | None) -> None:
    for package in PACKAGES:
        shutil.copytree(product / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    if removal and removal.texts:
        for path, old, new in removal.texts:
            text = (copy / path).read_text()
            if old not in text:
                raise ValueError(f"{path} does not say {old!r}")
            (copy / path).write_text(text.replace(old, new))
    elif removal:
        lines = (copy / removal.path).read_text().splitlines(keepends=True)
        indent = lines[removal.first - 1][: -len(lines[removal.first - 1].lstrip())]
        lines[removal.first - 1 : removal.last] = [f"{indent}pass\n"]
        (copy / removal.path).write_text("".join(lines))
