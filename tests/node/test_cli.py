from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from consensus import clock
from node.cli import _LAZY, cli
from node.config import key_types, load, section_types, trace
from tests.node.commands import MERIDIAN, clean_environment, meridian


def fails(cwd: Path, code: int, *arguments: str, **extra: str) -> str:
    """The one line on standard error of a command that must fail with `code`."""
    answer = meridian(*arguments, cwd=cwd, **extra)
    assert answer.returncode == code, answer
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith("meridian: ")
    return line.removeprefix("meridian: ")


def succeeds(cwd: Path, *arguments: str, **extra: str) -> str:
    answer = meridian(*arguments, cwd=cwd, **extra)
    assert answer.returncode == 0, answer
    assert answer.stderr == ""
    return answer.stdout


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    text = succeeds(tmp_path, "--help")
    for name in ("serve", "local", "config", "status", "version", "repo", "tag", "state", "completion"):
        assert re.search(rf"^  {name}\b", text, re.MULTILINE), name
    assert "Exit codes: 0 done, 1 failed" in text


@pytest.mark.parametrize("command", sorted({*_LAZY, *cli.commands}))
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    assert "Usage: meridian " + command in succeeds(tmp_path, command, "-h")


def test_without_a_command_there_is_help_and_a_failure(tmp_path: Path) -> None:
    answer = meridian(cwd=tmp_path)
    assert answer.returncode == 2
    assert "Commands:" in answer.stderr


def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    assert "No such command 'srve'" in fails(tmp_path, 2, "srve")
    assert "Missing argument 'REPOSITORY'. (see `meridian tag list --help`)" in fails(tmp_path, 2, "tag", "list")
    assert "No such option" in fails(tmp_path, 2, "config", "show", "--jsn")


def test_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[node]\nregion = 7\n")
    expected = f"{file}: [node] region: expected text like [a-z][a-z0-9-]{{0,31}}, got 7"
    for command in (["serve"], ["config", "check"], ["status"]):
        assert fails(tmp_path, 2, *command, "--config", str(file)) == expected
    assert fails(tmp_path, 2, "config", "show", MERIDIAN_CONFIG=str(file)) == expected


def test_the_start_is_quick(tmp_path: Path) -> None:
    def seconds() -> float:
        began = clock.monotonic()
        succeeds(tmp_path, "version")
        return clock.monotonic() - began

    assert min(seconds() for _ in range(4)) < 0.6, "0.15 s are usual, 0.3 s the aim"


def test_version(tmp_path: Path) -> None:
    versions = json.loads(succeeds(tmp_path, "version", "--json"))
    assert succeeds(tmp_path, "version") == f"meridian {versions['meridian']} (Python {versions['python']})\n"


def test_a_reader_who_has_had_enough_gets_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [*MERIDIAN, "config", "check"], env=clean_environment({}), cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        assert process.communicate(timeout=30)[1] == b""


def test_at_a_terminal_there_is_a_table(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    command = [*MERIDIAN, "local", "status"]
    environment = clean_environment({"TERM": "xterm", "COLUMNS": "100"})
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=terminal) as process:
        os.close(terminal)
        assert process.wait(30) == 0
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert "REGION" in shown
    assert "\u2500" in shown
    assert "stopped" in shown


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    script = succeeds(tmp_path, "completion", shell)
    assert f"_MERIDIAN_COMPLETE={shell}_complete" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_completion_finds_commands_and_options(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        count = str(len(words.split(" ")) - 1)
        out = succeeds(tmp_path, _MERIDIAN_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
        return [line.partition(",")[2] for line in out.splitlines()]

    assert complete("meridian st") == ["state", "status"]
    assert complete("meridian local st") == ["start", "status", "stop"]
    assert "--json" in complete("meridian repo list --")


# --- config ---


def test_init_writes_every_key_commented_out(tmp_path: Path) -> None:
    file = tmp_path / "meridian.toml"
    assert succeeds(tmp_path, "config", "init", "meridian.toml") == "wrote meridian.toml\n"
    assert file.read_text() == succeeds(tmp_path, "config", "init")
    assert set(trace(file, {}).origins.values()) == {"default"}
    uncommented = re.sub(r"^#([a-z_]+ = )", r"\1", file.read_text(), flags=re.MULTILINE)
    document = tomllib.loads(uncommented)
    assert {section: set(keys) for section, keys in document.items()} == {
        name: set(key_types(kind)) for name, kind in section_types().items()
    }
    file.write_text(uncommented)
    load(file, {})


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "here.toml").write_text("mine")
    assert fails(tmp_path, 1, "config", "init", "here.toml") == "here.toml exists; it is not overwritten"
    assert (tmp_path / "here.toml").read_text() == "mine"
    assert "No such file or directory" in fails(tmp_path, 1, "config", "init", "nowhere/x.toml")


def test_check_explains_every_line(tmp_path: Path) -> None:
    (tmp_path / "meridian.toml").write_text('[node]\nregion = "eu"\n')
    text = succeeds(tmp_path, "config", "check", MERIDIAN_NODE_NAME="n7")
    assert 'region = "eu"\n    the region that this node stands in; text like [a-z][a-z0-9-]{0,31} (from file)' in text
    assert re.search(r'name = "n7"\n .*\(from MERIDIAN_NODE_NAME\)', text)
    assert re.search(r"page_size = 1000\n .* at least 1 and at most 100000 \(from default\)", text)
    assert text.endswith("the configuration is good\n")


def test_check_for_programs(tmp_path: Path) -> None:
    rows = json.loads(succeeds(tmp_path, "config", "check", "--json", MERIDIAN_LIMITS_UPLOADS="3"))
    (row,) = [row for row in rows if (row["section"], row["key"]) == ("limits", "uploads")]
    assert (row["value"], row["origin"]) == (3, "MERIDIAN_LIMITS_UPLOADS")
    assert row["meaning"].startswith("open uploads of the node")
    assert row["accepts"] == "a whole number at least 1"


def test_what_show_prints_is_a_configuration(tmp_path: Path) -> None:
    text = succeeds(tmp_path, "config", "show", MERIDIAN_NODE_REGION="ap", MERIDIAN_NODE_DATA='/\U0001f600ä "\x7f\\')
    (tmp_path / "shown.toml").write_text(text)
    shown = load(tmp_path / "shown.toml", {}).node
    assert (shown.region, shown.data) == ("ap", '/\U0001f600ä "\x7f\\')
    values = json.loads(succeeds(tmp_path, "config", "show", "--json", "--config", "shown.toml"))
    assert values == tomllib.loads(text)


# --- questions without a node ---


def test_a_node_that_is_away(tmp_path: Path) -> None:
    away = {"MERIDIAN_LISTEN_ADMIN": "127.0.0.1:9", "MERIDIAN_LISTEN_ADDRESS": "127.0.0.1:10"}
    assert "http://127.0.0.1:9: no answer" in fails(tmp_path, 1, "status", **away)
    assert "http://127.0.0.1:10: no answer" in fails(tmp_path, 1, "repo", "list", **away)
    assert "https://[::1]:9: no answer" in fails(tmp_path, 1, "repo", "list", "--registry", "https://[::1]:9")
    assert "Invalid port" in fails(tmp_path, 1, "repo", "list", "--registry", "http://[::1")


def test_a_state_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no state in" in fails(tmp_path, 1, "state", "hash")


def test_a_name_that_is_none(tmp_path: Path) -> None:
    assert fails(tmp_path, 1, "tag", "list", "No Such").startswith("invalid repository: ")
