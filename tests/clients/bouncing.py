"""A proxy that sends every request to another region than the last, as DNS may do to a client in the worst case.

`python -m tests.clients.bouncing [HOST:PORT ...]` says where it listens, until Ctrl-C, before the regions at these
addresses or else before three that it starts: `MERIDIAN_TEST_REGISTRY=HOST:PORT pytest tests/clients` then runs every
client through it. `meridian lab up` prints the addresses of regions that a WAN joins.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from chaos.ports import free_ports
from tests.node.walled_regions import walled_regions

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "host"}
CHUNK_BYTES = 256 * 1024


@dataclass
class Bouncing:
    """The proxy's address, and what it has seen: requests by region, and answers of 500 and above."""

    address: str
    requests: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class _Proxy:
    def __init__(self, regions: Sequence[str], seen: Bouncing, seed: int) -> None:
        self._regions = regions
        self._seen = seen
        self._chance = Random(seed)
        self._last = ""

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120)
        connector = aiohttp.TCPConnector(limit=0)
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False, skip_auto_headers=skipped, trust_env=False
        ) as self._session:
            runner = web.ServerRunner(web.Server(self._pass_on), access_log=None)
            await runner.setup()
            host, _, port = self._seen.address.rpartition(":")
            await web.TCPSite(runner, host, int(port)).start()
            started.set()
            await ended.wait()
            await runner.cleanup()

    def _next(self) -> str:
        self._last = self._chance.choice([region for region in self._regions if region != self._last])
        self._seen.requests[self._last] += 1
        return self._last

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        region = self._next()
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP
        )
        headers["Host"] = self._seen.address
        body = request.content.iter_chunked(CHUNK_BYTES) if request.body_exists else None
        url = URL(f"http://{region}{request.raw_path}", encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as found:
            if found.status >= 500:
                self._seen.failures.append(f"{request.method} {request.raw_path} at {region}: {found.status}")
            answer = web.StreamResponse(status=found.status, reason=found.reason)
            for name, value in found.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    answer.headers.add(name, value)
            await answer.prepare(request)
            if request.method != "HEAD":
                async for chunk in found.content.iter_chunked(CHUNK_BYTES):
                    await answer.write(chunk)
            await answer.write_eof()
            return answer


@contextmanager
def bouncing(regions: Sequence[str], *, seed: int = 1) -> Iterator[Bouncing]:
    """The proxy before these host:ports, in a thread of its own."""
    seen = Bouncing(f"127.0.0.1:{free_ports(1)[0]}")
    started = threading.Event()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(_Proxy(regions, seen, seed).serve(started, ended),), daemon=True
    )
    thread.start()
    try:
        assert started.wait(10)
        yield seen
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()


@contextmanager
def three_bouncing_regions(folder: Path) -> Iterator[Bouncing]:
    """Three regions of their own in a folder, and the proxy before them."""
    with (
        walled_regions(folder) as regions,
        bouncing([region.address for region in regions.cluster.regions]) as seen,
    ):
        yield seen


def main() -> None:
    """Until Ctrl-C or SIGTERM."""
    with ExitStack() as stack:
        if addresses := sys.argv[1:]:
            seen = stack.enter_context(bouncing(addresses))
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="meridian-"))
            seen = stack.enter_context(three_bouncing_regions(Path(folder)))
        print(seen.address, flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(dict(seen.requests), *seen.failures, sep="\n")


if __name__ == "__main__":
    main()
