"""What is encoded comes back; what is not an encoding is refused, whatever the bytes are."""

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import (
    MAX_INTEGER,
    MAX_TIME_MS,
    decode,
    decode_command,
    decode_outcome,
    encode,
    encode_command,
    encode_outcome,
    split_manifest,
)
from consensus.commands import (
    ABSENT,
    MAX_COMMAND_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_STAGED_PART_BYTES,
    VERSION,
    BlobFact,
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    Envelope,
    ManifestFacts,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.errors import InvalidCommand
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.parts import MAX_PARTS, MIN_PARTED_BYTES, PART_BYTES, part_stop, parts_of

HEX = st.sampled_from("0123456789abcdef")
DIGESTS = st.one_of(
    st.text(HEX, min_size=64, max_size=64).map(lambda text: Digest("sha256", text)),
    st.text(HEX, min_size=128, max_size=128).map(lambda text: Digest("sha512", text)),
)
REPOSITORIES = st.from_regex(r"\A[a-z0-9]{1,9}([._-][a-z0-9]{1,9})?(/[a-z]{1,9}){0,3}\Z").map(RepositoryName.parse)
TAGS = st.from_regex(r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z").map(Tag.parse)
STORES = st.text(HEX, min_size=32, max_size=32).map(StoreId)
COUNTS = st.integers(0, MAX_INTEGER)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MEDIA_TYPES = st.sampled_from(["application/vnd.oci.image.manifest.v1+json", "text/plain", "a/b"])


def few(values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=least, max_size=4).map(tuple)


FACTS = st.builds(
    ManifestFacts,
    media_type=MEDIA_TYPES,
    artifact_type=st.none() | PRINTABLE,
    subject=st.none() | DIGESTS,
    blobs=few(DIGESTS),
    manifests=few(DIGESTS),
    annotations=few(st.tuples(TEXT, TEXT)),
)
PUTS = st.builds(
    PutManifest,
    repository=REPOSITORIES,
    digest=DIGESTS,
    size_bytes=st.integers(0, MAX_MANIFEST_BYTES),
    content=st.none() | st.binary(max_size=200),
    facts=FACTS,
    tags=few(TAGS),
    expected=st.none() | st.just(ABSENT) | DIGESTS,
    sparse=st.booleans(),
)
BLOBS = st.one_of(
    st.builds(BlobFact, DIGESTS, COUNTS),
    st.integers(MIN_PARTED_BYTES, 50 * PART_BYTES).flatmap(
        lambda size: st.builds(
            BlobFact,
            DIGESTS,
            st.just(size),
            st.binary(min_size=16, max_size=16).map(lambda part: part * parts_of(size)),
        )
    ),
)
STAGES = st.integers(1, 64).flatmap(
    lambda parts: st.builds(
        StageContent,
        REPOSITORIES,
        DIGESTS,
        part=st.integers(0, parts - 1),
        parts=st.just(parts),
        content=st.binary(min_size=1, max_size=200),
    )
)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(EnrolProposer, PRINTABLE),
    st.builds(RecordBlobs, REPOSITORIES, STORES, few(BLOBS, least=1)),
    st.builds(MountBlob, REPOSITORIES, DIGESTS, st.none() | REPOSITORIES),
    STAGES,
    PUTS,
    st.builds(DeleteTag, REPOSITORIES, TAGS, st.none() | DIGESTS),
    st.builds(DeleteManifest, REPOSITORIES, DIGESTS),
    st.builds(DeleteBlob, REPOSITORIES, DIGESTS),
)
ENVELOPES = st.builds(Envelope, COUNTS, COUNTS, COUNTS, st.integers(0, MAX_TIME_MS), COMMANDS)
OUTCOMES = st.builds(
    Outcome,
    status=st.sampled_from(Status),
    index=COUNTS,
    changed=COUNTS,
    reason=st.sampled_from(Reason),
    digests=few(DIGESTS),
    created=st.booleans(),
)
MSGPACK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=70) | TEXT,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=30,
)
DIGEST = Digest("sha256", "ab" * 32)
REPOSITORY = RepositoryName("team/app")


