"""`meridian cluster`: who belongs to a cluster, and the certificates by which its nodes know each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.addresses import split_address
from node.cli_config import toml
from node.config import Port
from node.tables import show_json, show_table

if TYPE_CHECKING:
    from node.authority import Authority, Issued

SNIPPET = "meridian.toml"
MEMBER_DAYS = 730  # as in node.authority, which is not imported for a help text
_COLUMNS = ["member", "expires", "copy", "to"]


@contextmanager
def _complaints() -> Iterator[None]:
    from node.authority import AuthorityError

    try:
        yield
    except AuthorityError as error:
        raise click.ClickException(str(error)) from error


_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_days = click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=MEMBER_DAYS,
    show_default=True,
    help="For how long the nodes' certificates are good; never longer than the authority's own.",
)


@click.group()
def cluster() -> None:
    """Make the certificates by which the nodes of a cluster know each other.

    Nodes talk to each other by mutual TLS and accept who holds a certificate of their cluster's own authority, and is a
    configured member. `init` makes everything for a new cluster at once; `ca` and `cert` are its two halves, for a
    member that joins later, and for new certificates before the old ones expire.

    The authority's key, ca.key, signs members: keep it off the nodes and in a safe place.
    """


@cluster.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_json
def ca(folder: Path, as_json: bool) -> None:
    """Make a new cluster's certificate authority in FOLDER: ca.crt and ca.key, good for ten years.

    It also draws the cluster's id. FOLDER must not exist: an authority is never overwritten, as no certificate that it
    has signed would count any more.

    \b
    Example:
      meridian cluster ca ./authority
    """
    from node.authority import CA_KEY, Authority, publish

    with _complaints():
        authority = Authority.create()
        publish(folder, authority.files)
    if as_json:
        show_json(_shown(authority, folder))
        return
    click.echo(f"made the authority of cluster {authority.cluster_id}, good until {authority.expires:%Y-%m-%d}")
    click.echo(f"keep {folder / CA_KEY} off the nodes: who has it can make members")
    click.echo(f"next: meridian cluster cert --ca {folder} MEMBER...")


@cluster.command()
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@click.option(
    "--ca",
    "authority_folder",
    type=click.Path(path_type=Path),
    default=Path("authority"),
    show_default=True,
    metavar="FOLDER",
    help="Where the authority is.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default="the working folder",
    metavar="FOLDER",
    help="Each member gets a folder in this one.",
)
@_days
@_json
def cert(members: Sequence[str], authority_folder: Path, out: Path, days: int, as_json: bool) -> None:
    """Issue a certificate to each MEMBER: node.crt, node.key and ca.crt, in a folder of its name.

    MEMBER is the node's name as its configuration has it ([node] name). To renew, issue again into another folder and
    replace the files on the node; the old certificate counts until it expires.

    \b
    Examples:
      meridian cluster cert --ca ./authority eu-1 us-1 ap-1
      meridian cluster cert --ca ./authority --out ./renewed --days 365 eu-1
    """
    from node.authority import Authority, AuthorityError, check_member, publish

    with _complaints():
        authority = Authority.load(authority_folder)
        folders = [out / check_member(name) for name in members]
        if taken := next((folder for folder in folders if folder.exists()), None):
            raise AuthorityError(f"{taken} exists; it is not overwritten, and nothing was issued (see --out)")
        rows = []
        for member in dict.fromkeys(members):
            issued = authority.issue(member, days)
            publish(out / member, issued.files)
            rows.append(_row(issued, out / member))
    _show(authority, authority_folder, rows, as_json=as_json)


@cluster.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("members", metavar="NAME=HOST:PORT...", nargs=-1, required=True)
@_days
@_json
def init(folder: Path, members: Sequence[str], days: int, as_json: bool) -> None:
    """Make everything that a new cluster of these members needs, in FOLDER.

    FOLDER/authority gets the authority; FOLDER/nodes/NAME is for the node of that name: ca.crt, node.crt, node.key and
    meridian.toml, a piece of configuration that lists all members. HOST:PORT is where the other nodes reach it
    ([listen] peers). Three to five members are usual: of three, one may fail; of five, two.

    FOLDER must not exist. It appears whole or not at all.

    \b
    Example:
      meridian cluster init ./cluster eu-1=10.0.0.1:5200 us-1=10.1.0.1:5200 ap-1=10.2.0.1:5200
      scp -r cluster/nodes/eu-1 eu-1.example.org:/etc/meridian
    """
    from node.authority import Authority, publish

    with _complaints():
        addresses = dict(_member(text) for text in members)
        if len(addresses) != len(members):
            raise click.UsageError("a member is named twice")
        if len(set(addresses.values())) != len(addresses):
            raise click.UsageError("two members have the same address")
        authority = Authority.create()
        issued = [authority.issue(name, days) for name in addresses]
        files = {f"authority/{name}": content for name, content in authority.files.items()}
        for each in issued:
            snippet = {SNIPPET: _snippet(each.member, authority.cluster_id, addresses).encode()}
            files |= {f"nodes/{each.member}/{name}": content for name, content in (each.files | snippet).items()}
        publish(folder, files)
    rows = [_row(each, folder / "nodes" / each.member) for each in issued]
    _show(authority, folder / "authority", rows, as_json=as_json)


def _member(text: str) -> tuple[str, str]:
    from node.authority import check_member

    name, separator, address = text.partition("=")
    try:
        good = bool(separator) and 0 < split_address(msgspec.convert(address, Port))[1] < 65536
    except msgspec.ValidationError:
        good = False
    if not good:
        raise click.UsageError(f"{text!r} is not NAME=HOST:PORT")
    return check_member(name), address


def _snippet(member: str, cluster_id: str, addresses: dict[str, str]) -> str:
    return "\n".join(
        [
            "# Made by `meridian cluster init`: this node's part of the cluster, to be put into its configuration.",
            "# [cluster] is the same on every node; relative paths count from the folder of this file.",
            "[node]",
            f"name = {toml(member)}",
            "",
            "[listen]",
            f"peers = {toml(addresses[member])}",
            "",
            "[cluster]",
            f"id = {toml(cluster_id)}",
            'ca = "ca.crt"',
            'certificate = "node.crt"',
            'key = "node.key"',
            "members = [",
            *[f"  {toml(f'{name}={address}')}," for name, address in addresses.items()],
            "]",
            "",
        ]
    )


def _row(issued: Issued, folder: Path) -> dict[str, object]:
    return {
        "member": issued.member,
        "expires": f"{issued.expires:%Y-%m-%d}",
        "copy": f"{folder}/*",
        "to": f"/etc/meridian on {issued.member}",
    }


def _shown(authority: Authority, folder: Path) -> dict[str, object]:
    return {"cluster_id": authority.cluster_id, "folder": str(folder), "expires": f"{authority.expires:%Y-%m-%d}"}


def _show(authority: Authority, folder: Path, rows: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        show_json({"authority": _shown(authority, folder), "members": rows})
        return
    show_table(_COLUMNS, rows)
    click.echo(f"\ncluster {authority.cluster_id}; keep {folder}/ca.key off the nodes")
