"""`meridian replication`: what is on its way between regions, why a blob is not somewhere, waiting for an image."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from consensus import clock
from consensus.errors import InvalidName
from consensus.names import Digest, Reference, RepositoryName, parse_reference
from node.cli import config_option
from node.cli_client import NOT_READY, answer_of, client_of, configured
from node.logs import timestamp
from node.overview.shapes import (
    BlobStatus,
    MemberStatus,
    MemberStatuses,
)
from node.progress import member_row, named, picture, show_lines, size, transfer_row
from node.tables import show_json, show_table
from node.waiting import Waiting, complain

if TYPE_CHECKING:
    import httpx
    from click.shell_completion import CompletionItem

PATH = "/meridian/v1/replication"
LOOK_SECONDS = 1.0
ASK_AGAIN_SECONDS = 5.0
COMPLETION_SECONDS = 1.0
_MEMBER_COLUMNS = ["member", "region", "state", "arriving", "rate", "waiting", "misses", "kept", "failed", "received"]
_LAG_COLUMNS = ["lag p50", "lag p99"]
_TRANSFER_COLUMNS = ["member", "digest", "received", "share", "rate", "since", "followers", "from", "troubles"]
_FAILURE_COLUMNS = ["member", "last", "times", "digest", "cause", "reason"]


class NotMet(click.ClickException):
    """The region may be that of a member that has not said yet where it stands."""

    exit_code = NOT_READY


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Of a time like 90, 90s, 5m or 1h."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh]?)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a time like 90s, 5m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def complete_regions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Regions and members, as the node knows them; nothing where it does not answer at once."""
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    names: list[str] = []
    with suppress(Exception), _admin(ctx.params.get("path"), COMPLETION_SECONDS) as client:
        found = answer_of(client, f"{PATH}/regions", MemberStatuses).members
        names = sorted({name for each in found for name in (each.region, each.member) if name})
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
_region = click.option(
    "--region", metavar="NAME", shell_complete=complete_regions, help="Only this region, or this member."
)


@click.group()
def replication() -> None:
    """See what is on its way between regions, why a blob is not somewhere, and wait for an image.

    These ask the admin address of the configured node, which asks the other members.
    """


@replication.command()
@config_option
@click.option("--all", "of_all", is_flag=True, help="Of every member, not only of this one.")
@_region
@_json
@click.pass_context
def status(ctx: click.Context, path: Path | None, of_all: bool, region: str | None, as_json: bool) -> None:
    """Show what is on its way here, what was brought since the replicator's start, how late, and what failed and why.

    Exit code 3 if a member that is shown does not answer, or the region may be that of one that was never met.

    \b
    Examples:
      meridian replication status
      meridian replication status --all
      meridian replication status --region us --json
    """
    with _admin(path) as client:
        shown = _statuses(client, of_all=of_all, region=region)
    if as_json:
        show_json(msgspec.to_builtins(MemberStatuses(members=tuple(shown))))
    else:
        _show_statuses(shown)
    ctx.exit(0 if all(each.state in {"ok", "alone"} for each in shown) else NOT_READY)


