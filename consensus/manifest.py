"""What a manifest's bytes say, read once, strictly and within bounds.

The kinds that are understood: Docker image manifest v2 schema 2 and manifest list, OCI image manifest, index and
artifact manifest (image-spec v1.1 manifest.md, image-index.md). Bytes of any other media type are opaque: they need
not be JSON, and no fact is taken from them, unless they say themselves that they are of another type: that is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import msgspec

from consensus.commands import MAX_MANIFEST_BYTES, ManifestFacts
from consensus.errors import UNDECODABLE, InvalidManifest, InvalidName
from consensus.names import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 100_000  # a thousand descriptors with twenty annotations each take a quarter of it
MAX_DESCRIPTORS = 1_000
MAX_ANNOTATIONS_BYTES = 48 * 1024  # with a thousand SHA-512 digests beside them they still fit one command
MAX_INTEGER = 2**63 - 1

_IMAGES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_REFERRING = frozenset({OCI_MANIFEST, OCI_INDEX, OCI_ARTIFACT})
_DOCKER_SCHEMA_1 = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\+(?:json|prettyjws)", re.IGNORECASE)
_NOT_DISTRIBUTED = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.nondistributable\.|docker\.image\.rootfs\.foreign\.).+"
)
_BLOB_IN_INDEX = re.compile(
    r"application/vnd\.(?:oci\.image\.(?:layer|config)|docker\.(?:image\.rootfs|container\.image)|buildkit\.cacheconfig)\..+"
)
_FOREIGN_FIELDS = {
    "image": ("manifests", "blobs", "fsLayers"),
    "index": ("config", "layers", "blobs", "fsLayers"),
    "artifact": ("config", "layers", "manifests", "fsLayers"),
}
_TYPE_TEXT = re.compile(r"[ -~]{1,255}")
_PAIR_BYTES = 10  # what an annotation takes in a command beside its text


def is_index(media_type: str) -> bool:
    """Whether manifests of this type list other manifests."""
    return media_type in _INDEXES


def is_opaque(media_type: str) -> bool:
    """Whether nothing is read from manifests of this type."""
    return media_type not in _IMAGES and media_type not in _INDEXES and media_type != OCI_ARTIFACT


def parse_manifest(content: bytes, media_type: str) -> ManifestFacts:
    """The facts of a manifest pushed with this (parsed) Content-Type. Annotations are kept where there is a subject, as
    the referrers API lists them. Raises InvalidManifest with a reason for the client, in time and memory bounded by
    MAX_JSON_VALUES."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"{len(content)} bytes; at most {MAX_MANIFEST_BYTES} are accepted")
    if not is_opaque(media_type.lower()):
        media_type = media_type.lower()  # RFC 9110, section 8.3.1: media types have no case
    if _DOCKER_SCHEMA_1.fullmatch(media_type):
        raise InvalidManifest("Docker manifests of schema 1 are not supported; push schema 2 or OCI")
    if is_opaque(media_type):
        _check_opaque(content, media_type)
        return ManifestFacts(media_type, None, None, (), (), ())
    fields = _load(content)
    if fields.get("mediaType") not in (None, media_type):
        raise InvalidManifest("mediaType is not the Content-Type it was pushed with")
    if media_type in _INDEXES:
        blobs, manifests, fallback = _index(fields)
    elif media_type == OCI_ARTIFACT:
        blobs, manifests, fallback = _artifact(fields)
    else:
        blobs, manifests, fallback = _image(fields)
    subject = _subject(fields) if media_type in _REFERRING else None
    annotations = _annotations(fields)
    return ManifestFacts(
        media_type=media_type,
        artifact_type=_type_text(fields, "artifactType") or fallback,
        subject=subject,
        blobs=tuple(dict.fromkeys(blobs)),
        manifests=tuple(dict.fromkeys(manifests)),
        annotations=_bounded(annotations) if subject else (),
    )


def undecided_children(content: bytes) -> frozenset[Digest]:
    """Of an index that `parse_manifest` has read: its children of types that are not understood here. A client that
    does not know them either pushes them as blobs, another one as manifests; the facts count them as manifests."""
    children = _objects(_load(content), "manifests")
    return frozenset(_digest(child, "a child") for child in children if is_opaque(_media_type(child).lower()))


class _Said(msgspec.Struct):
    mediaType: str = ""  # noqa: N815  as the specification spells it


def _check_opaque(content: bytes, media_type: str) -> None:
    """A manifest that says it is of another type would be kept without its facts, and its tags lead nowhere."""
    try:
        said = msgspec.json.decode(content, type=_Said).mediaType
    except UNDECODABLE:
        return
    if said and said.lower() != media_type.lower():
        raise InvalidManifest("mediaType is not the Content-Type it was pushed with")


_Named = tuple[list[Digest], list[Digest], str | None]  # blobs, child manifests, artifact type if the manifest has none


def _image(fields: dict[str, Any]) -> _Named:
    _check_kind(fields, "image", schema_version=2)
    config = _object(fields.get("config"), "config")
    blobs = [_digest(config, "config")]
    for layer in _objects(fields, "layers"):
        digest = _digest(layer, "a layer")
        if not _NOT_DISTRIBUTED.fullmatch(_media_type(layer)):
            blobs.append(digest)
    return blobs, [], _type_text(config, "mediaType")


