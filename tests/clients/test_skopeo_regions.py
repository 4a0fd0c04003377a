"""skopeo at three regions: what it pushed to one it gets from the others at once, by tag and digest, and nothing old.

MERIDIAN_IMAGES says how many images; a soak takes 100.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.layouts import Layout, tagged
from tests.clients.workspace import Workspace
from tests.node.walled_regions import AP, EU, US, Regions, walled_regions

IMAGES = int(os.environ.get("MERIDIAN_IMAGES", "5"))

pytestmark = pytest.mark.timeout(120 + 10 * IMAGES)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Regions]:
    with walled_regions(tmp_path_factory.mktemp("regions")) as made:
        yield made


@pytest.fixture
def places(regions: Regions) -> list[str]:
    """The repository as each region has it."""
    return [f"docker://{region.address}/team/app" for region in regions.cluster.regions]


@pytest.fixture
def skopeo(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home", "127.0.0.1:1")


def copy(skopeo: Workspace, source: str, target: str, *options: str) -> None:
    skopeo.run("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", *options, source, target)


def digest_at(skopeo: Workspace, image: str) -> str | None:
    """Of a tag; None if there is none."""
    done = skopeo.attempt("skopeo", "inspect", "--tls-verify=false", "--no-tags", "--format={{.Digest}}", image)
    if done.returncode:
        assert "manifest unknown" in done.stderr, done.stderr
        return None
    return done.stdout.strip()


def test_images_are_everywhere_at_once(skopeo: Workspace, places: list[str], tmp_path: Path) -> None:
    for number in range(IMAGES):
        images, tag = Layout(tmp_path / f"{number}"), f"v{number}"
        digest = images.tag("it", images.add_image(seed=f"{number}"))
        copy(skopeo, f"oci:{images.folder}:it", f"{places[EU]}:{tag}")
        for region, reference in ((US, f":{tag}"), (AP, f"@{digest}"), (AP, f":{tag}"), (US, f"@{digest}")):
            back = tmp_path / f"{number}-{region}-{reference[0] == ':'}"
            copy(skopeo, places[region] + reference, f"oci:{back}:it")
            assert tagged(back) == digest
            assert Layout(back).tree(digest) == images.tree(digest)


def test_no_region_shows_an_old_tag(skopeo: Workspace, places: list[str], tmp_path: Path) -> None:
    images = Layout(tmp_path / "images")
    first, second = (images.tag(seed, images.add_image(seed=seed)) for seed in ("first", "second"))
    copy(skopeo, f"oci:{images.folder}:second", f"{places[EU]}:second")
    for _ in range(IMAGES):
        copy(skopeo, f"oci:{images.folder}:first", f"{places[EU]}:moving")
        assert digest_at(skopeo, f"{places[AP]}:moving") == first
        copy(skopeo, f"{places[US]}:second", f"{places[US]}:moving")
        assert digest_at(skopeo, f"{places[AP]}:moving") == second
        skopeo.run("skopeo", "delete", "--tls-verify=false", f"{places[AP]}:moving")
        assert digest_at(skopeo, f"{places[EU]}:moving") is None
        copy(skopeo, f"oci:{images.folder}:second", f"{places[EU]}:second")