@replication.command()
@config_option
@_region
def watch(path: Path | None, region: str | None) -> None:
    """Watch transfers of all members (or one region) as they come, until Ctrl-C; plain lines without a terminal.

    \b
    Examples:
      meridian replication watch
      meridian replication watch --region us
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with suppress(KeyboardInterrupt), _admin(path) as client:
        first = _statuses(client, of_all=True, region=region)
        if not console.is_terminal:
            _watch_lines(client, region, first)
        with Live(picture(first), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(LOOK_SECONDS)
                live.update(_next_picture(client, region), refresh=True)


@replication.command()
@click.argument("digest")
@config_option
@_json
def why(digest: str, path: Path | None, as_json: bool) -> None:
    """Explain where the blob DIGEST is, and why it is not elsewhere.

    Each member looks into its store; nothing is fetched. "log" says whether the log names the member as a holder, which
    it does for those that took a push.

    \b
    Example:
      meridian replication why sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    """
    blob = _parsed(Digest, digest)
    with _admin(path) as client:
        found = answer_of(client, f"{PATH}/blobs/{blob}", BlobStatus)
    if as_json:
        show_json(msgspec.to_builtins(found))
        return
    click.echo(f"{found.digest}: {size(found.size_bytes)}, pushed {timestamp(found.pushed_ms)}")
    click.echo(f"in: {', '.join(found.repositories) or 'no repository'}")
    for manifest in found.manifests:
        click.echo(f"named by: {manifest.repository}@{manifest.digest}")
    rows = [
        {
            "member": each.member,
            "region": each.region or None,
            "state": each.state,
            "log": each.recorded,
            "why": each.reason,
        }
        for each in found.members
    ]
    click.echo()
    show_table(["member", "region", "state", "log", "why"], rows)
    for store in found.lost_stores:
        click.echo(f"the log also names store {store}, which no member that answers has")


@replication.command()
@click.argument("image", metavar="REF")
@config_option
@click.option(
    "--regions", metavar="NAMES", shell_complete=complete_regions, help="Where: regions or members; default all."
)
@click.option(
    "--timeout", metavar="TIME", callback=_seconds, default="60s", show_default=True, help="Give up after so long."
)
@click.option("--no-bring", is_flag=True, help="Only look: do not ask the regions to bring what they lack.")
@_json
@click.pass_context
def wait(  # noqa: PLR0913
    ctx: click.Context,
    *,
    image: str,
    path: Path | None,
    regions: str | None,
    timeout: float,
    no_bring: bool,
    as_json: bool,
) -> None:
    """Wait until regions hold every blob of an image, and with an index of all images below it.

    REF is REPOSITORY:TAG or REPOSITORY@DIGEST. The regions are asked to bring what they lack, unless --no-bring. Exit
    code 0 when all of it is there, 3 if it is not in time; then it says what is missing where, and why.

    \b
    Examples:
      meridian replication wait team/app:1.0
      meridian replication wait team/app:1.0 --regions us,ap --timeout 5m
    """
    deadline = clock.monotonic() + timeout
    repository, reference = _image(image)
    with _admin(path) as client:
        waiting = Waiting(client, repository, reference, _names(regions))
        done = waiting.run(deadline, bring=not no_bring)
    if as_json:
        show_json(msgspec.to_builtins(waiting.status))
    elif done:
        for each in waiting.chosen:
            click.echo(f"{named(each)}: holds all of {image}: {each.held_blobs} blobs, {size(each.held_bytes)}")
    if not done:
        complain(waiting, image, timeout)
        ctx.exit(NOT_READY)


def _show_statuses(shown: Sequence[MemberStatus]) -> None:
    show_table([*_MEMBER_COLUMNS, *_LAG_COLUMNS], [member_row(each) for each in shown])
    for each in shown:
        if each.reason:
            click.echo(f"{named(each)}: {each.reason}")
    reports = [(each.member, each.replication) for each in shown if each.replication]
    if transfers := [transfer_row(member, each) for member, report in reports for each in report.transfers]:
        click.echo()
        show_table(_TRANSFER_COLUMNS, transfers)
    failures = [
        {"member": member, "last": timestamp(each.at_ms), **msgspec.structs.asdict(each)}
        for member, report in reports
        for each in report.failures
    ]
    if failures:
        click.echo()
        show_table(_FAILURE_COLUMNS, failures)


def _statuses(client: httpx.Client, *, of_all: bool, region: str | None) -> list[MemberStatus]:
    """Raises UsageError if there is no such region, NotMet if there may be."""
    if not of_all and region is None:
        return [answer_of(client, PATH, MemberStatus)]
    found = answer_of(client, f"{PATH}/regions", MemberStatuses).members
    shown = [each for each in found if region in (None, each.region, each.member)]
    unmet = [each.member for each in found if not each.region]
    if not shown and unmet:
        raise NotMet(f"no member that was ever met stands in {region}; not met yet: {', '.join(unmet)}")
    if not shown:
        known = sorted({each.region or each.member for each in found})
        raise click.BadParameter(f"no region or member {region}; known are {', '.join(known)}", param_hint="'--region'")
    return shown


def _watch_lines(client: httpx.Client, region: str | None, shown: Sequence[MemberStatus]) -> NoReturn:
    before: dict[str, str] = {}
    while True:
        show_lines(shown, before)
        time.sleep(LOOK_SECONDS)
        try:
            shown = _statuses(client, of_all=True, region=region)
        except click.ClickException as error:  # the node may be there again soon
            click.echo(f"meridian: {error.format_message()}", err=True)


def _next_picture(client: httpx.Client, region: str | None) -> Any:
    """Goes on when the node does not answer for a while."""
    from rich.text import Text

    try:
        return picture(_statuses(client, of_all=True, region=region))
    except click.ClickException as error:
        return Text(error.format_message(), style="bold red")


def _admin(path: Path | None, seconds: float | None = None) -> httpx.Client:
    client = client_of(f"http://{configured(path).listen.admin}", None)
    if seconds is not None:
        client.timeout = seconds
    return client


def _names(regions: str | None) -> list[str] | None:
    if regions is None:
        return None
    names = [name for each in regions.split(",") if (name := each.strip())]
    if not names:
        raise click.BadParameter("names at least one region", param_hint="'--regions'")
    return names


def _image(text: str) -> tuple[RepositoryName, Reference]:
    """REPOSITORY:TAG or REPOSITORY@DIGEST. Raises BadParameter."""
    try:
        if "@" in text:
            name, _, reference = text.partition("@")
            return RepositoryName.parse(name), Digest.parse(reference)
        name, _, tag = text.partition(":")
        return RepositoryName.parse(name), parse_reference(tag or "latest")
    except InvalidName as error:
        raise click.BadParameter(
            f"{error}; expected REPOSITORY:TAG or REPOSITORY@DIGEST", param_hint="'REF'"
        ) from error


def _parsed(kind: type[Digest], text: str) -> Digest:
    try:
        return kind.parse(text)
    except InvalidName as error:
        raise click.BadParameter(str(error), param_hint="'DIGEST'") from error
