"""Which regions are one cluster on this machine, and what each of them gets to know the others by."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.local import Cluster, LocalError
from node.local_members import Members
from tests.node.commands import files_of


def test_the_members_are_fixed(tmp_path: Path) -> None:
    cluster = Cluster.from_environment({"MERIDIAN_DATA": str(tmp_path), "REGIONS": "eu,us"})
    made = Members.of(cluster)
    assert (len(made.cluster_id), made.left_out) == (32, ())
    assert Members.of(cluster) == made
    for regions in ("eu,us,ap", "us,eu", "eu"):
        with pytest.raises(LocalError, match="whose members are fixed: set REGIONS=eu,us, or another MERIDIAN_DATA"):
            Members.of(Cluster.from_environment({"MERIDIAN_DATA": str(tmp_path), "REGIONS": regions}))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_each_region_has_a_key_of_its_own_and_all_list_the_same_members(tmp_path: Path) -> None:
    cluster = Cluster.from_environment({"MERIDIAN_DATA": str(tmp_path), "REGIONS": "eu,us", "BASE_PORT": "7000"})
    members = Members.of(cluster)
    eu, us = (members.section(region) for region in members.regions)
    assert eu == us == members.section(members.regions[0])
    assert 'members = ["eu-1=127.0.0.1:7201", "us-1=127.0.0.1:7202"]' in eu
    keys = [files_of(tmp_path / name / "tls") for name in ("eu", "us")]
    assert keys[0]["ca.crt"] == keys[1]["ca.crt"]
    assert keys[0]["node.key"] != keys[1]["node.key"]
    (tmp_path / "ca.key").unlink()  # is needed for the first start of a region only
    assert members.section(members.regions[1]) == us
    shutil.rmtree(tmp_path / "us")
    with pytest.raises(LocalError, match="region us: no authority in"):
        members.section(members.regions[1])


def test_a_start_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_text("half")
    (tmp_path / "ca.crt.new").write_text("half")
    members = Members.of(Cluster.from_environment({"MERIDIAN_DATA": str(tmp_path), "REGIONS": "eu,us"}))
    assert members.section(members.regions[0])


def test_a_damaged_record_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(LocalError, match=r"cluster\.json is damaged"):
        Members.of(Cluster.from_environment({"MERIDIAN_DATA": str(tmp_path)}))