@settings(deadline=None)
@given(ENVELOPES)
def test_an_envelope_comes_back(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@settings(deadline=None)
@given(COMMANDS)
def test_a_command_comes_back(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@settings(deadline=None)
@given(OUTCOMES)
def test_an_outcome_comes_back(outcome: Outcome) -> None:
    assert decode_outcome(encode_outcome(outcome)) == outcome


def refused_or_valid(payload: bytes) -> None:
    for parse in (decode, decode_command, decode_outcome):
        with suppress(InvalidCommand):
            parse(payload)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(payload: bytes) -> None:
    refused_or_valid(payload)


@settings(deadline=None, max_examples=200)
@given(MSGPACK)
def test_random_values_are_refused(value: Any) -> None:
    refused_or_valid(msgpack.packb(value))


@settings(deadline=None, max_examples=200)
@given(st.data(), ENVELOPES)
def test_a_changed_field_is_refused_or_another_valid_command(data: st.DataObject, envelope: Envelope) -> None:
    value: Any = msgpack.unpackb(encode(envelope))
    fields = value
    while True:
        position = data.draw(st.integers(0, len(fields) - 1))
        if not isinstance(fields[position], list) or not fields[position] or data.draw(st.booleans()):
            break
        fields = fields[position]
    fields[position] = data.draw(MSGPACK)
    refused_or_valid(msgpack.packb(value))


@settings(deadline=None, max_examples=200)
@given(st.data(), ENVELOPES)
def test_damaged_bytes_are_refused_or_another_valid_command(data: st.DataObject, envelope: Envelope) -> None:
    payload = bytearray(encode(envelope))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refused_or_valid(bytes(payload))


@settings(deadline=None)
@given(st.data(), ENVELOPES)
def test_a_cut_encoding_is_refused(data: st.DataObject, envelope: Envelope) -> None:
    payload = encode(envelope)
    with pytest.raises(InvalidCommand):
        decode(payload[: data.draw(st.integers(0, len(payload) - 1))])
    with pytest.raises(InvalidCommand):
        decode(payload + b"\x00")


ENROL = [VERSION, 0, 0, 0, 0, 5, 1, ["gateway"]]
DELETE = ["team/app", DIGEST.packed]


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, VERSION + 1, f"version {VERSION + 1}"),
        (0, VERSION - 1, f"version {VERSION - 1}"),
        (0, 0, "version 0"),
        (0, True, "version True"),
        (0, "1", "version 1"),
        (1, 1, "shard 1"),
        (1, False, "shard False"),
        (2, -1, "integer"),
        (2, 2**63, "integer"),
        (3, 1.0, "integer"),
        (4, None, "integer"),
        (5, MAX_TIME_MS + 1, "integer"),
        (6, 0, "kind 0"),
        (6, 99, "kind 99"),
        (6, True, "kind True"),
        (6, [1], "kind"),
        (7, "gateway", "array"),
        (7, [], "argument"),
        (7, ["a", "b"], "argument"),
        (7, [""], "printable"),
        (7, ["a\n"], "printable"),
        (7, ["a" * 256], "printable"),
        (7, [b"a"], "text"),
    ],
)
def test_what_is_not_known_is_refused_by_name(position: int, value: object, reason: str) -> None:
    fields: list[object] = list(ENROL)
    assert decode(msgpack.packb(fields)).command == EnrolProposer("gateway")
    fields[position] = value
    with pytest.raises(InvalidCommand, match=reason):
        decode(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (2, ["team/app", "a" * 32, []]),
        (2, ["team/app", "A" * 32, [[DIGEST.packed, 1, b""]]]),
        (2, ["Team/App", "a" * 32, [[DIGEST.packed, 1, b""]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, -1, b""]]]),
        (2, ["team/app", "a" * 32, [[str(DIGEST), 1, b""]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, 1]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, 1, ""]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, 1, bytes(16)]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, MIN_PARTED_BYTES, bytes(7 * 16)]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, MIN_PARTED_BYTES, bytes(8 * 16 - 1)]]]),
        (2, ["team/app", "a" * 32, [[DIGEST.packed, part_stop(MAX_PARTS), bytes(16 * (MAX_PARTS + 1))]]]),
        (3, [*DELETE, False]),
        (4, [*DELETE, 2, 2, b"x"]),
        (4, [*DELETE, 0, 0, b"x"]),
        (4, [*DELETE, 0, 65, b"x"]),
        (4, [*DELETE, 0, 1, b""]),
        (4, [*DELETE, 0, 1, b"x" * (MAX_STAGED_PART_BYTES + 1)]),
        (5, [*DELETE, 1, b"x", ["a/b; c=d", None, None, [], [], []], [], None, False]),
        (5, [*DELETE, 1, b"x", ["a/b", None, None, [], [], [["k"]]], [], None, False]),
        (5, [*DELETE, 1, b"x", ["a/b", None, None, [], [], []], ["-"], None, False]),
        (5, [*DELETE, 1, b"x", ["a/b", None, None, [], [], []], [], True, False]),
        (5, [*DELETE, MAX_MANIFEST_BYTES + 1, b"x", ["a/b", None, None, [], [], []], [], None, False]),
        (5, [*DELETE, 1, b"x", ["a/b", None, None, [], [], []], [], None, 0]),
        (6, ["team/app", "v1", ABSENT.value]),
        (7, ["team/app", DIGEST.packed[:-1]]),
        (8, ["team/app", b"\x07" + DIGEST.packed[1:]]),
        (8, ["team/app", b""]),
    ],
)
def test_fields_that_do_not_parse_are_refused(kind: int, fields: list[object]) -> None:
    with pytest.raises(InvalidCommand):
        decode_command(msgpack.packb([VERSION, kind, fields]))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x91" * 100_000,  # arrays in arrays
        b"\xa2\xff\xfe",  # text that is not UTF-8
        b"\x00" * (MAX_COMMAND_BYTES + 1),
    ],
)
def test_hostile_shapes_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidCommand):
        decode(payload)


