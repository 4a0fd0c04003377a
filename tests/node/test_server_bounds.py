import asyncio
import contextlib
import socket

import pytest

from node.config import Limits
from tests.node.http_server import GET, on_uvloop, serving, until

QUICK = Limits(header_seconds=0.3, idle_seconds=0.3, body_stall_seconds=0.3)


# What attackers do

SMUGGLED = {
    "both lengths": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "two equal lengths": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "list of lengths": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "signed length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: +4\r\n\r\nabcd",
    "negative length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: -4\r\n\r\nabcd",
    "underscored length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1_0\r\n\r\nabcd",
    "hexadecimal length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0x4\r\n\r\nabcd",
    "empty length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length:\r\n\r\nabcd",
    "huge length": b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999999999999999\r\n\r\nabcd",
    "folded header": b"GET / HTTP/1.1\r\nHost: here\r\nX-A: b\r\n c\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost: here\r\nX-A : b\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: here\r\nX-A\r\n\r\n",
    "odd coding": b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: here\r\nX-A: b\0c\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: here\r\nX-A: b\rc\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: here\n\n",
    "no host": b"GET / HTTP/1.1\r\nX-A: b\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "old version": b"GET / HTTP/0.9\r\nHost: here\r\n\r\n",
    "odd version": b"GET / HTTP/3.7\r\nHost: here\r\n\r\n",
    "odd method": b"BREW / HTTP/1.1\r\nHost: here\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: here\r\n\r\n",
    "coding that is not undone": b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding of an old version": b"POST / HTTP/1.0\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n",
    "space in path": b"GET /a b HTTP/1.1\r\nHost: here\r\n\r\n",
    "raw bytes in path": b"GET /\xff\xfe HTTP/1.1\r\nHost: here\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED.keys())
@on_uvloop
async def test_what_is_ambiguous_is_refused_and_the_connection_ends(request_bytes: bytes) -> None:
    async with serving() as service, service.client() as client:
        await client.send(request_bytes + GET)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.json["errors"][0]["code"] == "UNSUPPORTED"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        assert await client.ended() == b""
        assert [seen for seen in service.application.seen if seen[1] != "disconnect"] == []


@pytest.mark.parametrize("body", [b"x\r\n", b"-1\r\nab", b"2\r\nabc\r\n", b"fffffffffffffffffff\r\n"])
@on_uvloop
async def test_a_body_that_breaks_off_its_coding_is_refused(body: bytes) -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(body)
        assert (await client.answer()).status == 400
        await service.application.ended.wait()
        assert service.application.seen[0][1] == "disconnect"


@on_uvloop
async def test_rubbish_behind_a_request_does_not_spoil_its_answer() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET /half HTTP/1.1\r\nHost: here\r\n\r\n", b"rubbish\r\n\r\n")
        service.application.go_on.set()
        assert (await client.answer()).body == b"halfrest"
        assert await client.ended() == b""


@on_uvloop
async def test_connect_is_not_supported() -> None:
    async with serving() as service:
        assert (await service.ask(b"CONNECT there:443 HTTP/1.1\r\nHost: there\r\n\r\n")).status == 405


SMALL = Limits(url_bytes=100, header_bytes=1000, header_count=10)
LARGE = {
    "path": (414, b"GET /%b HTTP/1.1\r\nHost: here\r\n\r\n" % (b"a" * 100)),
    "path without end": (414, b"GET /" + b"a" * 5000),
    "query": (414, b"GET /?%b HTTP/1.1\r\nHost: here\r\n\r\n" % (b"a" * 100)),
    "value": (431, b"GET / HTTP/1.1\r\nHost: here\r\nX: %b\r\n\r\n" % (b"a" * 1000)),
    "name": (431, b"GET / HTTP/1.1\r\nHost: here\r\n%b: x\r\n\r\n" % (b"a" * 1000)),
    "count": (431, b"GET / HTTP/1.1\r\nHost: here\r\n%b\r\n" % (b"X: y\r\n" * 10)),
    "trailers": (
        431,
        b"PUT / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n" % (b"X: y\r\n" * 200),
    ),
}


@pytest.mark.parametrize(("status", "request_bytes"), LARGE.values(), ids=LARGE.keys())
@on_uvloop
async def test_heads_are_bounded(status: int, request_bytes: bytes) -> None:
    async with serving(SMALL) as service, service.client() as client:
        await client.send(request_bytes)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")


@pytest.mark.parametrize(
    ("status", "start"),
    [
        (431, b"GET / HTTP/1.1\r\nHost: here\r\nX: "),
        (431, b"GET / HTTP/1.1\r\nHost: here\r\nX"),
        (400, b"PUT / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5;"),
        (400, b"PUT / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "),
    ],
)
@on_uvloop
async def test_what_never_ends_is_bounded_before_it_is_whole(status: int, start: bytes) -> None:
    async with serving(SMALL) as service, service.client() as client:
        await client.send(start)
        answer = asyncio.create_task(client.answer())
        sent = 0
        while not answer.done() and sent < 1_000_000:
            await client.send(b"a" * 500)
            sent += 500
            await asyncio.sleep(0)
        assert (await answer).status == status
        assert sent < 100_000


@on_uvloop
async def test_heads_at_the_bound_are_served() -> None:
    async with serving(SMALL) as service:
        request = b"GET /%b HTTP/1.1\r\nHost: here\r\nX: %b\r\n%b\r\n" % (b"a" * 99, b"b" * 900, b"Y: z\r\n" * 8)
        assert (await service.ask(request)).status == 200


@on_uvloop
async def test_a_long_body_behind_the_head_is_no_long_head() -> None:
    async with serving(SMALL) as service, service.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 200000\r\n")
        await asyncio.sleep(0.05)
        await client.send(b"\r\n" + b"b" * 200000)
        assert (await client.answer()).json["length"] == 200000


# Time


@on_uvloop
async def test_a_slow_head_is_refused() -> None:
    async with serving(QUICK) as service, service.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost:")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await client.ended() == b""


@on_uvloop
async def test_a_head_that_trickles_is_refused() -> None:
    async with serving(QUICK) as service, service.client() as client:
        answer = asyncio.create_task(client.answer())
        await client.send(b"GET / HTTP/1.1\r\n")
        while not answer.done():
            await client.send(b"X: y\r\n")
            await asyncio.sleep(0.05)
        assert (await answer).status == 408


@pytest.mark.parametrize("before", [b"", GET])
@on_uvloop
async def test_an_idle_connection_is_closed(before: bytes) -> None:
    async with serving(QUICK) as service, service.client() as client:
        if before:
            await client.send(before)
            await client.answer()
        assert await client.ended() == b""


@on_uvloop
async def test_a_body_that_stalls_is_refused() -> None:
    async with serving(QUICK) as service, service.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nabc")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        await service.application.ended.wait()
        assert service.application.seen == [("POST", "disconnect", b"abc")]


@on_uvloop
async def test_a_slow_body_that_moves_is_accepted() -> None:
    async with serving(QUICK) as service, service.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            await client.send(b"a")
            await asyncio.sleep(0.1)
        assert (await client.answer()).json["body"] == "a" * 10


@on_uvloop
async def test_an_application_that_takes_its_time_is_not_the_clients_fault() -> None:
    async with serving(QUICK) as service, service.client() as client:
        await client.send(b"GET /wait HTTP/1.1\r\nHost: here\r\n\r\n")
        await asyncio.sleep(1.0)
        service.application.go_on.set()
        assert (await client.answer()).status == 401


@on_uvloop
async def test_a_client_that_does_not_read_is_cut_off_and_costs_little_memory() -> None:
    async with serving(QUICK) as service:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(service.address)
        raw.sendall(b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n")
        await until(service.application.ended.is_set)
        assert service.application.sent_bytes < 16 * 1024 * 1024
        raw.close()
        await until(lambda: not service.server.connections)


@on_uvloop
async def test_a_client_that_asks_on_and_on_and_reads_nothing_is_cut_off_and_costs_little_memory() -> None:
    async with serving(QUICK) as service:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(service.address)
        with contextlib.suppress(OSError):  # cut off
            for _ in range(50):
                raw.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n" * 20)
                await asyncio.sleep(0.01)  # more at once are too many in line
        await until(lambda: not service.server.connections)
        assert service.application.sent_bytes < 16 * 1024 * 1024
        raw.close()


@on_uvloop
async def test_a_client_that_goes_away_ends_the_application() -> None:
    async with serving() as service:
        async with service.client() as client:
            await client.send(b"GET /endless HTTP/1.1\r\nHost: here\r\n\r\n")
            await client.reader.readexactly(100_000)
        await until(lambda: not service.server.exchanges)