def _index(fields: dict[str, Any]) -> _Named:
    _check_kind(fields, "index", schema_version=2)
    blobs: list[Digest] = []
    manifests: list[Digest] = []
    for child in _objects(fields, "manifests"):
        # BuildKit's registry cache is an index of layers: those are blobs, whatever list they stand in.
        named = blobs if _BLOB_IN_INDEX.fullmatch(_media_type(child)) else manifests
        named.append(_digest(child, "a child"))
    return blobs, manifests, None


def _artifact(fields: dict[str, Any]) -> _Named:
    _check_kind(fields, "artifact", schema_version=None)
    return [_digest(blob, "a blob") for blob in _objects(fields, "blobs")], [], None


def _check_kind(fields: dict[str, Any], kind: str, *, schema_version: int | None) -> None:
    version = fields.get("schemaVersion")
    if schema_version is not None and (type(version) is not int or version != schema_version):
        raise InvalidManifest(f"schemaVersion must be {schema_version}")
    for name in _FOREIGN_FIELDS[kind]:
        if fields.get(name) is not None:
            raise InvalidManifest(f"{name} does not belong into this kind of manifest")


def _subject(fields: dict[str, Any]) -> Digest | None:
    subject = fields.get("subject")
    return None if subject is None else _digest(_object(subject, "subject"), "subject")


def _object(value: Any, what: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise InvalidManifest(f"{what} must be an object")
    return value


def _objects(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = fields.get(name)
    if value is None:  # what some encoders make of an empty list
        return []
    if type(value) is not list:
        raise InvalidManifest(f"{name} must be an array")
    if len(value) > MAX_DESCRIPTORS:
        raise InvalidManifest(f"{len(value)} descriptors in {name}; at most {MAX_DESCRIPTORS} are accepted")
    return [_object(item, f"each of {name}") for item in value]


def _digest(descriptor: dict[str, Any], what: str) -> Digest:
    """Checks a whole descriptor (image-spec descriptor.md); returns its digest."""
    size, digest, urls = descriptor.get("size"), descriptor.get("digest"), descriptor.get("urls")
    _media_type(descriptor)
    _annotations(descriptor)
    if type(size) is not int or size < 0:
        raise InvalidManifest(f"the size of {what} must be a whole number, not negative")
    if urls is not None and (type(urls) is not list or any(type(url) is not str for url in urls)):
        raise InvalidManifest(f"the urls of {what} must be an array of strings")
    if type(digest) is not str:
        raise InvalidManifest(f"the digest of {what} must be a string")
    try:
        return Digest.parse(digest)
    except InvalidName as error:
        raise InvalidManifest(f"the digest of {what}: {error.reason}") from error


def _media_type(descriptor: dict[str, Any]) -> str:
    return _type_text(descriptor, "mediaType") or ""


def _type_text(fields: dict[str, Any], name: str) -> str | None:
    """A media type as it stands there, for it is given back unchanged; None if absent or empty."""
    text = fields.get(name)
    if text is None or text == "":
        return None
    if type(text) is not str or not _TYPE_TEXT.fullmatch(text):
        raise InvalidManifest(f"{name} must be a media type of at most 255 characters")
    return text


def _annotations(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    value = fields.get("annotations")
    if value is None:
        return ()
    pairs = tuple(_object(value, "annotations").items())
    if any(type(text) is not str for _, text in pairs):
        raise InvalidManifest("annotations must be strings")
    return pairs


def _bounded(annotations: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    try:
        size = sum(len(key.encode()) + len(text.encode()) + _PAIR_BYTES for key, text in annotations)
    except UnicodeEncodeError as error:
        raise InvalidManifest("annotations hold a lone surrogate, which is no character") from error
    if size > MAX_ANNOTATIONS_BYTES:
        raise InvalidManifest(f"annotations take {size} bytes; at most {MAX_ANNOTATIONS_BYTES} are accepted")
    return annotations


# JSON: what the standard parser lets pass and no two parsers agree on is refused.


def _load(content: bytes) -> dict[str, Any]:
    # Counted before anything is built, so that four megabytes of brackets cost no memory.
    if sum(content.count(mark) for mark in (b"{", b"[", b",")) > MAX_JSON_VALUES:
        raise InvalidManifest(f"more than {MAX_JSON_VALUES} values")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except RecursionError as error:
        raise InvalidManifest(f"nested deeper than {MAX_JSON_DEPTH} levels") from error
    except UnicodeDecodeError as error:
        raise InvalidManifest("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidManifest(f"not JSON: {error.msg} at character {error.pos}") from error
    _check_depth(value)
    return _object(value, "a manifest")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidManifest("the same key twice in one object")
    return fields


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else MAX_INTEGER + 1
    if not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise InvalidManifest("a number beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text) if len(text) <= 64 else math.inf
    if not math.isfinite(value):
        raise InvalidManifest("a number beyond what JSON readers agree on")
    return value


def _constant(text: str) -> NoReturn:
    raise InvalidManifest(f"{text} is not JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [item for item in level if type(item) in (dict, list)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise InvalidManifest(f"nested deeper than {MAX_JSON_DEPTH} levels")
        level = [item for parent in level for item in (parent.values() if type(parent) is dict else parent)]
