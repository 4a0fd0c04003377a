"""Commands, envelopes and outcomes as bytes: versioned msgpack, refused rather than guessed.

Decoding goes through the vocabulary of `consensus.names`, so a decoded value is as well formed as a parsed one.
Whatever the bytes are, decoding returns a value or raises InvalidCommand, in memory bounded by MAX_COMMAND_BYTES.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack

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
    Expected,
    ManifestFacts,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.errors import InvalidCommand, InvalidName
from consensus.names import Digest, RepositoryName, StoreId, Tag, parse_media_type
from consensus.parts import are_parts_of

MAX_PARTS = 64  # of one staged manifest: 4 MiB in parts of 96 KiB take 43
MAX_TIME_MS = 253_402_300_800_000  # the year 10000: keeps log time far from 64 bits, whatever is proposed
MAX_INTEGER = 2**63 - 1

_SHARD = 0
_MAX_ARRAY = 8192  # more elements than this do not fit a command in any valid form
_STORE = re.compile(r"[0-9a-f]{32}")
_PRINTABLE = re.compile(r"[ -~]{1,255}")


def encode(envelope: Envelope) -> bytes:
    """The entry for the log; raises InvalidCommand when it is over MAX_COMMAND_BYTES."""
    kind, fields = _pack(envelope.command)
    head = (VERSION, _SHARD, envelope.proposer, envelope.sequence, envelope.acknowledged, envelope.time_ms)
    return _bounded(msgpack.packb((*head, kind, fields)))


def decode(payload: bytes) -> Envelope:
    """The inverse of `encode`; raises InvalidCommand for anything else."""
    try:
        version, shard, proposer, sequence, acknowledged, time_ms, kind, fields = _unpack(payload)
        _known(version, shard)
        return Envelope(
            proposer=_integer(proposer),
            sequence=_integer(sequence),
            acknowledged=_integer(acknowledged),
            time_ms=_integer(time_ms, MAX_TIME_MS),
            command=_parse(kind, fields),
        )
    except (ValueError, TypeError) as error:
        raise InvalidCommand(f"not an envelope: {error}") from error


def encode_command(command: Command) -> bytes:
    """A command alone, on its way to whoever will propose it; raises InvalidCommand over MAX_COMMAND_BYTES."""
    return _bounded(msgpack.packb((VERSION, *_pack(command))))


def decode_command(payload: bytes) -> Command:
    """The inverse of `encode_command`; raises InvalidCommand for anything else."""
    try:
        version, kind, fields = _unpack(payload)
        _known(version, _SHARD)
        return _parse(kind, fields)
    except (ValueError, TypeError) as error:
        raise InvalidCommand(f"not a command: {error}") from error


def encode_outcome(outcome: Outcome) -> bytes:
    """An outcome, as kept in the state and as sent to the proposer."""
    digests = [digest.packed for digest in outcome.digests]
    fields = (outcome.status, outcome.index, outcome.changed, outcome.reason, digests, outcome.created)
    return bytes(msgpack.packb((VERSION, *fields)))


def decode_outcome(payload: bytes) -> Outcome:
    """The inverse of `encode_outcome`; raises InvalidCommand for anything else."""
    try:
        version, status, index, changed, reason, digests, created = _unpack(payload)
        _known(version, _SHARD)
        return Outcome(
            status=Status(status),
            index=_integer(index),
            changed=_integer(changed),
            reason=Reason(reason),
            digests=_digests(digests),
            created=_boolean(created),
        )
    except (ValueError, TypeError) as error:
        raise InvalidCommand(f"not an outcome: {error}") from error


def split_manifest(command: PutManifest) -> tuple[Command, ...]:
    """The commands that bring a manifest (with its content) into the log, in order: the command itself if it fits,
    otherwise its parts and then the command without content. The last one's outcome is the answer."""
    if command.content is None or len(encode_command(replace(command, content=None))) + len(command.content) <= _ROOM:
        return (command,)
    size = MAX_STAGED_PART_BYTES
    pieces = [command.content[start : start + size] for start in range(0, len(command.content), size)]
    staged = [
        StageContent(command.repository, command.digest, part, len(pieces), piece) for part, piece in enumerate(pieces)
    ]
    return (*staged, replace(command, content=None))


_ROOM = MAX_COMMAND_BYTES - 128  # the envelope's head and the content's own header take less than this


