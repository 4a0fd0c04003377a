"""`meridian local`: a cluster on this machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import click

from consensus import clock
from consensus.errors import ConsensusError
from node.config import environment
from node.local import Cluster, LocalError, LocalRegion, stop, wait_started
from node.local_members import Members, stands_alone
from node.tables import show_json, show_table

START_SECONDS = 55.0


@contextmanager
def _cluster() -> Iterator[Cluster]:
    try:
        yield Cluster.from_environment(environment())
    except LocalError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def local() -> None:
    """Run a cluster on this machine, for trying it and for tests.

    Read from the environment by each of these commands:

    \b
      REGIONS        names, separated by commas     [eu,us,ap]
      BASE_PORT      the i-th region serves at 127.0.0.1:BASE_PORT+i, its admin address is
                     100 above that, its addresses for the other regions 200 and 300     [5100]
      MERIDIAN_DATA  one folder for each region, with its data, log, certificate and pid     [./.meridian]

    They are one cluster, which has the same regions from its first start on. To begin anew, move MERIDIAN_DATA away or
    name another folder.
    """


@local.command()
def up() -> None:
    """Start the regions and stay in the foreground until Ctrl-C, SIGTERM or `meridian local down`.

    Prints a line that starts with "ready" once every region answers; if one does not within 240 s it ends with exit
    code 1 and the end of that region's log. Regions that run already are adopted. What goes down later is reported and
    not started again. At the end all regions are stopped; data stay.

    \b
    Example:
      REGIONS=eu,us BASE_PORT=6000 meridian local up
    """
    from node.local_up import up as run

    with _cluster() as cluster:
        run(cluster, environment(), say)


@local.command()
def down() -> None:
    """Stop every region of the data folder, and a `meridian local up` in the foreground, within 30 s."""
    from node.local_up import down as run

    with _cluster() as cluster:
        for name in run(cluster):
            say(f"region {name}: stopped")


@local.command()
@click.argument("region")
def start(region: str) -> None:
    """Start REGION, detached; returns once it is ready. Does nothing if it runs.

    While too few of the other regions run for a majority it cannot become ready: then this says so, after some seconds
    and with exit code 0, as the region runs and will be ready by itself as soon as others are started.

    \b
    Example:
      meridian local start eu
    """
    with _cluster() as cluster:
        members = Members.of(cluster)
        chosen = members.region(region)
        log_start = chosen.folder.log_bytes()
        deadline = clock.monotonic() + START_SECONDS
        if chosen.start(environment(), members.section(chosen)) is None:
            say(f"region {region}: runs already, pid {chosen.folder.supervisor()}")
            return
        ready = wait_started(chosen, deadline, log_start=log_start)
        how = "ready" if ready else "runs, but waits for a majority of the regions"
        say(f"region {region}: {how}, pid {chosen.folder.supervisor()}, http://{chosen.address}")


@local.command("stop")
@click.argument("region")
def stop_region(region: str) -> None:
    """Stop REGION; its data stay. Does nothing if it does not run."""
    with _cluster() as cluster:
        chosen = cluster.region(region).folder
        ran = stop([chosen]) if chosen.path.is_dir() else []
        say(f"region {region}: " + ("stopped" if ran else "was not running"))


@local.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON: one object for each region.")
def status(as_json: bool) -> None:
    """Show each region: running, starting (alive, not ready), waiting (for a majority of the regions), stopped, or
    unused (see `meridian local up`)."""
    with _cluster() as cluster:
        unused = cluster.regions[1:] if stands_alone(cluster) else ()
        rows = [_row(region, used=region not in unused) for region in cluster.regions]
    if as_json:
        show_json(rows)
    else:
        show_table(["region", "state", "pid", "address", "ready", "applied"], rows)


def _row(region: LocalRegion, *, used: bool) -> dict[str, object]:
    pid = region.folder.supervisor()
    state, ready = "stopped" if used else "unused", False
    if pid is not None:
        code, checks = region.probe()
        ready = code == 200
        waits = checks.get("cluster", "ok") != "ok"
        state = "running" if ready else "waiting" if waits else "starting"
    return {
        "region": region.name,
        "state": state,
        "pid": pid,
        "address": region.address,
        "admin": region.admin,
        "ready": ready,
        "applied": _applied(region),
    }


def _applied(region: LocalRegion) -> int | None:
    from consensus.views import Views

    try:
        views = Views(region.folder.path / "data" / "state")
    except (ConsensusError, sqlite3.Error, OSError):
        return None
    try:
        return views.applied()
    except sqlite3.Error:
        return None
    finally:
        views.close()


def say(line: str) -> None:
    """One line, at once: programs wait for it through a pipe."""
    click.echo(line)
