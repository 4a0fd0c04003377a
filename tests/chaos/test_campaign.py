"""Three regions that die, freeze and lose each other under load. `make soak` does far more."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.campaign import Plan, run_campaign
from chaos.mount import fuse_missing

needs_fuse = pytest.mark.skipif(bool(fuse_missing()), reason=f"FUSE: {fuse_missing()}")


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(2, ("leader",), seed=1, most_seconds=0.3, pushers=1), id="leader"),
        pytest.param(Plan(2, ("all",), seed=2, most_seconds=0.3, pushers=1), id="all"),
        pytest.param(
            Plan(2, ("power",), seed=3, most_seconds=0.3, pushers=1, lossy=True), id="power", marks=needs_fuse
        ),
        pytest.param(Plan(1, ("cut-leader",), seed=4, most_seconds=0.3, pushers=1), id="partition"),
    ],
)
@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost_in_any_region(tmp_path: Path, plan: Plan) -> None:
    report = await run_campaign(plan, tmp_path / "regions", print)
    assert report.violations == ()
    assert report.rounds == plan.rounds
    assert report.acknowledged > 10 * plan.rounds
    if plan.kinds in {("leader",), ("cut-leader",)}:
        assert len(report.elections) == plan.rounds