def _bounded(payload: bytes) -> bytes:
    if len(payload) > MAX_COMMAND_BYTES:
        raise InvalidCommand(f"{len(payload)} bytes; a command takes at most {MAX_COMMAND_BYTES}")
    return payload


def _unpack(payload: bytes) -> tuple[Any, ...]:
    try:
        value = msgpack.unpackb(
            _bounded(payload),
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_COMMAND_BYTES,
            max_bin_len=MAX_COMMAND_BYTES,
            max_array_len=_MAX_ARRAY,
            max_map_len=0,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError, OverflowError) as error:
        raise InvalidCommand(f"not msgpack within the bounds: {error}") from error
    return _array(value)


def _known(version: object, shard: object) -> None:
    if type(version) is not int or version != VERSION:
        raise InvalidCommand(f"version {str(version)[:20]} is not known here; this is version {VERSION}")
    if type(shard) is not int or shard != _SHARD:
        raise InvalidCommand(f"shard {str(shard)[:20]} is not known here")


# Fields: each parser takes whatever msgpack made and returns the one type it stands for.


def _integer(value: object, most: int = MAX_INTEGER) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidCommand(f"expected an integer from 0 to {most}")
    return value


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise InvalidCommand("expected a boolean")
    return value


def _text(value: object) -> str:
    if type(value) is not str:
        raise InvalidCommand("expected text")
    return value


def _binary(value: object) -> bytes:
    if type(value) is not bytes:
        raise InvalidCommand("expected bytes")
    return value


def _array(value: object) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise InvalidCommand("expected an array")
    return value


def _digest(value: object) -> Digest:
    return Digest.from_bytes(_binary(value))


def _digests(value: object) -> tuple[Digest, ...]:
    return tuple(map(_digest, _array(value)))


def _repository(value: object) -> RepositoryName:
    return RepositoryName.parse(_text(value))


def _store(value: object) -> StoreId:
    text = _text(value)
    if not _STORE.fullmatch(text):
        raise InvalidName("store", text, "expected 32 hexadecimal characters")
    return StoreId(text)


def _printable(value: object) -> str:
    text = _text(value)
    if not _PRINTABLE.fullmatch(text):
        raise InvalidCommand("expected 1 to 255 printable ASCII characters")
    return text


def _media_type(value: object) -> str:
    text = _text(value)
    if parse_media_type(text) != text:
        raise InvalidName("media type", text, "parameters do not belong here")
    return text


def _expected(value: object) -> Expected:
    if value is None:
        return None
    return ABSENT if value is False else _digest(value)


def _facts(value: object) -> ManifestFacts:
    media_type, artifact_type, subject, blobs, manifests, annotations = _array(value)
    return ManifestFacts(
        media_type=_media_type(media_type),
        artifact_type=None if artifact_type is None else _printable(artifact_type),
        subject=None if subject is None else _digest(subject),
        blobs=_digests(blobs),
        manifests=_digests(manifests),
        annotations=tuple(_annotation(pair) for pair in _array(annotations)),
    )


def _annotation(value: object) -> tuple[str, str]:
    key, text = _array(value)
    return _text(key), _text(text)


# Commands: one function each way. The field order is the format; a new field needs a new version or kind.


def _pack_enrol(command: EnrolProposer) -> tuple[Any, ...]:
    return (command.name,)


def _parse_enrol(name: object) -> EnrolProposer:
    return EnrolProposer(_printable(name))


def _pack_record(command: RecordBlobs) -> tuple[Any, ...]:
    blobs = [(blob.digest.packed, blob.size_bytes, blob.parts) for blob in command.blobs]
    return command.repository.value, command.store, blobs


def _parse_record(repository: object, store: object, blobs: object) -> RecordBlobs:
    facts = tuple(_blob_fact(blob) for blob in _array(blobs))
    if not facts:
        raise InvalidCommand("expected at least one blob")
    return RecordBlobs(_repository(repository), _store(store), facts)


def _blob_fact(value: object) -> BlobFact:
    digest, size_bytes, parts = _array(value)
    fact = BlobFact(_digest(digest), _integer(size_bytes), _binary(parts))
    if not are_parts_of(fact.parts, fact.size_bytes):
        raise InvalidCommand(f"{len(fact.parts)} bytes are not the digests of the parts of {fact.size_bytes} bytes")
    return fact


