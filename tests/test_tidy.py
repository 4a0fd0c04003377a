"""The house's rules that a linter does not know: layers, sizes, and one door for each side effect.

Each check is a function from a source to findings, "file:line: what"; `test_a_check_finds_what_it_looks_for` feeds
each of them a bad example, so that none of them can fall asleep.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("consensus", "replication", "node", "chaos")  # each may import those before it
PRODUCT = LAYERS[:3]
BESIDE = ("bench", "tests")  # may import any layer; no layer imports them
FILE_LINES, FUNCTION_LINES, POSITIONAL = 400, 60, 5
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
PRIVATE_PATH = re.compile(r"(?<![\w.])/(home|root|Users|work)/[\w.]+")
TEXT = {".py", ".toml", ".md", ".sh", ".yaml", ".yml", ".sql", ".txt", ".cfg", ".tf", ""}
OURS = {".ci", ".gitignore", ".pre-commit-config.yaml"}  # other hidden files are made by tools
MADE = {"__pycache__", "build", "dist"}


@dataclass(frozen=True, slots=True)
class Door:
    """The files in which some calls are allowed; everywhere else in the product they are not."""

    calls: frozenset[str]
    allowed: tuple[str, ...]


DOORS = (
    Door(
        frozenset(f"time.{name}{suffix}" for name in ("time", "monotonic", "perf_counter") for suffix in ("", "_ns"))
        | {"time.clock_gettime", "time.clock_gettime_ns", "datetime.datetime.now", "datetime.datetime.utcnow"}
        | {"datetime.datetime.today", "datetime.date.today"},
        ("consensus/clock.py",),
    ),
    Door(
        frozenset({"random", "secrets", "os.urandom", "os.getrandom", "uuid.uuid1", "uuid.uuid4", "ssl.RAND_bytes"}),
        ("consensus/entropy.py",),
    ),
    Door(
        frozenset({"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}),
        ("node/config.py", "node/cli*.py"),
    ),
    Door(frozenset({"os.fsync", "os.fdatasync", "os.sync"}), ("consensus/disk.py",)),
)
NOWHERE = frozenset({"pickle", "marshal", "shelve", "eval", "exec", "os.system", "os.popen", "subprocess.getoutput"})


@dataclass(frozen=True)
class Source:
    """One Python file."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def package(self) -> str:
        return PurePosixPath(self.name).parts[0]

    def find(self, node: ast.AST, what: str) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 1)}: {what}"

    @cached_property
    def imports(self) -> list[tuple[ast.stmt, str, str]]:
        """(statement, what is imported as a dotted name, the name that it has in this file)."""
        found: list[tuple[ast.stmt, str, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node, alias.name, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                place = "." * node.level + (node.module or "")
                found += [(node, f"{place}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        return found

    @cached_property
    def uses(self) -> list[tuple[ast.AST, str]]:
        """Every name and attribute that is read, dotted, with import aliases taken back."""
        origins = {local: full if local != full.partition(".")[0] else local for _, full, local in self.imports}
        reads = [(node, full) for node, full, _ in self.imports]
        chains = [node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute | ast.Name)]
        return [*reads, *((node, _dotted(node, origins)) for node in chains)]


def _dotted(node: ast.expr, origins: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, origins)}.{node.attr}"
    return origins.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _python_files() -> list[Source]:
    files = [file for package in (*LAYERS, *BESIDE) for file in sorted((ROOT / package).rglob("*.py"))]
    return [Source(file.relative_to(ROOT).as_posix(), file.read_text("utf-8")) for file in files]


def _text_files() -> list[Source]:
    found = []
    for file in sorted(ROOT.rglob("*")):
        relative = file.relative_to(ROOT)
        foreign = MADE.intersection(relative.parts) or (relative.parts[0][0] == "." and relative.parts[0] not in OURS)
        if not foreign and file.suffix in TEXT and file.is_file():
            found.append(Source(relative.as_posix(), file.read_text("utf-8", "replace")))
    return found


def check_layers(source: Source) -> Iterator[str]:
    """Imports point downwards, are absolute, and nothing but tests and bench reaches beside the layers."""
    if source.package not in LAYERS:
        return
    allowed = LAYERS[: LAYERS.index(source.package) + 1]
    for node, full, _ in source.imports:
        top = full.partition(".")[0]
        if top in (*LAYERS, *BESIDE) and top not in allowed:
            yield source.find(node, f"{source.package} must not import {top}")
        if full.startswith("."):
            yield source.find(node, "relative import")


def check_doors(source: Source) -> Iterator[str]:
    """Clock, randomness, environment and durability enter the product through one door each."""
    if source.package not in PRODUCT:
        return
    for door in DOORS:
        if any(PurePosixPath(source.name).match(pattern) for pattern in door.allowed):
            continue
        for node, use in source.uses:
            if use in door.calls or use.partition(".")[0] in door.calls:
                yield source.find(node, f"{use} is only for {' and '.join(door.allowed)}")


def check_nowhere(source: Source) -> Iterator[str]:
    """What nobody calls."""
    for node, use in source.uses:
        if use in NOWHERE or use.partition(".")[0] in NOWHERE:
            yield source.find(node, f"{use} is banned")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.keyword) and node.arg == "shell" and getattr(node.value, "value", True) is not False:
            yield source.find(node.value, "shell=True is banned")


def check_size(source: Source) -> Iterator[str]:
    """Files, functions and parameter lists stay small."""
    lines = source.text.count("\n")
    if lines > FILE_LINES:
        yield f"{source.name}:{FILE_LINES + 1}: {lines} lines, at most {FILE_LINES}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield source.find(node, f"{node.name} has {length} lines, at most {FUNCTION_LINES}")
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg not in {"self", "cls"}]
        if len(names) > POSITIONAL and source.package != "tests":
            yield source.find(node, f"{node.name} has {len(names)} positional parameters, at most {POSITIONAL}")


