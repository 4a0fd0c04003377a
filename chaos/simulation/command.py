"""`meridian chaos simulate`."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

import click

from chaos.simulation.campaign import HEADER, Progress, outcomes, prove
from chaos.simulation.guards import GUARDS
from chaos.simulation.plan import draw
from chaos.simulation.world import Outcome, simulate

_COUNTED = ("commits", "acknowledged", "reads", "terms", "deaths", "faults", "messages", "seconds")
_NEVER = 1_000_000


@click.command(name="simulate")
@click.option("--seeds", type=click.IntRange(min=1), default=200, show_default=True, help="How many.")
@click.option("--from", "base", type=int, default=1, show_default=True, help="The first of them.")
@click.option("--members", type=click.Choice(["3", "5"]), help="Instead of what each seed says.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
@click.option("--without", "removed", type=click.Choice(list(GUARDS)), help="A guard to be taken away.")
@click.option("--trace", is_flag=True, help="Run the first seed only, and tell everything that happens.")
@click.option(
    "--prove", "proving", is_flag=True, help="Take each guard and each sync away in turn: a table in Markdown."
)
@click.option("--only", default="", help="With --prove: only what contains this.")
@click.option("--state", type=click.Path(path_type=Path), help="File to go on from after an interruption.")
def simulate_command(base: int, seeds: int, jobs: int, **options: object) -> None:
    """Run the shipped log on a simulated network, clock and disk, and check its promises.

    A seed and a commit reproduce a run exactly. The exit status is 1 if a promise is broken; with --prove, if the loss
    of something goes unnoticed within that many seeds.
    """
    members = int(str(options["members"])) if options["members"] else None
    if options["trace"]:
        _tell(simulate(draw(base, members), told=_NEVER))
    elif options["proving"]:
        click.echo(HEADER)
        proofs = prove(base, seeds, str(options["only"]), click.echo, jobs=jobs)
        sys.exit(any(proof.outcome.promise is None for proof in proofs))
    else:
        progress = Progress(options["state"] if isinstance(options["state"], Path) else None, base)
        sys.exit(not _campaign(base, seeds, jobs, progress, members=members, removed=options["removed"]))


def _campaign(base: int, seeds: int, jobs: int, progress: Progress, **options: object) -> bool:
    began, done = monotonic(), progress.done
    skipped = done
    sums = dict.fromkeys(_COUNTED, 0.0)
    for outcome in outcomes(base + done, seeds - done, jobs, **options):
        if outcome.promise is not None:
            _tell(outcome)
            progress.save(done)
            return False
        done += 1
        for name in _COUNTED:
            sums[name] += getattr(outcome, name)
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {seeds} seeds, {_speed(done - skipped, began)}", err=True, nl=False)
        if done % 50 == 0 or done == seeds:
            progress.save(done)
    fresh = max(1, done - skipped)
    means = ", ".join(f"{total / fresh:.0f} {name}" for name, total in sums.items())
    click.echo(
        f"\r{done} seeds from {base} on without a broken promise, {_speed(done - skipped, began)}; a seed: {means}"
    )
    return True


def _speed(done: int, began: float) -> str:
    return f"{done / max(0.001, monotonic() - began):.1f} a second"


def _tell(outcome: Outcome) -> None:
    click.echo(outcome.story)
    click.echo(f"seed {outcome.seed}: {outcome.promise or 'no promise broken'} {outcome.detail}")
    click.echo(f"trace {outcome.digest}")
