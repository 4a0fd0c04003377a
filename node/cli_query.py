"""Commands that ask: `status`, `repo list`, `tag list`, `state hash`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import click

from consensus.names import RepositoryName
from node.addresses import split_address
from node.cli import config_option
from node.cli_client import NOT_READY, ask, client_of, configured, object_in
from node.tables import show_json, show_table

MAX_PAGES = 100_000


def _registry_options(command: Any) -> Any:
    command = click.option("--ca", type=click.Path(exists=True), help="PEM file of who signed the certificate.")(
        command
    )
    command = click.option("--registry", metavar="URL", help="Ask this registry, not the configured one.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="As JSON.")(command)
    return config_option(command)


@click.group()
def repo() -> None:
    """Look at repositories."""


@repo.command("list")
@_registry_options
def list_repositories(path: Path | None, as_json: bool, registry: str | None, ca: str | None) -> None:
    """List the repositories, in the order of their names.

    \b
    Examples:
      meridian repo list
      meridian repo list --registry http://127.0.0.1:5101 --json
    """
    names = _pages(_base(path, registry), "/v2/_catalog", "repositories", ca)
    if as_json:
        show_json({"repositories": names})
    else:
        show_table(["repository"], [{"repository": name} for name in names])


@click.group()
def tag() -> None:
    """Look at tags."""


@tag.command("list")
@click.argument("repository")
@_registry_options
def list_tags(repository: str, path: Path | None, as_json: bool, registry: str | None, ca: str | None) -> None:
    """List the tags of REPOSITORY, in the order of their names.

    \b
    Example:
      meridian tag list team/app
    """
    name = RepositoryName.parse(repository)
    tags = _pages(_base(path, registry), f"/v2/{name}/tags/list", "tags", ca)
    if as_json:
        show_json({"name": str(name), "tags": tags})
    else:
        show_table(["tag"], [{"tag": each} for each in tags])


@click.group()
def state() -> None:
    """Look at the replicated state."""


@state.command("hash")
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def hash_state(path: Path | None, as_json: bool) -> None:
    """Print the log index that this node has applied and the hash of its state.

    Two nodes at the same index have the same hash. It is read from the data folder, whether the node runs or not.

    \b
    Example:
      meridian state hash --config meridian.toml
    """
    from consensus.views import Views

    try:
        views = Views(configured(path).data / "state")
        try:
            applied, digest = views.hash()
        finally:
            views.close()
    except sqlite3.Error as error:
        raise click.ClickException(f"the state cannot be read: {error}") from error
    if as_json:
        show_json({"applied": applied, "hash": digest})
    else:
        click.echo(f"{applied} {digest}")


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def status(ctx: click.Context, path: Path | None, as_json: bool) -> None:
    """Ask this node's admin address how it is; exit code 3 if it is not ready.

    \b
    Example:
      meridian status --config meridian.toml
    """
    config = configured(path)
    with client_of(f"http://{config.listen.admin}", None) as client:
        readiness = ask(client, "/readyz")
        report = object_in(ask(client, "/meridian/v1/status"))
    ready = readiness.status_code == 200
    known = {"ready": ready, "address": config.listen.address, **report}
    checks = object_in(readiness)
    if as_json:
        show_json({**known, "checks": checks})
    else:
        found = {**known, **{f"check: {name}": said for name, said in checks.items()}}
        show_table(["item", "value"], [{"item": key, "value": value} for key, value in found.items()])
    ctx.exit(0 if ready else NOT_READY)


def _base(path: Path | None, registry: str | None) -> str:
    if registry:
        return registry if "://" in registry else f"http://{registry}"
    listen = configured(path).listen
    host, port = split_address(listen.address)
    if host in {str(IPv4Address(0)), str(IPv6Address(0))}:
        host = "localhost"
    return f"{'https' if listen.tls_certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _pages(base: str, path: str, key: str, ca: str | None) -> list[str]:
    return [name for page in _walk(base, path, ca) for name in page.get(key) or []]


def _walk(base: str, path: str, ca: str | None) -> Iterator[dict[str, Any]]:
    with client_of(base, ca) as client:
        for _ in range(MAX_PAGES):
            answer = ask(client, path)
            content = object_in(answer)
            if answer.status_code != 200:
                errors = content.get("errors") or [{}]
                detail = errors[0].get("message") or answer.reason_phrase
                raise click.ClickException(f"{answer.url}: {answer.status_code}: {detail}")
            yield content
            if "next" not in answer.links:
                return
            path = str(answer.url.join(answer.links["next"]["url"]))
