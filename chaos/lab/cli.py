"""`meridian lab`: regions joined by an emulated WAN, on this machine. Found through the entry points of
`meridian.commands`, so that the product itself never imports this package."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from chaos.lab.errors import LabError, LabRefused
from chaos.lab.folder import DEFAULT, LabFolder
from chaos.lab.topology import WORLD, load
from node.tables import show_json, show_table

_PRODUCT = Path(__file__).resolve().parent.parent.parent
_DETACH_SECONDS = 120.0
_POLL_SECONDS = 0.05
Command = TypeVar("Command", bound=Callable[..., Any])


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (LabError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _work_option(command: Command) -> Command:
    option = click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT,
        show_default=True,
        metavar="DIR",
        help="The lab's folder; several labs may be up, each in a folder of its own.",
    )
    return option(command)


@click.group()
def lab() -> None:
    """Run regions joined by an emulated WAN on this machine.

    As root each region is a network namespace: whatever runs in it, a node, a client or a benchmark, has delay, jitter,
    loss and a bounded rate between itself and the other regions, each direction by itself. For everybody else, what the
    nodes say to each other goes through a relay on loopback: it is delayed, narrowed and cut alike, but it carries
    streams and no packets, so none gets lost, and clients are all in one place.

    \b
    Example:
      meridian lab up --detach
      meridian lab run eu -- sh -c 'skopeo copy --dest-tls-verify=false oci:app docker://$REGISTRY/app'
      meridian lab set eu us --delay 60 --loss 0.001 --both
      meridian lab set ap --cut --both
      meridian lab status
      meridian lab down

    Nothing outlives a lab but files in its folder.
    """


@lab.command()
@click.option(
    "--topology",
    type=click.Path(path_type=Path, dir_okay=False),
    default=WORLD,
    metavar="FILE",
    help="Regions and links, in TOML. Without it: eu, us and ap, 80, 150 and 220 ms apart; "
    "`meridian lab topology` prints that file, with comments.",
)
@_work_option
@click.option("--loopback", is_flag=True, help="No namespaces, also for root.")
@click.option("--detach", is_flag=True, help="Return once it is ready; `meridian lab down` ends it.")
def up(topology: Path, work: Path, loopback: bool, detach: bool) -> None:
    """Start a cluster on an emulated WAN, empty, and stay in the foreground until Ctrl-C or SIGTERM.

    Prints where each region serves, and "ready" once all of them do. A folder that a lab has used before is emptied.
    """
    folder = LabFolder(work)
    if detach:
        command = ["up", "--topology", str(topology.absolute()), "--work", str(folder.path)]
        with _reported():
            _detach(folder, [*command, *(["--loopback"] if loopback else [])])
        return
    from chaos.lab.process import serve
    from chaos.lab.wan import Kind, best_kind

    with _reported():
        described = load(topology)
        best, why_not = best_kind()
        kind: Kind = "loopback" if loopback else best
        if why_not and not loopback:
            click.echo(f"on loopback, without network namespaces ({why_not})")
        if kind == "loopback" and any(link.loss for link in described.links.values()):
            click.echo("loss is not emulated on loopback: streams lose no packets")
        asyncio.run(serve(described, folder, kind, click.echo))


def _detach(folder: LabFolder, arguments: list[str]) -> None:
    folder.prepare()
    with folder.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chaos.lab.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(_PRODUCT), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _DETACH_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            record = folder.record()
            if record is not None and record.pid == process.pid and record.ready:
                click.echo(folder.log.read_text("utf-8"), nl=False)
                return
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    process.terminate()
    process.wait()
    raise LabRefused(folder.log.read_text("utf-8").strip().removeprefix("Error: ") or "it did not get ready in time")


@lab.command()
@_work_option
def down(work: Path) -> None:
    """End the lab and every program that was started in it, also one whose own process was killed."""
    with _reported():
        click.echo("down" if LabFolder(work).down() else "no lab was up")


@lab.command()
@_work_option
@click.option("--json", "as_json", is_flag=True, help="As JSON: one object.")
def status(work: Path, as_json: bool) -> None:
    """Show the regions with their processes, and each way between them: what it is like, and what it has carried.

    LOST packets were lost by chance or by a cut, DROPPED ones found the queue full. "-" is what this kind of lab does
    not emulate or does not know.
    """
    with _reported():
        found = _ask(work, {"do": "status"})
    if as_json:
        show_json(found)
        return
    click.echo(f"lab {found['id'][:6]}: {found['kind']}, carried by {found['carried_by']}, pid {found['carrier_pid']}")
    for region in found["regions"]:
        region["processes"] = " ".join(map(str, region.pop("pids")))
    click.echo()
    show_table(
        ["region", "state", "leads", "applied", "address", "admin", "congestion_control", "processes"], found["regions"]
    )
    click.echo()
    _show_ways(found["ways"])


@lab.command("set")
@click.argument("source", metavar="[FROM]", default="")
@click.argument("sink", metavar="[TO]", default="")
@click.option("--both", is_flag=True, help="The other direction as well.")
@click.option("--delay", "delay_ms", type=float, metavar="MS", help="One way.")
@click.option("--jitter", "jitter_ms", type=float, metavar="MS", help="Up to so much is added; nothing is reordered.")
@click.option("--loss", type=float, metavar="SHARE", help="Of the packets, 0 to 1; not on loopback.")
@click.option("--rate", "rate_mbit", type=float, metavar="MBIT", help="Mbit/s.")
@click.option("--queue", "queue_bytes", type=int, metavar="BYTES", help="What may wait for the line; not on loopback.")
@click.option("--queue-ms", type=float, metavar="MS", help="The same, as the time that it takes at the rate.")
@click.option("--cut/--heal", default=None, help="Let nothing pass, or let it pass again.")
@_work_option
def change(source: str, sink: str, both: bool, work: Path, **changes: float | bool | None) -> None:
    """Change the way FROM one region TO another while the lab runs; what is not named stays as it is.

    Without TO it is every way from that region, without both every way there is. What is under way keeps its time.

    \b
    Examples:
      meridian lab set eu us --delay 40 --loss 0.001 --rate 200 --both
      meridian lab set us eu --cut          us is not heard in eu any more, but hears it
      meridian lab set ap --cut --both      ap is alone
      meridian lab set --heal               nothing is cut
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise click.UsageError("nothing to change: name at least one of --delay, --jitter, --loss, --rate ...")
    with _reported():
        _show_ways(_ask(work, {"do": "set", "from": source, "to": sink, "both": both, "changes": given})["ways"])


