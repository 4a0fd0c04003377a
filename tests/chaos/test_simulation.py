"""The simulated cluster: it keeps its promises, it repeats itself, and it sees when something is missing."""

import json
import os
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from chaos.simulation.campaign import Progress, outcomes, run
from chaos.simulation.command import simulate_command
from chaos.simulation.guards import GUARDS
from chaos.simulation.omission import syncs
from chaos.simulation.plan import draw
from chaos.simulation.world import simulate

ROOT = Path(__file__).parent.parent.parent
SEEDS = int(os.environ.get("MERIDIAN_SIMULATION_SEEDS", "200"))
_STRIDE = 1_000


def _base() -> int:
    """Other seeds with every commit, the same ones again with the same commit."""
    counted = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    return _STRIDE * (1 + int(counted.stdout.strip() or 0))


@pytest.mark.timeout(600)
def test_promises_are_kept() -> None:
    base = _base()
    print(f"seeds from {base} on")
    found = list(outcomes(base, SEEDS, os.cpu_count() or 1))
    broken = [each for each in found if each.promise is not None]
    assert not broken, (
        f"{broken[0].story}\nseed {broken[0].seed}: {broken[0].promise}: {broken[0].detail}\n"
        f"Again: meridian chaos simulate --trace --from {broken[0].seed}"
    )
    assert sum(each.commits for each in found) > 50 * SEEDS
    assert sum(each.deaths for each in found) > 3 * SEEDS
    assert sum(each.terms for each in found) > 2 * SEEDS


@pytest.mark.parametrize("seed", [3, 7])
def test_a_seed_repeats_itself_whatever_the_order_of_sets(seed: int) -> None:
    script = "from chaos.simulation.plan import draw\nfrom chaos.simulation.world import simulate\n"
    script += f"print(simulate(draw({seed}), with_digest=True).digest)"
    found = {simulate(draw(seed), with_digest=True).digest}
    for order in ("1", "2"):
        surroundings = os.environ | {"PYTHONHASHSEED": order, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], env=surroundings, capture_output=True, check=True)
        found.add(done.stdout.decode().strip())
    assert len(found) == 1


def _seeds_needed(removed: str, most: int) -> int:
    return next(number for number in range(1, most + 1) if run(number, removed=removed).promise is not None)


@pytest.mark.parametrize(
    "guard", ["only a conflict truncates", "term and vote are kept", "pre-vote", "a leader without majority steps down"]
)
def test_a_missing_guard_is_seen(guard: str) -> None:
    assert guard in GUARDS
    assert _seeds_needed(guard, 20)


@pytest.mark.parametrize(
    ("story", "removed"),
    [
        ("figure_eight", "only entries of the term are counted"),
        ("two_leaders", "no acknowledgement from an older term"),
        ("stale_round", "the round begins after the read"),
        ("cut_short", "consensus/wal.py: Wal.cut: disk.sync_data(self._active)"),
        ("full_disk", "consensus/wal.py: Wal._cut_back: disk.sync_data(self._active)"),
    ],
)
def test_a_story_sees_what_it_is_told_for(story: str, removed: str) -> None:
    seeds = islice((seed for seed in count(1) if draw(seed).story == story), 20)
    seen = next(seed for seed in seeds if run(seed, removed=removed).promise is not None)
    assert run(seen).promise is None


def test_a_missing_sync_is_seen() -> None:
    (removed,) = (str(each) for each in syncs() if "Wal._write:" in each.what)
    assert _seeds_needed(removed, 20)


def test_a_guard_comes_back() -> None:
    removed = "only a conflict truncates"
    seed = next(seed for seed in range(1, 40) if run(seed, removed=removed).promise is not None)
    assert run(seed).promise is None


def test_a_campaign_goes_on_where_it_ended(tmp_path: Path) -> None:
    state = tmp_path / "progress"
    arguments = ["--jobs", "1", "--state", str(state), "--from", "1"]
    assert CliRunner().invoke(simulate_command, [*arguments, "--seeds", "2"]).exit_code == 0
    again = CliRunner().invoke(simulate_command, [*arguments, "--seeds", "3"])
    assert again.exit_code == 0
    assert "3 seeds from 1 on" in again.output
    assert json.loads(state.read_text())["done"] == 3
    state.write_text(state.read_text().replace('"sources": "', '"sources": "other '))
    assert Progress(state, 1).done == 0
    broken = CliRunner().invoke(
        simulate_command, ["--jobs", "1", "--seeds", "40", "--without", "only a conflict truncates"]
    )
    assert broken.exit_code == 1
    assert "what is acknowledged stays" in broken.output or "seed " in broken.output
