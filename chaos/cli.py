"""`meridian chaos`: what drives a node from outside and judges what it did. Found through the entry points of
`meridian.commands`, so that the product itself never imports this package."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

import click

from chaos import campaign
from chaos.crash import Plan, run_campaign
from chaos.fsyncs import HEADER, judge, removals
from chaos.mount import fuse_missing
from chaos.outages import OUTAGES, PARTITIONS
from chaos.simulation.command import simulate_command

_PRODUCT = Path(__file__).resolve().parent.parent


@click.group()
def chaos() -> None:
    """Kill, cut, starve and corrupt a node of this machine, and check that it keeps its promises.

    Everything runs on loopback ports and in temporary folders; no configured cluster is touched.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nodes that were started are ended


@chaos.command()
@click.option("--rounds", type=click.IntRange(min=1), default=100, show_default=True, help="How often to kill.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the pushes and the moments.")
@click.option("--pushers", type=click.IntRange(1, 256), default=8, show_default=True, help="Concurrent clients.")
@click.option("--most-seconds", type=float, default=1.5, show_default=True, help="Longest time from push to kill.")
@click.option("--lossy", is_flag=True, help="The kill is a power failure: what was not synced is lost (needs FUSE).")
@click.option("--kept", type=click.FloatRange(0, 1), default=0.0, help="With --lossy: chance that it is not.")
@click.option("--slow-seconds", type=float, default=0.0, help="With --lossy: what each fsync takes.")
@click.option("--full", type=click.FloatRange(0, 1), default=0.0, help="With --lossy: chance of ENOSPC, a write.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for data and logs; kept if a promise is broken.")
def crash(work: Path | None, **options: float) -> None:
    """Push concurrently, kill -9 everything at a random moment, restart, and audit; again and again.

    After each restart every acknowledged blob, manifest and tag must be there byte for byte, nothing else may be half
    visible, and uploads in progress resume or answer 404. The exit status is 1 if anything is not so.
    """
    plan = Plan(**options)  # type: ignore[arg-type]
    _require_fuse(plan.lossy)
    report = asyncio.run(run_campaign(plan, _work(work) / f"seed-{plan.seed}", click.echo))
    for violation in report.violations:
        click.echo(str(violation), err=True)
    click.echo(f"{report.rounds} rounds in {report.seconds:.0f} s: {len(report.violations)} promises broken")
    sys.exit(bool(report.violations))


@chaos.command()
@click.option("--rounds", type=click.IntRange(min=1), default=40, show_default=True, help="How often.")
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the pushes and the moments.")
@click.option(
    "--fault",
    type=click.Choice([*OUTAGES, "partition"]),
    multiple=True,
    default=("leader",),
    show_default=True,
    help="What happens; several take turns, partition stands for every kind of it.",
)
@click.option("--pushers", type=click.IntRange(1, 64), default=2, show_default=True, help="Clients in each region.")
@click.option("--most-seconds", type=float, default=1.5, show_default=True, help="Longest time from push to outage.")
@click.option("--outage-seconds", type=float, default=6.0, show_default=True, help="Length of a partition or freeze.")
@click.option("--round-trip-seconds", type=float, default=0.0, help="Between any two regions.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for data and logs; kept if a promise is broken.")
def regions(fault: tuple[str, ...], work: Path | None, **options: float) -> None:
    """Push in three regions at once, let nodes die, freeze or lose each other, heal, and audit every region.

    Each acknowledged write must be there everywhere, whatever was read must be explained by one order of all writes, a
    region without a majority must acknowledge nothing, the others must go on, and all states must be the same in the
    end. The exit status is 1 if anything is not so.
    """
    kinds = tuple(kind for each in fault for kind in (PARTITIONS if each == "partition" else (each,)))
    plan = campaign.Plan(kinds=kinds, lossy="power" in kinds, **options)  # type: ignore[arg-type]
    _require_fuse(plan.lossy)
    report = asyncio.run(campaign.run_campaign(plan, _work(work) / f"seed-{plan.seed}", click.echo))
    for violation in report.violations:
        click.echo(str(violation), err=True)
    if report.elections:
        times = ", ".join(f"{each:.1f}" for each in sorted(report.elections))
        click.echo(f"new leaders after (s): {times}")
    click.echo(f"{report.rounds} rounds in {report.seconds:.0f} s: {len(report.violations)} promises broken")
    sys.exit(bool(report.violations))


@chaos.command()
@click.option("--only", default="", help="Only calls whose description contains this.")
@click.option("--control/--no-control", default=True, help="Also run every attempt with nothing removed.")
@click.option("--verbose", is_flag=True, help="Tell every round.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the copies, data and logs.")
def fsyncs(only: str, control: bool, verbose: bool, work: Path | None) -> None:
    """Take each fsync out of the code in turn and show that the crash test notices: a table in Markdown.

    The exit status is 1 if the loss of one goes unnoticed, or if the test fails with none removed.
    """
    _require_fuse(True)
    folder = _work(work)
    tell = click.echo if verbose else lambda _: None
    failed = False
    click.echo(HEADER)
    chosen = [None] if control else []
    for removal in [*chosen, *(each for each in removals(_PRODUCT) if only in str(each))]:
        verdict = asyncio.run(judge(removal, folder / "fsyncs", _PRODUCT, tell))
        click.echo(verdict.row)
        failed |= (removal is None) == verdict.noticed
    sys.exit(failed)


chaos.add_command(simulate_command)


def _work(work: Path | None) -> Path:
    return work or Path(tempfile.mkdtemp(prefix="meridian-chaos-"))


def _require_fuse(needed: bool) -> None:
    if needed and (reason := fuse_missing()):
        raise click.ClickException(f"the lossy file system needs FUSE: {reason}")


if __name__ == "__main__":
    chaos()