def a_manifest(content: bytes, blobs: int) -> PutManifest:
    digests = tuple(Digest("sha512", f"{number:0128x}") for number in range(blobs))
    facts = ManifestFacts("a/b", None, None, digests, (), ())
    return PutManifest(REPOSITORY, DIGEST, len(content), content, facts, (Tag("v1"),), None, sparse=False)


def test_a_command_over_the_size_is_refused_before_the_log() -> None:
    with pytest.raises(InvalidCommand, match="at most"):
        encode(Envelope(1, 1, 0, 0, a_manifest(b"x" * MAX_COMMAND_BYTES, 0)))
    with pytest.raises(InvalidCommand, match="at most"):
        encode_command(a_manifest(b"x" * MAX_COMMAND_BYTES, 0))


def test_the_largest_blob_that_has_parts_fits_a_command() -> None:
    size = part_stop(MAX_PARTS - 1)
    fact = BlobFact(Digest("sha512", "ab" * 64), size, bytes(16 * MAX_PARTS))
    command = RecordBlobs(RepositoryName("a" * 255), StoreId("a" * 32), (fact,))
    envelope = Envelope(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER, MAX_TIME_MS, command)
    assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize("blobs", [0, 1000])
@pytest.mark.parametrize("size", [0, 1, 60_000, MAX_STAGED_PART_BYTES, 130_000, 131_072, 200_000, MAX_MANIFEST_BYTES])
def test_a_manifest_of_any_size_is_split_into_commands_that_fit(size: int, blobs: int) -> None:
    whole = a_manifest(bytes(size), blobs)
    *parts, last = split_manifest(whole)
    for command in (*parts, last):
        envelope = Envelope(MAX_INTEGER, MAX_INTEGER, MAX_INTEGER, MAX_TIME_MS, command)
        assert decode(encode(envelope)) == envelope
    assert isinstance(last, PutManifest)
    staged = [part for part in parts if isinstance(part, StageContent)]
    assert len(staged) == len(parts)
    assert [(part.part, part.parts) for part in staged] == [(number, len(staged)) for number in range(len(staged))]
    assert (last.content or b"".join(part.content for part in staged)) == whole.content
    assert last.facts == whole.facts


def test_a_small_manifest_is_one_command() -> None:
    whole = a_manifest(b"x" * 2000, 10)
    assert split_manifest(whole) == (whole,)
