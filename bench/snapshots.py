"""How long a snapshot keeps the writer from applying, and how fast it is taken, sent, verified and installed.

    python -m bench.snapshots --megabytes 200

A state of realistic manifests (about 2 KB, ten layers, bases shared) is made, then batches are applied as fast as they
can be while a snapshot of it is taken, in one thread as a replica does it, and for comparison without one.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc

from consensus import clock
from consensus.archive import Archive, Taking
from consensus.codec import encode
from consensus.commands import BlobFact, Command, EnrolProposer, Envelope, ManifestFacts, PutManifest, RecordBlobs
from consensus.log import Entry
from consensus.manifest import OCI_MANIFEST
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.partial import Partial
from consensus.raft.snapshots import Fetching, SnapshotService
from consensus.snapshot import Manifest
from consensus.state import State

CLUSTER = "b" * 32
BATCH = 50
STORE = StoreId("0" * 32)


def commands(image: int) -> Iterator[Command]:
    """An image: five layers of its base, which a hundred images share, and five of its own."""
    repository = RepositoryName(f"team-{image % 20}/app-{image % 500}")
    base, own = image % 500, 1000 + image
    layers = [BlobFact(_digest(f"layer {owner} {n}"), 10**6 + n) for owner in (base, own) for n in range(5)]
    yield RecordBlobs(repository, STORE, tuple(layers))
    content = f"manifest {image} ".encode() * 120
    facts = ManifestFacts(OCI_MANIFEST, None, None, tuple(layer.digest for layer in layers), (), ())
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    tags = (Tag(f"v{image}"),)
    yield PutManifest(repository, digest, len(content), content, facts, tags, None, sparse=False)


def batches() -> Iterator[list[Entry]]:
    """The log of image after image, without end."""
    index = 1
    batch = [Entry(1, encode(Envelope(0, 0, 0, 1000, EnrolProposer("bench"))))]
    image = 0
    while True:
        for command in commands(image):
            index += 1
            batch.append(Entry(index, encode(Envelope(1, index, index - 1, 1000 + index, command))))
        image += 1
        if len(batch) >= BATCH:
            yield batch
            batch = []


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the state")
    megabytes = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        log = batches()
        with closing(State.open(folder / "state", CLUSTER)) as state:
            while state.size_bytes < megabytes * 10**6:
                state.apply(next(log))
            state.checkpoint()
            archive = Archive.open(folder / "state" / "snapshots")
            manifest = _measure_taking(state, log, archive)
        _measure_transfer(folder, archive, manifest)


def _measure_taking(state: State, log: Iterator[list[Entry]], archive: Archive) -> Manifest:
    alone_gaps: list[float] = []
    alone = _apply_until(state, log, lambda: None, lambda: len(alone_gaps) >= 200, alone_gaps)
    taking = archive.begin(state)
    gaps: list[float] = []
    steps: list[float] = []
    seconds = _apply_until(state, log, lambda: steps.append(_timed(taking.step)), lambda: _copied(taking), gaps)
    size = state.size_bytes
    finished = threading.Event()

    def finish() -> Manifest:
        try:
            return taking.finish(1)
        finally:
            finished.set()

    with ThreadPoolExecutor(1) as pool:
        began = clock.monotonic()
        finishing = pool.submit(finish)
        later: list[float] = []
        _apply_until(state, log, lambda: None, finished.is_set, later)
        manifest = finishing.result()
    print(f"state: {size / 1e6:.0f} MB, {state.applied} entries, in batches of {BATCH}")
    print(f"applying alone: {len(alone_gaps) / alone:.0f} batches/s, pauses {_ms(alone_gaps)}")
    print(f"while copying: {len(gaps) / seconds:.0f} batches/s, pauses {_ms(gaps)}, steps {_ms(steps)}")
    print(f"copied in {seconds:.2f} s, {size / 1e6 / seconds:.0f} MB/s, batches applied between the steps")
    print(f"hashed and synced in {clock.monotonic() - began:.2f} s beside applying; pauses {_ms(later)}")
    return manifest


def _measure_transfer(folder: Path, archive: Archive, manifest: Manifest) -> None:
    megabytes = manifest.size_bytes / 1e6
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((SnapshotService(archive, CLUSTER).handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with closing(Partial.open(folder / "receiver" / "incoming")) as partial:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            seconds = _timed(lambda: Fetching(partial, CLUSTER, after=0).fetch([channel], seconds=600))
        server.stop(None).wait()
        print(f"received over loopback in {seconds:.2f} s, {megabytes / seconds:.0f} MB/s")
        with closing(State.open(folder / "receiver" / "state", CLUSTER)) as state:
            verified = partial.verify(CLUSTER)
            print(f"verified in {_timed(lambda: partial.verify(CLUSTER)):.2f} s")
            print(f"synced and installed in {_timed(lambda: state.install(verified)):.2f} s")


def _apply_until(
    state: State,
    log: Iterator[list[Entry]],
    between: Callable[[], object],
    done: Callable[[], bool],
    gaps: list[float],
) -> float:
    """Applies batch after batch; appends the seconds from the end of each to the end of the next."""
    began = clock.monotonic()
    while not done():
        batch = next(log)
        last = clock.monotonic()  # making the batch is not the state's work
        between()
        state.apply(batch)
        gaps.append(clock.monotonic() - last)
    return clock.monotonic() - began


def _copied(taking: Taking) -> bool:
    try:
        return taking.applied > 0
    except ValueError:
        return False


def _timed(call: Callable[[], object]) -> float:
    began = clock.monotonic()
    call()
    return clock.monotonic() - began


def _ms(times: list[float]) -> str:
    ordered = sorted(times) or [0.0]
    median, high = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"median {median * 1e3:.0f}, p99 {high * 1e3:.0f}, longest {ordered[-1] * 1e3:.0f} ms"


def _digest(text: str) -> Digest:
    return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())


if __name__ == "__main__":
    main()
