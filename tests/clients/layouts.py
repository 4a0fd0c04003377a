"""Real images made without a network: OCI image layouts of tar.gz layers, configurations, manifests and indexes.

Everything is a function of its arguments, so the same call gives the same digests on every machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
REFERENCE_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def digest_of(content: bytes) -> str:
    """The sha256 digest of these bytes, as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def noise(seed: str, size_bytes: int) -> bytes:
    """Bytes that do not compress and depend only on the seed."""
    return hashlib.shake_256(seed.encode()).digest(size_bytes)


def encoded(document: Json) -> bytes:
    """A JSON document in the form that layouts keep it in."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True)
class Layer:
    """One tar.gz layer: its bytes, and the digest of what is inside the compression."""

    content: bytes
    diff_id: str


def layer(files: dict[str, bytes], *, links: dict[str, str] | None = None) -> Layer:
    """A layer of these regular files and symbolic links, with the folders above them."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
            entry = tarfile.TarInfo(folder + "/")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(content))
        for name, target in sorted((links or {}).items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    tar = raw.getvalue()
    return Layer(gzip.compress(tar, compresslevel=1, mtime=0), digest_of(tar))


def layers_for(architecture: str, seed: str) -> list[Layer]:
    """Four layers: one that all architectures share, one of 3 MB, one of many small files, one that removes a file."""
    return [
        layer({"etc/os-release": b'NAME="Meridian test"\n', "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n"}),
        layer({"bin/app": noise(f"{seed}/{architecture}/app", 3_000_000)}, links={"bin/app-latest": "app"}),
        layer({f"usr/share/app/{n:03}.txt": f"{architecture} {seed} {n}\n".encode() for n in range(200)}),
        layer({"etc/.wh.passwd": b"", "etc/app.conf": f"architecture = {architecture}\n".encode()}),
    ]


@dataclass
class Layout:
    """An OCI image layout in a folder; `add_*` write a blob and return its descriptor."""

    folder: Path
    tags: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def add_blob(self, content: bytes, media_type: str) -> Json:
        """Keep these bytes under their digest."""
        digest = digest_of(content)
        (self.folder / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def add_image(self, architecture: str = "amd64", *, seed: str = "image") -> Json:
        """A multi-layer image for linux on this architecture."""
        layers = layers_for(architecture, seed)
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Entrypoint": ["/bin/app"], "Env": ["PATH=/bin"], "Labels": {"seed": seed}},
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
            "history": [{"created": "2026-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(layers))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add_blob(encoded(config), CONFIG),
            "layers": [self.add_blob(each.content, LAYER) for each in layers],
        }
        return self.add_blob(encoded(manifest), MANIFEST)

    def add_index(self, architectures: Sequence[str] = ("amd64", "arm64"), *, seed: str = "image") -> Json:
        """An index of one image for each architecture."""
        children = [
            self.add_image(each, seed=seed) | {"platform": {"architecture": each, "os": "linux"}}
            for each in architectures
        ]
        return self.add_blob(encoded({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}), INDEX)

    def tag(self, name: str, descriptor: Json) -> str:
        """Name what this descriptor points to; returns its digest."""
        self.tags[name] = descriptor
        entries = [each | {"annotations": {REFERENCE_NAME: tag}} for tag, each in self.tags.items()]
        (self.folder / "index.json").write_bytes(encoded({"schemaVersion": 2, "manifests": entries}))
        return str(descriptor["digest"])

    def content(self, digest: str) -> bytes:
        """The bytes of one blob."""
        return (self.folder / "blobs" / digest.replace(":", "/")).read_bytes()

    def tree(self, digest: str) -> dict[str, bytes]:
        """Everything reachable from one manifest, by digest; each blob's bytes are checked against it."""
        found: dict[str, bytes] = {}
        pending = [digest]
        while pending:
            current = pending.pop()
            if current in found:
                continue
            found[current] = content = self.content(current)
            assert digest_of(content) == current
            pending += children_of(content)
        return found


def tagged(folder: Path) -> str:
    """The digest that the only entry of a layout's index points to."""
    entries = json.loads((folder / "index.json").read_bytes())["manifests"]
    assert len(entries) == 1
    return str(entries[0]["digest"])


def children_of(content: bytes) -> list[str]:
    """Digests that a manifest or index names; none for any other blob."""
    document = json.loads(content) if content.startswith(b"{") else {}
    if "schemaVersion" not in document:
        return []
    config = [document["config"]] if "config" in document else []
    return [each["digest"] for each in [*config, *document.get("layers", []), *document.get("manifests", [])]]
