import asyncio
import ssl
from pathlib import Path

import pytest

from node.config import Limits
from node.gateway.connection import MAX_PIPELINED
from node.tls import tls_context
from tests.node.certificates import make_certificate
from tests.node.http_server import GET, Client, on_uvloop, post, serving, until

# What clients do


@on_uvloop
async def test_a_request_and_its_answer() -> None:
    async with serving() as service:
        answer = await service.ask(GET)
        assert answer.status == 200
        assert answer.headers["date"].endswith("GMT")
        assert "connection" not in answer.headers
        assert answer.json | {"headers": 0} == {
            "method": "GET",
            "path": "/a/b",
            "query": "c=d",
            "version": "1.1",
            "headers": 0,
            "body": "",
            "length": 0,
        }


@on_uvloop
async def test_many_requests_on_one_connection() -> None:
    async with serving() as service, service.client() as client:
        for number in range(20):
            await client.send(post(b"/x", b"%d" % number))
            assert (await client.answer()).json["body"] == str(number)
        assert len(service.server.connections) == 1


@pytest.mark.parametrize("size", [1, 3, 17])
@on_uvloop
async def test_a_request_in_pieces(size: int) -> None:
    request = post(b"/%7Ename/x%20y?q=%41", b"body" * 10)
    async with serving() as service, service.client() as client:
        for start in range(0, len(request), size):
            await client.send(request[start : start + size])
            await asyncio.sleep(0)
        answer = await client.answer()
        assert answer.json["path"] == "/~name/x y"
        assert answer.json["query"] == "q=%41"
        assert answer.json["body"] == "body" * 10


@on_uvloop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"".join(post(b"/x", b"%d" % number) for number in range(MAX_PIPELINED)))
        assert [(await client.answer()).json["body"] for _ in range(MAX_PIPELINED)] == [
            str(number) for number in range(MAX_PIPELINED)
        ]
        await client.send(GET)
        assert (await client.answer()).status == 200


@on_uvloop
async def test_what_is_pipelined_beyond_the_bound_is_dropped() -> None:
    async with serving() as service, service.client() as client:
        await client.send(GET * 1000)
        for _ in range(MAX_PIPELINED):
            assert (await client.answer()).status == 200
        assert await client.ended() == b""


@on_uvloop
async def test_head_has_no_body() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"HEAD / HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = await client.answer(bodyless=True)
        assert int(answer.headers["content-length"]) > 0
        await client.send(GET)
        assert (await client.answer()).status == 200


