"""The command line, `meridian`.

Exit codes: 0 done; 1 it failed, and one line on standard error says why; 2 wrong usage or configuration; 3 the node or
region asked about is not ready. Everything heavy is imported by the command that needs it. Packages above this one add
commands through the entry-point group `meridian.commands`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from consensus.errors import ConsensusError
from node.config import ConfigError, environment, load

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
ENTRY_POINTS = "meridian.commands"
_LAZY = {
    "cluster": "node.cli_cluster:cluster",
    "config": "node.cli_config:config",
    "local": "node.cli_local:local",
    "replication": "node.cli_replication:replication",
    "repo": "node.cli_query:repo",
    "state": "node.cli_query:state",
    "status": "node.cli_query:status",
    "tag": "node.cli_query:tag",
}
Command = TypeVar("Command", bound=Callable[..., Any])


class _Commands(click.Group):
    """Commands of this module, of the modules beside it, and of packages above, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY, *(point.name for point in _entry_points())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if command := super().get_command(ctx, cmd_name):
            return command
        if place := _LAZY.get(cmd_name):
            module, _, name = place.partition(":")
            found: click.Command = getattr(importlib.import_module(module), name)
            return found
        return next((point.load() for point in _entry_points() if point.name == cmd_name), None)


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


def config_option(command: Command) -> Command:
    """`--config FILE`, given to the command as `path`; see `find_config`."""
    option = click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="The configuration. Without it: $MERIDIAN_CONFIG, else ./meridian.toml, else defaults.",
    )
    return option(command)


def find_config(path: Path | None) -> Path | None:
    """The configuration file to use: the one named, $MERIDIAN_CONFIG, ./meridian.toml, or none."""
    if path is not None:
        return path
    if named := environment().get("MERIDIAN_CONFIG"):
        return Path(named)
    here = Path("meridian.toml")
    return here if here.is_file() else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Meridian: one container registry that stands in many regions.

    \b
    Try it on this machine:
      meridian local up                        a cluster, until Ctrl-C
      meridian local status
    Make the certificates of a cluster's nodes:
      meridian cluster init ./cluster NAME=HOST:PORT...
    See blobs on their way between regions:
      meridian replication watch
      meridian replication why sha256:...
    Run a node:
      meridian config init meridian.toml       a file with every key explained
      meridian serve --config meridian.toml

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not ready.
    """


@cli.command()
@config_option
def serve(path: Path | None) -> None:
    """Run this node: its keeper and its gateways, in the foreground.

    SIGTERM lets requests under way finish and ends the node; SIGHUP reads the configuration again and
    replaces the gateways without dropping a request. All processes of the node end with this one.

    \b
    Example:
      meridian serve --config /etc/meridian/meridian.toml
      MERIDIAN_LISTEN_ADDRESS=127.0.0.1:6000 meridian serve
    """
    found = find_config(path)
    config = load(found, environment())
    from node import supervisor

    sys.exit(supervisor.run(config, found.absolute() if found else None))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def version(as_json: bool) -> None:
    """Print the versions of Meridian and of Python."""
    import platform
    from importlib.metadata import version as version_of

    from node.tables import show_json

    versions = {"meridian": version_of("meridian-registry"), "python": platform.python_version()}
    if as_json:
        show_json(versions)
    else:
        click.echo(f"meridian {versions['meridian']} (Python {versions['python']})")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell.

    \b
    Examples:
      meridian completion bash > ~/.local/share/bash-completion/completions/meridian
      meridian completion zsh > "${fpath[1]}/_meridian"
      meridian completion fish > ~/.config/fish/completions/meridian.fish
    """
    from click.shell_completion import get_completion_class

    # Not `source()`: for bash that looks for bash itself, to check its version.
    kind: Any = get_completion_class(shell)
    completer = kind(cli, {}, "meridian", "_MERIDIAN_COMPLETE")
    click.echo(completer.source_template % completer.source_vars())


def main() -> None:
    """The entry point: turns what a person can put right into one line and an exit code."""
    try:
        code = cli.main(prog_name="meridian", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = MISUSED
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "meridian"
        code = _complain(f"{error.format_message()} (see `{place} --help`)", MISUSED)
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except ConfigError as error:
        code = _complain(str(error), MISUSED)
    except click.Abort:
        code = INTERRUPTED
    except (ConsensusError, OSError) as error:
        code = _complain(str(error), FAILED)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    click.echo(f"meridian: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