def check_name(source: Source) -> Iterator[str]:
    """A module is a noun that says what lives in it."""
    path = PurePosixPath(source.name)
    for vague in VAGUE_NAMES.intersection((*path.parts[:-1], path.stem)):
        yield f"{source.name}:1: {vague!r} says nothing about what is in it"


def check_events(source: Source) -> Iterator[str]:
    """What is logged is an event with a fixed name; what varies is in its fields."""
    if source.package not in PRODUCT:
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[name, *_]) if level in LEVELS:
                text = name.value if isinstance(name, ast.Constant) else ""
                if not EVENT.fullmatch(str(text)):
                    yield source.find(node, "the first argument is not the name of an event")


def check_finished(source: Source) -> Iterator[str]:
    """No note to oneself, and no path of the machine on which it was written."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{source.name}:{number}: unfinished: {line.strip()[:80]}"
        if str(ROOT) in line or PRIVATE_PATH.search(line):
            yield f"{source.name}:{number}: a path of one machine: {line.strip()[:80]}"


CHECKS: tuple[Callable[[Source], Iterator[str]], ...] = (
    check_layers,
    check_doors,
    check_nowhere,
    check_size,
    check_name,
    check_events,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sources(check: Callable[[Source], Iterator[str]]) -> None:
    findings = [finding for source in _python_files() for finding in check(source)]
    assert not findings, "\n" + "\n".join(findings)


def test_all_text_is_finished() -> None:
    findings = [finding for source in _text_files() for finding in check_finished(source)]
    assert not findings, "\n" + "\n".join(findings)


BAD = {
    "node/a.py:1: node must not import chaos": (check_layers, "import chaos.faults\n"),
    "consensus/a.py:2: consensus must not import node": (check_layers, "def f():\n from node import config\n"),
    "node/b.py:1: relative import": (check_layers, "from . import config\n"),
    "node/a.py:2: time.monotonic is only for consensus/clock.py": (check_doors, "import time as t\nt.monotonic()\n"),
    "node/a.py:1: time.time is only for consensus/clock.py": (check_doors, "from time import time\n"),
    "node/a.py:1: secrets is only for consensus/entropy.py": (check_doors, "import secrets\n"),
    "node/a.py:2: uuid.uuid4 is only for consensus/entropy.py": (check_doors, "import uuid\nx = uuid.uuid4\n"),
    "node/a.py:2: os.environ is only for node/config.py and node/cli*.py": (
        check_doors,
        "import os\nos.environ['A']\n",
    ),
    "node/blobs/a.py:2: os.fsync is only for consensus/disk.py": (check_doors, "import os\nos.fsync(1)\n"),
    "chaos/a.py:1: eval is banned": (check_nowhere, "eval('1')\n"),
    "bench/a.py:1: pickle.loads is banned": (check_nowhere, "from pickle import loads\n"),
    "tests/a.py:1: shell=True is banned": (check_nowhere, "run('ls', shell=True)\n"),
    "node/a.py:401: 401 lines, at most 400": (check_size, "\n" * 401),
    "node/a.py:2: f has 61 lines, at most 60": (check_size, "\ndef f():\n" + " x\n" * 60),
    "node/a.py:1: f has 6 positional parameters, at most 5": (check_size, "def f(a, b, c, d, e, f): pass\n"),
    "node/utils/a.py:1: 'utils' says nothing about what is in it": (check_name, ""),
    "node/a.py:1: the first argument is not the name of an event": (check_events, "log.info(f'went {well}')\n"),
    "docs/a.md:2: unfinished: FIX" + "ME later": (check_finished, "\nFIX" + "ME later\n"),
    "docs/a.md:1: a path of one machine: see /" + "home/me": (check_finished, "see /" + "home/me\n"),
}


@pytest.mark.parametrize("finding", BAD)
def test_a_check_finds_what_it_looks_for(finding: str) -> None:
    check, text = BAD[finding]
    assert finding in list(check(Source(finding.partition(":")[0], text)))


def test_a_door_is_open_for_its_keeper() -> None:
    assert not list(check_doors(Source("node/cli_local.py", "import os\nos.environ\n")))
    assert not list(check_doors(Source("consensus/clock.py", "import time\ntime.time()\n")))
    assert not list(check_doors(Source("chaos/run.py", "import time\ntime.time()\n")))


def _modules_after(*names: str) -> set[str]:
    script = f"import sys, json\nimport {', '.join(names)}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in json.loads(answer.stdout.splitlines()[-1])}


def test_no_two_test_modules_have_one_name() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest takes one of them for the other"


def test_the_supervisor_and_the_configuration_do_without_grpc() -> None:
    loaded = _modules_after("node.config", "node.supervisor")
    assert not loaded & {"aiohttp", "grpc", "starlette", "opentelemetry", "chaos"}


def test_the_command_line_starts_with_little() -> None:
    loaded = _modules_after("node.cli", "node.cli_cluster", "node.cli_config", "node.cli_local", "node.cli_query")
    heavy = {"grpc", "uvloop", "starlette", "opentelemetry", "prometheus_client", "rich", "httpx", "chaos"}
    heavy |= {"aiohttp", "cryptography"}
    assert not loaded & heavy


def test_the_product_does_not_load_chaos() -> None:
    loaded = _modules_after("node.keeper", "node.gateway.__main__")
    assert not loaded & {"aiohttp", "chaos", "bench", "tests", "opentelemetry"}
