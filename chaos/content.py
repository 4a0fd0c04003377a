"""Blobs and manifests to push, drawn from a seeded source so that a run can be repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
OPAQUE = "application/vnd.meridian.chaos.v1"
ANY_MANIFEST = ", ".join((IMAGE_MANIFEST, IMAGE_INDEX, OPAQUE))

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_SIZES = ((0.60, 64, 16 * 1024), (0.97, 16 * 1024, 256 * 1024), (1.00, 1024 * 1024, 3 * 1024 * 1024))


@dataclass(frozen=True, slots=True)
class Described:
    """A digest with the size of what it names."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ManifestBytes:
    """A manifest ready to be pushed."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """What it is pulled by."""
        return digest_of(self.content)


def digest_of(content: bytes) -> str:
    """`sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def blob(chance: Random) -> bytes:
    """Mostly small, a few of some megabytes."""
    draw = chance.random()
    least, most = next((least, most) for share, least, most in _SIZES if draw <= share)
    return chance.randbytes(chance.randint(least, most))


def image(blobs: Sequence[Described], chance: Random) -> ManifestBytes:
    """An image manifest over these blobs, the first being its config; never the same bytes twice."""
    descriptors = [{"mediaType": _LAYER, "digest": each.digest, "size": each.size_bytes} for each in blobs]
    body = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptors[0] | {"mediaType": _CONFIG},
        "layers": descriptors[1:],
        "annotations": {"chaos.nonce": chance.randbytes(12).hex()},
    }
    return ManifestBytes(IMAGE_MANIFEST, json.dumps(body).encode())


def index(manifests: Sequence[Described], chance: Random) -> ManifestBytes:
    """An index of these image manifests."""
    children = [{"mediaType": IMAGE_MANIFEST, "digest": each.digest, "size": each.size_bytes} for each in manifests]
    body = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": children,
        "annotations": {"chaos.nonce": chance.randbytes(12).hex()},
    }
    return ManifestBytes(IMAGE_INDEX, json.dumps(body).encode())


def large(chance: Random) -> ManifestBytes:
    """A manifest of an unknown type that is too large for one command of the log."""
    return ManifestBytes(OPAQUE, json.dumps({"chaos": chance.randbytes(chance.randint(70, 200) * 1024).hex()}).encode())


def references(media_type: str, content: bytes) -> tuple[tuple[Literal["blob", "manifest"], str], ...]:
    """(kind, digest) of everything a manifest made here needs to be pullable."""
    if media_type == IMAGE_MANIFEST:
        body = json.loads(content)
        return tuple(("blob", each["digest"]) for each in (body["config"], *body["layers"]))
    if media_type == IMAGE_INDEX:
        return tuple(("manifest", each["digest"]) for each in json.loads(content)["manifests"])
    return ()