@on_uvloop
async def test_a_body_of_unknown_length_comes_in_chunks() -> None:
    async with serving() as service, service.client() as client:
        for _ in range(2):
            await client.send(b"GET /chunked HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.headers["x-kind"]) == (b"onetwo", "chunked")


@on_uvloop
async def test_no_content_has_neither_length_nor_chunks() -> None:
    async with serving() as service, service.client() as client:
        for _ in range(2):
            await client.send(b"GET /empty HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 204
            assert not {"content-length", "transfer-encoding"} & set(answer.headers)


@on_uvloop
async def test_a_chunked_request_with_trailers() -> None:
    async with serving() as service:
        answer = await service.ask(
            b"PATCH / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer-Field: x\r\n\r\n",
        )
        assert answer.json["body"] == "abcde"
        assert "trailer-field" not in dict(answer.json["headers"])


@on_uvloop
async def test_http_1_0_ends_with_its_answer() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert (answer.json["version"], answer.headers["connection"]) == ("1.0", "close")
        assert await client.ended() == b""


@on_uvloop
async def test_http_1_0_gets_an_unknown_length_by_the_end_of_the_connection() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET /chunked HTTP/1.0\r\n\r\n")
        assert "transfer-encoding" not in (await client.answer()).headers
        assert await client.ended() == b"onetwo"


@on_uvloop
async def test_connection_close_is_obeyed_and_what_follows_ignored() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n" + GET)
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.ended() == b""
        assert len(service.application.seen) == 1


@on_uvloop
async def test_expect_continue_is_answered_when_the_body_is_wanted() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"body")
        assert (await client.answer()).json["body"] == "body"


@on_uvloop
async def test_expect_continue_is_not_answered_when_the_body_is_not_wanted() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")


@pytest.mark.parametrize("body", [b"", b"body"])
@on_uvloop
async def test_an_upgrade_is_ignored(body: bytes) -> None:
    async with serving() as service, service.client() as client:
        headers = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
        await client.send(post(b"/up", body, *headers) + GET)
        answer = await client.answer()
        assert (answer.json["path"], answer.json["body"]) == ("/up", body.decode())
        assert (await client.answer()).json["path"] == "/a/b"


@on_uvloop
async def test_a_client_that_has_said_everything_still_gets_its_answer() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET /half HTTP/1.1\r\nHost: here\r\n\r\n")
        client.writer.write_eof()
        service.application.go_on.set()
        assert (await client.answer()).body == b"halfrest"
        assert await client.ended() == b""


@on_uvloop
async def test_a_large_body_arrives_whole_and_reading_waits_for_the_application() -> None:
    async with serving() as service, service.client() as client:
        body = b"0123456789abcdef" * (4 * 1024 * 1024 // 16)
        await client.send(post(b"/x", body))
        assert (await client.answer()).json["length"] == len(body)


@on_uvloop
async def test_an_absolute_url() -> None:
    async with serving() as service:
        assert (await service.ask(b"GET http://here/x?y HTTP/1.1\r\nHost: here\r\n\r\n")).json["path"] == "/x"


# Answers before the request has come whole


@on_uvloop
async def test_a_short_body_nobody_wanted_is_read_and_the_connection_kept() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n")
        assert "connection" not in (await client.answer()).headers
        await client.send(b"b" * 100000 + GET)
        assert (await client.answer()).json["path"] == "/a/b"


@on_uvloop
async def test_a_long_body_nobody_wanted_ends_the_connection_but_not_before_the_answer_is_read() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(20):
            await client.send(b"b" * 65536)
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await client.ended() == b""


@on_uvloop
async def test_who_goes_on_sending_after_the_refusal_is_cut_off() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 1000000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            await client.send(*([b"b" * 65536] * 2000))
        await until(lambda: not service.server.connections)


# Failures of the application


@pytest.mark.parametrize("path", [b"/raise", b"/silent", b"/inject", b"/long"])
@on_uvloop
async def test_an_application_that_fails_is_answered_500(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as service:
        answer = await service.ask(b"GET %b HTTP/1.1\r\nHost: here\r\n\r\n" % path)
        assert (answer.status, answer.json["errors"][0]["code"]) == (500, "UNKNOWN")
        assert "set-cookie" not in answer.headers


@on_uvloop
async def test_an_answer_that_ends_early_ends_the_connection() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET /short HTTP/1.1\r\nHost: here\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.answer()


# The server as a whole


@on_uvloop
async def test_connections_are_bounded() -> None:
    async with serving(Limits(connections=3)) as service:
        clients = [Client(*await asyncio.open_connection(*service.address)) for _ in range(3)]
        await until(lambda: len(service.server.connections) == 3)
        async with service.client() as client:
            answer = await client.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        clients.pop().close()
        await until(lambda: len(service.server.connections) == 2)
        assert (await service.ask(GET)).status == 200
        for other in clients:
            other.close()


@on_uvloop
async def test_draining_ends_what_is_under_way_and_accepts_nothing_new() -> None:
    async with serving() as service, service.client() as busy, service.client() as idle:
        await busy.send(b"GET /half HTTP/1.1\r\nHost: here\r\n\r\n")
        await until(lambda: len(service.server.exchanges) == 1)
        draining = asyncio.create_task(service.server.drain(10))
        await idle.send(GET)
        assert (await idle.answer()).headers["connection"] == "close"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*service.address)
        service.application.go_on.set()
        assert (await busy.answer()).body == b"halfrest"
        assert await draining


@on_uvloop
async def test_draining_cuts_off_what_takes_too_long() -> None:
    async with serving() as service, service.client() as client:
        await client.send(b"GET /half HTTP/1.1\r\nHost: here\r\n\r\n")
        await until(lambda: len(service.server.exchanges) == 1)
        assert not await service.server.drain(0.2)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.answer()
        await until(lambda: not service.server.exchanges)


@on_uvloop
async def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    await asyncio.to_thread(make_certificate, certificate, key)
    trust = ssl.create_default_context(cafile=str(certificate))
    async with serving(tls=tls_context(certificate, key), client_tls=trust) as service:
        async with service.client() as client:
            await client.send(post(b"/x", b"b" * 100_000))
            assert (await client.answer()).json["length"] == 100_000
            await client.send(b"nonsense\r\n\r\n")
            assert (await client.answer()).status == 400
            assert await client.ended() == b""
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await service.ask(GET)).status == 200
    quick = Limits(header_seconds=0.2)
    async with serving(quick, tls=tls_context(certificate, key)) as service:
        for said in (b"", b"nonsense"):
            async with service.client() as client:
                await client.send(said)
                await client.ended()
        assert not service.server.connections
