"""Work that takes a while, as a person sees it: bars at a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from consensus import clock
from node.logs import timestamp
from node.overview.shapes import ImageAtMember, MemberStatus
from replication.reports import ReplicatorReport, TransferReport

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SHORT_DIGEST = 19  # characters: the algorithm and twelve digits


def size(count: float) -> str:
    """With the unit that fits."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float | None) -> str:
    """In the unit that fits; "-" if there is none."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def named(member: MemberStatus | ImageAtMember) -> str:
    """A member and its region, as far as it is known."""
    return f"{member.member} [{member.region}]" if member.region else member.member


def member_row(status: MemberStatus) -> dict[str, object]:
    """Of the table of members."""
    row: dict[str, object] = {"member": status.member, "region": status.region or None, "state": status.state}
    report = status.replication
    if report is None:
        return row
    return row | {
        "arriving": len(report.transfers),
        "rate": f"{size(sum(each.bytes_per_second for each in report.transfers))}/s",
        "waiting": len(report.waiting),
        "misses": report.totals.misses,
        "kept": report.totals.kept,
        "failed": sum(report.totals.failed.values()),
        "received": size(report.totals.received_bytes),
        "lag p50": duration(report.lag.p50_seconds),
        "lag p99": duration(report.lag.p99_seconds),
    }


def transfer_row(member: str, transfer: TransferReport) -> dict[str, object]:
    """Of the table of transfers."""
    troubles = " ".join(f"{cause}:{count}" for cause, count in sorted(transfer.troubles.items()))
    return {
        "member": member,
        "digest": transfer.digest,
        "received": f"{size(transfer.received_bytes)} of {size(transfer.size_bytes)}",
        "share": f"{_share(transfer):.0%}",
        "rate": f"{size(transfer.bytes_per_second)}/s",
        "since": duration(transfer.seconds),
        "followers": transfer.followers,
        "from": " ".join(source.member or source.store for source in transfer.sources) or None,
        "troubles": troubles or None,
    }


def summary(status: MemberStatus) -> str:
    """A member in one line."""
    report = status.replication
    if report is None:
        return f"{named(status)}: {status.state}: {status.reason}"
    failed = sum(report.totals.failed.values())
    lag = f", lag p50 {duration(report.lag.p50_seconds)} p99 {duration(report.lag.p99_seconds)}"
    return (
        f"{named(status)}: {len(report.transfers)} arriving, {len(report.waiting)} waiting, {report.totals.kept} kept, "
        f"{failed} failed{lag if report.lag.count else ''}"
    )


def show_lines(statuses: Sequence[MemberStatus], before: dict[str, str]) -> None:
    """What has changed since `before`, which is kept up, and every transfer."""
    now = timestamp(clock.wall_ms())
    for status in statuses:
        line = summary(status)
        if before.get(status.member) != line:
            before[status.member] = line
            click.echo(f"{now} {line}")
        for each in _transfers(status.replication):
            place = f"{size(each.received_bytes)} of {size(each.size_bytes)} ({_share(each):.0%})"
            click.echo(f"{now} {named(status)}: {each.digest}: {place}, {size(each.bytes_per_second)}/s")


def picture(statuses: Sequence[MemberStatus]) -> RenderableType:
    """For a terminal: each member's line, a bar for each transfer."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for status in statuses:
        style = "bold" if status.replication else "bold red"
        parts.append(Text(summary(status), style=style))
        bars = Table.grid(padding=(0, 2))
        for each in _transfers(status.replication):
            total, done = max(1, each.size_bytes), each.received_bytes if each.size_bytes else 1
            bars.add_row(
                Text(f"  {each.digest[:SHORT_DIGEST]}"),
                ProgressBar(total=total, completed=done, width=30),
                Text(f"{size(each.received_bytes)} of {size(each.size_bytes)}"),
                Text(f"{size(each.bytes_per_second)}/s"),
                Text(" ".join(source.member or source.store[:8] for source in each.sources)),
            )
        if bars.row_count:
            parts.append(bars)
    return Group(*parts)


class Shown(Protocol):
    """The progress of an image at several members."""

    def update(self, members: Sequence[ImageAtMember]) -> None:
        """How far they are."""


@contextmanager
def image_progress(size_bytes: int, names: Mapping[str, str]) -> Iterator[Shown]:
    """Bars on standard error, one for each of the members, whose names to show are given; lines where nobody sits at a
    terminal."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=Console(stderr=True)) as progress:
        tasks = {member: progress.add_task(name, total=max(1, size_bytes), rate="") for member, name in names.items()}

        class Bars:
            def update(self, members: Sequence[ImageAtMember]) -> None:
                for each in members:
                    if each.member in tasks:
                        done = each.held_bytes + each.arriving_bytes
                        rate = "unreachable" if each.state == "unreachable" else f"{size(each.bytes_per_second)}/s"
                        whole = each.state == "complete"
                        progress.update(
                            tasks[each.member],
                            completed=max(1, size_bytes) if whole else done,
                            rate="" if whole else rate,
                        )

        yield Bars()


class _Lines:
    """One for each member whose standing changes."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def update(self, members: Sequence[ImageAtMember]) -> None:
        for each in members:
            line = f"{named(each)}: {each.state}, {each.held_blobs} blobs held"
            if self._before.get(each.member) != line:
                self._before[each.member] = line
                click.echo(line, err=True)


def _transfers(report: ReplicatorReport | None) -> Sequence[TransferReport]:
    return report.transfers if report else ()


def _share(transfer: TransferReport) -> float:
    return transfer.received_bytes / transfer.size_bytes if transfer.size_bytes else 1.0
