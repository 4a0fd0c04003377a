"""Every statement finds its rows by key, so that none grows slower with what the tables hold."""

import ast
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus import answers, apply, generation, manifests, staging, step, views

BOUNDED = {"meta", "staged", "proposers"}  # one row, or a bound that keeps them small: these may be walked through
_STATEMENT = re.compile(r"(?:SELECT|DELETE FROM|UPDATE|INSERT) .*", re.DOTALL)


def statements() -> list[str]:
    """Every SQL text in the modules that have any, composed ones as they come out."""
    found = {text for text in vars(views).values() if isinstance(text, str)}
    for module in (answers, apply, manifests, staging, step, generation, views):
        assert module.__file__
        tree = ast.parse(Path(module.__file__).read_text())
        found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str}
    return sorted(text for text in found if _STATEMENT.fullmatch(text))


def parameters(statement: str) -> int:
    numbered = [number for number in range(1, 10) if f"?{number}" in statement]
    return max(numbered) if numbered else statement.count("?")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    connection = generation.open_reader(generation.create(tmp_path_factory.mktemp("plans") / "state", "cluster"))
    yield connection
    connection.close()


def test_the_statements_are_found() -> None:
    assert len(statements()) > 50


@pytest.mark.parametrize("statement", statements())
def test_a_statement_finds_its_rows_by_key(empty: sqlite3.Connection, statement: str) -> None:
    whole = f"{statement} (?, ?, ?)" if statement.endswith("IN") else statement
    plan = empty.execute(f"EXPLAIN QUERY PLAN {whole}", [0] * parameters(whole)).fetchall()
    walked = {line.split()[1] for *_, line in plan if line.startswith("SCAN ") and line != "SCAN CONSTANT ROW"}
    assert walked <= BOUNDED, plan
    assert walked or not any("TEMP B-TREE" in line for *_, line in plan), plan
