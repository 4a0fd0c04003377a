"""`meridian config`: what a configuration file can say, says, and comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from node.cli import config_option, find_config
from node.config import Config, Section, Traced, environment, key_types, section_types, trace
from node.tables import show_json
from node.values import bound


@click.group()
def config() -> None:
    """Write, check and show configurations."""


@config.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON: one object for each key.")
def check(path: Path | None, as_json: bool) -> None:
    """Check the configuration and explain every line of it.

    Each key is shown with its value, where the value is from (the default, the file or an environment variable), what
    it means and what it accepts. A configuration that cannot be used is refused with exit code 2.

    \b
    Example:
      meridian config check --config meridian.toml
    """
    found = find_config(path)
    traced = trace(found, environment())
    if as_json:
        show_json([{key: row[key] for key in row} for row in _rows(traced)])
        return
    click.echo(f"# {found.absolute() if found else 'no file: defaults and environment only'}")
    section = ""
    for row in _rows(traced):
        if row["section"] != section:
            section = row["section"]
            click.echo(f"\n[{section}]  # {_summary(section_types()[section])}")
        click.echo(f"{row['key']} = {toml(row['value'])}")
        click.echo(f"    {row['meaning']}; {row['accepts']} (from {row['origin']})")
    click.echo("\nthe configuration is good")


@config.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(path: Path | None, as_json: bool) -> None:
    """Print the values in effect, as a configuration file.

    \b
    Examples:
      meridian config show
      MERIDIAN_NODE_REGION=us meridian config show --json
    """
    values = trace(find_config(path), environment()).config
    if as_json:
        show_json(msgspec.to_builtins(values))
        return
    for name in section_types():
        click.echo(f"[{name}]")
        for key in key_types(section_types()[name]):
            click.echo(f"{key} = {toml(getattr(getattr(values, name), key))}")
        click.echo()


@config.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
def init(file: Path) -> None:
    """Write a configuration FILE in which every key is explained and set to its default.

    Without FILE it is printed. A file that exists is never overwritten.

    \b
    Examples:
      meridian config init meridian.toml
      meridian config init | less
    """
    text = "\n".join(_template())
    if file == Path("-"):
        click.echo(text)
        return
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text + "\n")
    except FileExistsError as error:
        raise click.ClickException(f"{file} exists; it is not overwritten") from error
    click.echo(f"wrote {file}")


def toml(value: object) -> str:
    """A value as TOML writes it. JSON's form of text, numbers and truth is also TOML's, but for its pairs of surrogates
    and a DEL as it stands."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _rows(traced: Traced) -> Iterator[dict[str, Any]]:
    for section, kind in section_types().items():
        for key, expected in key_types(kind).items():
            yield {
                "section": section,
                "key": key,
                "value": getattr(getattr(traced.config, section), key),
                "origin": traced.origins[f"{section}.{key}"],
                "meaning": meaning(expected),
                "accepts": bound(expected),
            }


def _template() -> Iterator[str]:
    yield "# Meridian: the configuration of a node. Each line shows a default; remove the # in front to change it."
    yield "# MERIDIAN_<SECTION>_<KEY> in the environment goes before the file. `meridian config check` explains it."
    defaults = Config()
    for section, kind in section_types().items():
        yield f"\n# {_summary(kind)}"
        yield f"[{section}]"
        for key, expected in key_types(kind).items():
            yield f"# {meaning(expected)}; {bound(expected)}"
            yield f"#{key} = {toml(getattr(getattr(defaults, section), key))}"


def meaning(expected: Any) -> str:
    """The description that a key's type carries."""
    kind = msgspec.inspect.type_info(expected)
    schema = kind.extra_json_schema if isinstance(kind, msgspec.inspect.Metadata) else None
    return str((schema or {})["description"])


def _summary(kind: type[Section]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]