def _pack_mount(command: MountBlob) -> tuple[Any, ...]:
    return command.repository.value, command.digest.packed, command.source.value if command.source else None


def _parse_mount(repository: object, digest: object, source: object) -> MountBlob:
    return MountBlob(_repository(repository), _digest(digest), None if source is None else _repository(source))


def _pack_stage(command: StageContent) -> tuple[Any, ...]:
    return command.repository.value, command.digest.packed, command.part, command.parts, command.content


def _parse_stage(repository: object, digest: object, part: object, parts: object, content: object) -> StageContent:
    count, piece = _integer(parts, MAX_PARTS), _binary(content)
    if not 0 < len(piece) <= MAX_STAGED_PART_BYTES:
        raise InvalidCommand(f"a part holds 1 to {MAX_STAGED_PART_BYTES} bytes")
    return StageContent(_repository(repository), _digest(digest), _integer(part, count - 1), count, piece)


def _pack_put(command: PutManifest) -> tuple[Any, ...]:
    facts, expected = command.facts, command.expected
    packed_facts = (
        facts.media_type,
        facts.artifact_type,
        facts.subject.packed if facts.subject else None,
        [digest.packed for digest in facts.blobs],
        [digest.packed for digest in facts.manifests],
        facts.annotations,
    )
    return (
        command.repository.value,
        command.digest.packed,
        command.size_bytes,
        command.content,
        packed_facts,
        [tag.value for tag in command.tags],
        expected.packed if isinstance(expected, Digest) else None if expected is None else False,
        command.sparse,
    )


def _parse_put(*fields: object) -> PutManifest:
    repository, digest, size_bytes, content, facts, tags, expected, sparse = fields
    return PutManifest(
        repository=_repository(repository),
        digest=_digest(digest),
        size_bytes=_integer(size_bytes, MAX_MANIFEST_BYTES),
        content=None if content is None else _binary(content),
        facts=_facts(facts),
        tags=tuple(Tag.parse(_text(tag)) for tag in _array(tags)),
        expected=_expected(expected),
        sparse=_boolean(sparse),
    )


def _pack_delete_tag(command: DeleteTag) -> tuple[Any, ...]:
    return command.repository.value, command.tag.value, command.expected.packed if command.expected else None


def _parse_delete_tag(repository: object, tag: object, expected: object) -> DeleteTag:
    return DeleteTag(_repository(repository), Tag.parse(_text(tag)), None if expected is None else _digest(expected))


def _pack_delete(command: DeleteManifest | DeleteBlob) -> tuple[Any, ...]:
    return command.repository.value, command.digest.packed


def _parse_delete_manifest(repository: object, digest: object) -> DeleteManifest:
    return DeleteManifest(_repository(repository), _digest(digest))


def _parse_delete_blob(repository: object, digest: object) -> DeleteBlob:
    return DeleteBlob(_repository(repository), _digest(digest))


class _Kind(NamedTuple):
    code: int
    type: type[Command]
    pack: Callable[[Any], tuple[Any, ...]]
    parse: Callable[..., Command]


_KINDS = (
    _Kind(1, EnrolProposer, _pack_enrol, _parse_enrol),
    _Kind(2, RecordBlobs, _pack_record, _parse_record),
    _Kind(3, MountBlob, _pack_mount, _parse_mount),
    _Kind(4, StageContent, _pack_stage, _parse_stage),
    _Kind(5, PutManifest, _pack_put, _parse_put),
    _Kind(6, DeleteTag, _pack_delete_tag, _parse_delete_tag),
    _Kind(7, DeleteManifest, _pack_delete, _parse_delete_manifest),
    _Kind(8, DeleteBlob, _pack_delete, _parse_delete_blob),
)
_OF_TYPE = {kind.type: kind for kind in _KINDS}
_OF_CODE = {kind.code: kind for kind in _KINDS}


def _pack(command: Command) -> tuple[int, tuple[Any, ...]]:
    kind = _OF_TYPE[type(command)]
    return kind.code, kind.pack(command)


def _parse(code: object, fields: object) -> Command:
    kind = _OF_CODE.get(code) if type(code) is int else None
    if kind is None:
        raise InvalidCommand(f"command kind {str(code)[:20]} is not known here")
    return kind.parse(*_array(fields))
