"""Waiting until members hold all of an image, for `meridian replication wait`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from consensus import clock
from consensus.names import Digest, Reference, RepositoryName
from node.cli_client import ANSWER_SECONDS, Refused, answer_of, is_late
from node.overview.operations import PREFIX
from node.overview.shapes import BringRequest, BringStatus, ImageAtMember, ImageStatus
from node.progress import image_progress, named, size

if TYPE_CHECKING:
    import httpx

LOOK_SECONDS = 0.5
ASK_AGAIN_SECONDS = 5.0
LEAST_SECONDS = 1.0  # for one answer


@dataclass
class Waiting:
    """For an image at some members: those of the regions with these names, None for all."""

    client: httpx.Client
    repository: RepositoryName
    reference: Reference
    names: Sequence[str] | None
    status: ImageStatus | None = None
    doubt: str = ""  # why `status` is not of now

    @property
    def chosen(self) -> list[ImageAtMember]:
        """The members that count."""
        members = self.status.members if self.status else ()
        return [each for each in members if self.names is None or {each.member, each.region} & set(self.names)]

    @property
    def unseen(self) -> list[str]:
        """Names that no member is known by."""
        members = self.status.members if self.status else ()
        known = {name for each in members for name in (each.member, each.region)}
        return [name for name in self.names or () if name not in known]

    def run(self, deadline: float, *, bring: bool) -> bool:
        """Whether all of it was there in time."""
        self._look(deadline)
        while not self.status:
            self._pause(deadline)
            if clock.monotonic() >= deadline:
                return False
            self._look(deadline)
        self._check_names(self.status)
        self.reference = Digest.parse(self.status.digest)  # the tag may move meanwhile
        asked_at = float("-inf")
        with image_progress(self.status.size_bytes, {each.member: named(each) for each in self.chosen}) as shown:
            while True:
                shown.update(self.chosen)
                lacking = [each.member for each in self.chosen if each.state != "complete"]
                if not lacking and not self.unseen and not self.doubt:
                    return True
                if clock.monotonic() >= deadline:
                    return False
                if bring and lacking and clock.monotonic() - asked_at >= ASK_AGAIN_SECONDS:
                    asked_at = clock.monotonic()
                    self._bring(lacking)
                self._pause(deadline)
                self._look(deadline)

    def _look(self, deadline: float) -> None:
        """What cannot be said now, or in the time that is left, is asked again."""
        self.client.timeout = max(LEAST_SECONDS, min(ANSWER_SECONDS, deadline - clock.monotonic()))
        try:
            self.status = answer_of(self.client, self._path, ImageStatus)
            self.doubt = ""
        except Refused as error:
            if error.status != 503:
                raise
            self.doubt = error.message
        except click.ClickException as error:
            if self.status is None and not is_late(error):
                raise
            self.doubt = error.message

    def _bring(self, members: Sequence[str]) -> None:
        with suppress(click.ClickException):  # the answer of the next look is what counts
            answer_of(self.client, self._path, BringStatus, BringRequest(members=tuple(members)))

    def _pause(self, deadline: float) -> None:
        time.sleep(max(0.0, min(LOOK_SECONDS, deadline - clock.monotonic())))

    def _check_names(self, status: ImageStatus) -> None:
        """A member that has not been heard of yet may be in any region."""
        if self.unseen and all(each.region for each in status.members):
            known = sorted({each.region for each in status.members})
            raise click.BadParameter(
                f"no region or member {', '.join(self.unseen)}; the regions are {', '.join(known)}",
                param_hint="'--regions'",
            )

    @property
    def _path(self) -> str:
        return f"{PREFIX}/replication/images/{self.repository}/manifests/{quote(str(self.reference), safe=':')}"


def complain(waiting: Waiting, image: str, timeout: float) -> None:
    """Says on standard error what is missing where, and why."""
    click.echo(f"meridian: not all of {image} is there after {timeout:g} s", err=True)
    if waiting.doubt:
        click.echo(f"  the node does not say how far it is: {waiting.doubt}", err=True)
    for name in waiting.unseen if waiting.status else ():
        click.echo(f"  {name}: no member that answers stands there", err=True)
    for each in waiting.chosen:
        if each.state == "unreachable":
            click.echo(f"  {named(each)}: cannot be reached: {each.reason}", err=True)
        elif each.state == "incomplete":
            lacks = (waiting.status.blobs if waiting.status else 0) - each.held_blobs
            click.echo(f"  {named(each)}: lacks {lacks} blobs", err=True)
            for missing in each.missing:
                click.echo(f"    {missing.digest} ({size(missing.size_bytes)}): {missing.reason}", err=True)
