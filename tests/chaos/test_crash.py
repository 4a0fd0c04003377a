"""A node killed under load, on a good disk and on one that loses what was not synced. `make soak` does far more."""

from pathlib import Path

import pytest

from chaos.crash import Plan, run_campaign
from chaos.fsyncs import PACKAGES, judge, removals
from chaos.mount import LossyMount, fuse_missing
from chaos.powercuts import cut_everywhere, parts_covering
from chaos.region import NodeRefused, RegionFolders, RegionNode, Settings

ROOT = Path(__file__).parent.parent.parent
needs_fuse = pytest.mark.skipif(bool(fuse_missing()), reason=f"FUSE: {fuse_missing()}")


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(rounds=5, seed=1, most_seconds=0.8), id="kill"),
        pytest.param(Plan(rounds=4, seed=2, most_seconds=0.8, lossy=True), id="power", marks=needs_fuse),
    ],
)
async def test_nothing_acknowledged_is_lost(tmp_path: Path, plan: Plan) -> None:
    report = await run_campaign(plan, tmp_path / "crash", print)
    assert report.violations == ()
    assert report.rounds == plan.rounds
    assert report.acknowledged > 10 * plan.rounds


@needs_fuse
async def test_a_log_that_is_not_synced_is_noticed(tmp_path: Path) -> None:
    (removal,) = (each for each in removals(ROOT) if "Wal._write:" in each.what)
    verdict = await judge(removal, tmp_path / "judge", ROOT, print)
    assert verdict.by_kills.startswith("lost")
    assert verdict.by_cuts


def test_every_sync_of_the_product_can_be_removed() -> None:
    found = removals(ROOT)
    assert {each.path.partition("/")[0] for each in found} >= {"consensus", "node"}
    for each in found:
        assert each.texts or (ROOT / each.path).read_text().splitlines()[each.first - 1].lstrip()
    assert all((ROOT / package).is_dir() for package in PACKAGES)


@needs_fuse
@pytest.mark.parametrize(
    ("path", "stride"),
    [
        ("consensus/wal.py", 9),
        ("consensus/state.py", 9),
        ("consensus/archive.py", 9),
        ("node/premises.py", 1),
        ("node/authority.py", 1),
        ("node/blobs/", 9),
    ],
)
def test_power_may_fail_at_any_change(tmp_path: Path, path: str, stride: int) -> None:
    with LossyMount(tmp_path / "disk") as mount:
        assert cut_everywhere(mount, parts=parts_covering(path), stride=stride) > 10


async def test_killing_leaves_no_process(tmp_path: Path) -> None:
    node = RegionNode(RegionFolders(tmp_path / "data", tmp_path / "work"))
    node.start()
    await node.wait_ready()
    before = node.pids()
    assert len(before) >= 4  # supervisor, keeper, two gateways
    node.kill()
    assert not any(_alive(pid) for pid in before)


async def test_a_node_that_cannot_start_is_reported(tmp_path: Path) -> None:
    node = RegionNode(RegionFolders(tmp_path / "data", tmp_path / "work"), settings=Settings(more="[nonsense]"))
    node.start()
    with pytest.raises(NodeRefused, match="nonsense"):
        await node.wait_ready()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