@lab.command(context_settings={"ignore_unknown_options": True})
@_work_option
@click.argument("region")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(work: Path, region: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in REGION; the exit code is the command's.

    In its environment REGISTRY is the address of the region's own registry, REGISTRY_US that of the region us, and so
    on. In a lab on loopback it runs on this machine, and nothing delays it.

    \b
    Examples:
      meridian lab run us -- skopeo inspect --tls-verify=false docker://198.18.7.1:5000/team/app:1.0
      meridian lab run us -- sh -c 'curl -s http://$REGISTRY_EU/v2/'
      meridian lab run ap -- bash
    """
    from chaos.lab.laboratory import surroundings

    with _reported():
        record = LabFolder(work).running()
        if region not in record.regions:
            raise LabRefused(f"no region {region!r}: expected one of {', '.join(record.regions) or 'none yet'}")
        registries = {name: each.registry for name, each in record.regions.items()}
        words = [*surroundings(record.id, region, registries), *record.regions[region].entry, *command]
        os.execvp(words[0], words)  # noqa: S606


@lab.command()
def topology() -> None:
    """Print the topology that `up` takes when it is given none: a file to begin with."""
    click.echo(WORLD.read_text("utf-8"), nl=False)


def _ask(work: Path, order: dict[str, Any]) -> dict[str, Any]:
    from chaos.lab.process import ask

    return ask(LabFolder(work), order)


def _show_ways(ways: list[dict[str, Any]]) -> None:
    columns = ["from", "to", "delay_ms", "jitter_ms", "loss", "rate_mbit", "queue_bytes", "cut"]
    show_table([*columns, "packets", "bytes", "lost", "dropped"], ways)


if __name__ == "__main__":
    lab()
