"""What a client does inside a region of the lab: orders come as lines of JSON, and so do their answers.

Times are of CLOCK_MONOTONIC, which is the same in all regions of one machine. Run by `bench.fetching`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

from bench import load
from bench.load import Content
from consensus import clock

REPOSITORY = "bench/far"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
BLOCK_BYTES = 1 << 20
PIECE_BYTES = 4 << 20

Answer = dict[str, Any]


def push(seed: str, size_bytes: int) -> Answer:
    """An image of one layer, under the tag `seed`: when it was acknowledged."""
    layer = Content.of(seed, size_bytes)
    config = Content.of(f"config {seed}", 300)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": _described(config, CONFIG)}
    manifest["layers"] = [_described(layer, LAYER)]
    began = clock.monotonic()
    with contextlib.closing(_connect()) as connection:
        for content in (layer, config):
            load.upload(connection, REPOSITORY, content)
        load.put_manifest(connection, REPOSITORY, seed, json.dumps(manifest).encode(), MANIFEST)
    ended = clock.monotonic()
    return {"began": began, "acknowledged": ended, "digest": layer.digest}


def pull(seed: str) -> Answer:
    """An image, by its tag: the seconds that it took, and when it was there."""
    began = clock.monotonic()
    with contextlib.closing(_connect()) as connection:
        connection.request("GET", f"/v2/{REPOSITORY}/manifests/{seed}", headers={"Accept": MANIFEST})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise load.LoadFailed(f"the manifest: {answer.status} {body[:200]!r}")
        manifest = json.loads(body)
        for blob in (manifest["config"], *manifest["layers"]):
            _read_blob(connection, blob["digest"], clock.monotonic())
    ended = clock.monotonic()
    return {"seconds": ended - began, "ended": ended}


def crowd(digest: str, clients: int) -> Answer:
    """One blob for many clients at once: for each the seconds to the first byte, and to the last."""
    gate = threading.Barrier(clients)

    def client() -> tuple[float, float]:
        with contextlib.closing(_connect()) as connection:
            gate.wait()
            began = clock.monotonic()
            first = _read_blob(connection, digest, began)
            return first, clock.monotonic() - began

    with ThreadPoolExecutor(clients) as pool:
        found = [each.result() for each in [pool.submit(client) for _ in range(clients)]]
    return {"first": [first for first, _ in found], "whole": [whole for _, whole in found]}


def give(port: int) -> Answer:
    """From now on: so many bytes as each line on a connection asks for, by plain TCP."""
    listener = socket.create_server(("", port), backlog=64)

    def serve(connection: socket.socket) -> None:
        block = load.NOISE
        with connection, connection.makefile("rb") as asked:
            for line in asked:
                left = int(line)
                while left:
                    left -= connection.send(block[: min(left, len(block))])

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return {}


def copy(address: str, size_bytes: int, flows: int) -> Answer:
    """So many bytes from one that gives, by `flows` connections that are open already, each of which asks for a piece
    after the other: the seconds that it took."""
    host, _, port = address.partition(":")
    connections = [socket.create_connection((host, int(port)), timeout=60) for _ in range(flows)]
    pieces = [min(PIECE_BYTES, size_bytes - start) for start in range(0, size_bytes, PIECE_BYTES)]

    def take(connection: socket.socket) -> None:
        buffer = memoryview(bytearray(BLOCK_BYTES))
        while pieces:
            left = pieces.pop()
            connection.sendall(b"%d\n" % left)
            while left:
                count = connection.recv_into(buffer[: min(left, BLOCK_BYTES)])
                if not count:
                    raise load.LoadFailed("a plain copy broke off")
                left -= count

    began = clock.monotonic()
    with ThreadPoolExecutor(flows) as pool:
        for each in [pool.submit(take, connection) for connection in connections]:
            each.result()
    ended = clock.monotonic()
    for connection in connections:
        connection.close()
    return {"seconds": ended - began}


def _connect() -> HTTPConnection:
    return load.connect(os.environ["REGISTRY"])


def _described(content: Content, media_type: str) -> Answer:
    return {"mediaType": media_type, "digest": content.digest, "size": content.size_bytes}


def _read_blob(connection: HTTPConnection, digest: str, began: float) -> float:
    """The seconds from `began` to its first byte. Raises LoadFailed unless all bytes are right."""
    connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise load.LoadFailed(f"{digest}: {answer.status} {answer.read()[:500]!r}")
    hashed, first = hashlib.sha256(), 0.0
    while block := answer.read1(BLOCK_BYTES):
        first = first or clock.monotonic() - began
        hashed.update(block)
    answer.read()  # or the connection does not know that it has ended
    if f"sha256:{hashed.hexdigest()}" != digest:
        raise load.LoadFailed(f"{digest}: wrong bytes")
    return first


ORDERS: dict[str, Callable[..., Answer]] = {each.__name__: each for each in (push, pull, crowd, give, copy)}


def main() -> None:
    """Until there are no more orders."""
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = ORDERS[name](**arguments)
        except Exception as error:  # noqa: BLE001  it is for the other side to say
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
