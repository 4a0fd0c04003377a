"""Why a blob is not somewhere, in words."""

from __future__ import annotations

from typing import Any

from node.overview.reasons import Blob, Heard, blob_at, image_at, lost_stores
from node.overview.shapes import MAX_NAMED, Holdings
from replication.reports import FailureReport, SourceReport, TransferReport

BLOB = Blob("sha256:1", 100, ("store-eu",))


def heard(name: str, *held: str, **fields: Any) -> Heard:
    known: dict[str, Any] = {"arriving": (), "waiting": (), "failures": (), "replicator": True, **fields}
    holdings = Holdings(member=name, region=name, store_id=f"store-{name}", held=held, **known)
    return Heard(name, name, f"store-{name}", holdings)


def away(name: str, store: str = "") -> Heard:
    return Heard(name, "", store, None, "no answer within 5 s")


def why(at: Heard, *others: Heard, blob: Blob = BLOB) -> tuple[str, str]:
    found = blob_at(at, blob, (at, *others))
    return found.state, found.reason


FAILURE = FailureReport(digest="sha256:1", cause="HoldersUnreachable", reason="eu: refused", times=3, at_ms=0)
ARRIVING = TransferReport(
    digest="sha256:1",
    size_bytes=100,
    received_bytes=40,
    verified_bytes=20,
    bytes_per_second=10.0,
    seconds=4.0,
    followers=1,
    flows=2,
    sources=(
        SourceReport(store="store-eu", member="eu", flows=2),
        SourceReport(store="store-zz", member="", flows=0),
    ),
    troubles={},
)


def test_each_state_has_its_words() -> None:
    eu = heard("eu", "sha256:1")
    assert why(eu) == ("held", "held")
    assert why(heard("us"), eu) == ("missing", "it was not asked for there lately; held by eu")
    assert why(heard("us", waiting=("sha256:1",)), eu)[1].startswith("it waits for its turn to be brought; held")
    assert why(heard("us", arriving=(ARRIVING,)), eu) == (
        "arriving",
        "arriving: 40 of 100 bytes, 10 bytes/s, from eu, store-zz",
    )
    assert why(heard("us", failures=(FAILURE,)), eu) == (
        "missing",
        "it could not be brought 3 times, the last time at 1970-01-01T00:00:00.000Z: HoldersUnreachable: eu: refused; "
        "held by eu",
    )
    assert why(heard("us", replicator=False), eu)[1].startswith("the process that brings blobs there does not answer")
    assert why(away("us"), eu) == ("unreachable", "no answer within 5 s")
    assert why(away("eu", "store-eu")) == (
        "unreachable",
        "the log says that it is held there, but: no answer within 5 s",
    )


def test_who_could_have_it() -> None:
    us = heard("us")
    never = "it was not asked for there lately; "
    lost = "no member has it: its bytes are lost, or their disk is elsewhere"
    assert why(us, heard("eu")) == ("missing", never + lost)
    assert why(heard("eu"), us) == (
        "missing",
        f"the log says that it is held there, but the store does not have it; {lost}",
    )
    reason = "nobody who answers has it, and of those that the log names eu cannot be reached (no answer within 5 s)"
    assert why(us, away("eu", "store-eu")) == ("missing", never + reason)
    reason = "nobody who answers has it, and eu cannot be reached (no answer within 5 s)"
    assert why(us, away("eu")) == ("missing", never + reason)  # whose store nobody knows
    reason = "nobody who answers has it, and ap cannot be reached (no answer within 5 s)"
    assert why(us, away("ap", "store-ap"), heard("eu")) == ("missing", never + reason)  # it may have a copy
    assert lost_stores(BLOB, (us, away("eu"))) == ("store-eu",)
    assert lost_stores(BLOB, (us, heard("eu"))) == ()


def test_an_image_is_counted_and_what_it_lacks_is_named_up_to_a_bound() -> None:
    blobs = [Blob(f"sha256:{number}", 10, ("store-eu",)) for number in range(50)]
    arriving = TransferReport(**{**{f: getattr(ARRIVING, f) for f in ARRIVING.__struct_fields__}, "received_bytes": 7})
    eu, us = heard("eu", *(blob.digest for blob in blobs)), heard("us", "sha256:0", arriving=(arriving,))
    found = image_at(us, blobs, (us, eu))
    assert (found.state, found.held_blobs, found.held_bytes, found.arriving_bytes) == ("incomplete", 1, 10, 7)
    assert len(found.missing) == MAX_NAMED
    assert found.missing[0].reason.startswith("arriving: 7 of 10 bytes")
    whole = image_at(eu, blobs, (us, eu))
    assert (whole.state, whole.held_blobs, whole.held_bytes, whole.missing) == ("complete", 50, 500, ())
    gone = image_at(away("ap"), blobs, (us, eu))
    assert (gone.state, gone.held_blobs, gone.missing, gone.reason) == ("unreachable", 0, (), "no answer within 5 s")
