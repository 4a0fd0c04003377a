"""One node's registry within this process: real log, state, files and application, and a client that speaks to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from consensus.names import StoreId
from consensus.proposer import Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from consensus.views import Views
from node.access import Policy
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from node.config import Config
from node.gateway.app import App, create_app
from node.gateway.requests import RequestRecord
from node.registry import Registry
from node.tokens import UploadTokens

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
NODE_ID = "0" * 31 + "1"
STORE_ID = StoreId("a" * 32)
CLUSTER_ID = "c" * 32


@dataclass
class Records:
    """What telemetry would have been told."""

    begun: int = 0
    ended: list[RequestRecord] = field(default_factory=list)

    def began(self) -> None:
        self.begun += 1

    def __call__(self, record: RequestRecord) -> None:
        self.ended.append(record)


@dataclass
class Rig:
    """Everything of one node that a test may want to touch."""

    folder: Path
    config: Config
    registry: Registry
    app: App
    client: httpx.AsyncClient
    records: Records
    views: Views
    log: SoloLog
    blobs: FilesystemStore
    uploads: FilesystemUploads
    tokens: UploadTokens

    async def push_blob(self, repository: str, content: bytes, *, algorithm: str = "sha256") -> str:
        """Its digest."""
        digest = digest_of(content, algorithm)
        response = await self.client.post(f"/v2/{repository}/blobs/uploads/?digest={digest}", content=content)
        assert response.status_code == 201, response.text
        return digest

    async def push_manifest(
        self, repository: str, reference: str, content: bytes, *, media_type: str = MANIFEST, **headers: str
    ) -> httpx.Response:
        """Header names are spelled with underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.put(
            f"/v2/{repository}/manifests/{reference}", content=content, headers={"content-type": media_type, **sent}
        )

    async def push_image(self, repository: str, reference: str, seed: str = "", **fields: Any) -> str:
        """An image with one layer, whose bytes depend on `seed`, under a tag or digest "*" (its own)."""
        content = image(await self.push_blob(repository, f"layer {seed}".encode()), **fields)
        await self.push_blob(repository, b"{}")
        response = await self.push_manifest(repository, digest_of(content) if reference == "*" else reference, content)
        assert response.status_code == 201, response.text
        return digest_of(content)

    async def begin(self, repository: str) -> str:
        """The location of a new upload."""
        response = await self.client.post(f"/v2/{repository}/blobs/uploads/")
        assert response.status_code == 202
        return response.headers["location"]

    def open_uploads(self) -> int:
        """How many there are on the disk."""
        return len(list((self.folder / "uploads").iterdir()))


@asynccontextmanager
async def running(folder: Path, *, policy: Policy | None = None, **sections: dict[str, Any]) -> AsyncIterator[Rig]:
    """A node with the default configuration, some keys of which are given by section."""
    config = msgspec.convert(sections, Config)
    log = SoloLog.open(folder / "wal")
    state = State.open(folder / "state", CLUSTER_ID)
    blobs = FilesystemStore.at(folder / "blobs", store_id=STORE_ID, free_bytes=config.limits.free_bytes)
    uploads = FilesystemUploads.open(folder / "uploads", blobs, incarnation="test")
    views = Views(folder / "state")
    tokens = UploadTokens(NODE_ID, b"s" * 32)
    records = Records()
    try:
        async with Replica.open(log, state) as replica:
            proposer = Proposer(replica, "test", deadline_seconds=1.0)
            registry = Registry(
                views=views, proposer=proposer, blobs=blobs, uploads=uploads, tokens=tokens, config=config
            )
            app = create_app(registry, config=config, policy=policy, observe=records)
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://registry") as client:
                yield Rig(folder, config, registry, app, client, records, views, log, blobs, uploads, tokens)
    finally:
        views.close()
        blobs.close()
        await log.close()
        state.close()


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """As text."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def descriptor(content: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
    """Of content that is at hand."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def image(*layers: str, **fields: Any) -> bytes:
    """A manifest of an empty config and these layers."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(b"{}", "application/vnd.oci.empty.v1+json"),
            "layers": [{"mediaType": "application/octet-stream", "digest": layer, "size": 1} for layer in layers],
            **fields,
        }
    ).encode()


def index(*children: str, **fields: Any) -> bytes:
    """An index of images."""
    manifests = [{"mediaType": MANIFEST, "digest": child, "size": 1} for child in children]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, **fields}).encode()


def code(response: httpx.Response) -> str:
    """The error code of an answer in the OCI form, whose shape is checked."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["errors"]
    assert body["errors"]
    for error in body["errors"]:
        assert {"code", "message"} <= error.keys() <= {"code", "message", "detail"}
        assert error["message"]
    return str(body["errors"][0]["code"])
