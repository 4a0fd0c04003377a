"""Why a blob is where it is, or is not: from what the members say and the log. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.logs import timestamp
from node.overview.shapes import MAX_NAMED, BlobAtMember, Holdings, ImageAtMember, MissingBlob
from replication.reports import FailureReport


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of a member: `store_id` "" and `region` "" while they are not. `holdings` is None if it did not
    answer, and `reason` why."""

    member: str
    region: str
    store_id: str
    holdings: Holdings | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    """What the log says of one."""

    digest: str
    size_bytes: int
    stores: tuple[str, ...]


def blob_at(heard: Heard, blob: Blob, everywhere: Sequence[Heard]) -> BlobAtMember:
    """How it is with the blob at one member."""
    state, received_bytes, rate = "held", 0, 0.0
    found, recorded = heard.holdings, heard.store_id in blob.stores
    failure = next((each for each in found.failures if each.digest == blob.digest), None) if found else None
    if found is None:
        state, reason = "unreachable", heard.reason
        if recorded:
            reason = f"the log says that it is held there, but: {reason}"
    elif blob.digest in found.held:
        received_bytes, reason, failure = blob.size_bytes, "held", None
    elif arriving := next((each for each in found.arriving if each.digest == blob.digest), None):
        state, received_bytes, rate = "arriving", arriving.received_bytes, arriving.bytes_per_second
        givers = ", ".join(source.member or source.store for source in arriving.sources) or "nobody yet"
        reason = f"arriving: {received_bytes} of {blob.size_bytes} bytes, {rate:.0f} bytes/s, from {givers}"
        if failure and not arriving.sources:
            reason = f"{_failed(failure)}, and is tried again; {_sources(heard, blob, everywhere)}"
    else:
        state = "missing"
        reason = f"{_missing(found, blob, recorded=recorded)}; {_sources(heard, blob, everywhere)}"
    return BlobAtMember(
        member=heard.member,
        region=heard.region,
        state=state,  # type: ignore[arg-type]
        recorded=recorded,
        received_bytes=received_bytes,
        bytes_per_second=rate,
        failure=failure,
        reason=reason,
    )


def image_at(heard: Heard, blobs: Sequence[Blob], everywhere: Sequence[Heard]) -> ImageAtMember:
    """How much of an image one member holds."""
    found = heard.holdings
    held = set(found.held) if found else set()
    lacking = [blob for blob in blobs if blob.digest not in held]
    wanted = {blob.digest for blob in lacking}
    arriving = [each for each in found.arriving if each.digest in wanted] if found else []
    missing = []
    for blob in lacking[:MAX_NAMED]:
        reason = blob_at(heard, blob, everywhere).reason
        missing.append(MissingBlob(digest=blob.digest, size_bytes=blob.size_bytes, reason=reason))
    return ImageAtMember(
        member=heard.member,
        region=heard.region,
        state="unreachable" if found is None else "incomplete" if lacking else "complete",
        held_blobs=len(blobs) - len(lacking),
        held_bytes=sum(blob.size_bytes for blob in blobs if blob.digest in held),
        arriving_bytes=sum(each.received_bytes for each in arriving),
        bytes_per_second=sum(each.bytes_per_second for each in arriving),
        missing=tuple(missing) if found else (),
        reason=heard.reason if found is None else "",
    )


def lost_stores(blob: Blob, everywhere: Sequence[Heard]) -> tuple[str, ...]:
    """Those that the log names and no member is known to have."""
    return tuple(store for store in blob.stores if store not in {heard.store_id for heard in everywhere})


def _missing(found: Holdings, blob: Blob, *, recorded: bool) -> str:
    if recorded:
        return "the log says that it is held there, but the store does not have it"
    if not found.replicator:
        return "the process that brings blobs there does not answer"
    if blob.digest in found.waiting:
        return "it waits for its turn to be brought"
    for failure in found.failures:
        if failure.digest == blob.digest:
            return _failed(failure)
    return "it was not asked for there lately"


def _failed(failure: FailureReport) -> str:
    times = "once" if failure.times == 1 else f"{failure.times} times"
    at = timestamp(failure.at_ms)
    return f"it could not be brought {times}, the last time at {at}: {failure.cause}: {failure.reason}"


def _sources(heard: Heard, blob: Blob, everywhere: Sequence[Heard]) -> str:
    """Who has it, or could have it."""
    others = [other for other in everywhere if other.member != heard.member]
    holders = [other.member for other in others if other.holdings and blob.digest in other.holdings.held]
    if holders:
        return f"held by {', '.join(holders)}"
    named = {other.member: other.reason for other in others if other.store_id in blob.stores and not other.holdings}
    silent = {other.member: other.reason for other in others if not other.holdings}
    if named:
        return f"nobody who answers has it, and of those that the log names {_listed(named)}"
    if silent:
        return f"nobody who answers has it, and {_listed(silent)}"
    return "no member has it: its bytes are lost, or their disk is elsewhere"


def _listed(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{member} cannot be reached ({reason})" for member, reason in reasons.items())
