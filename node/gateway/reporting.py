"""What other members may ask about replication here: how it goes, which blobs are held, and to bring some."""

from __future__ import annotations

import msgspec

from consensus.errors import UNDECODABLE
from consensus.names import Digest
from node.errors import ContentTooLarge
from node.gateway.gateway import Gateway
from node.gateway.refusals import MalformedRequest
from node.gateway.requests import Request
from node.gateway.responses import Response, json_response
from node.gateway.routes import Endpoint, Route
from node.overview.here import Here
from node.overview.members import DEMANDS_PATH, HOLDINGS_PATH, STATUS_PATH
from node.overview.shapes import MAX_BODY_BYTES, Digests


def reporting_routes(here: Here) -> dict[bytes, Route]:
    """By their paths."""

    async def get_status(gateway: Gateway, request: Request) -> Response:
        return json_response(await here.status())

    async def post_holdings(gateway: Gateway, request: Request) -> Response:
        asked = await _asked(request)
        return json_response(await here.holdings(_parsed(asked), report=asked.report))

    async def post_demands(gateway: Gateway, request: Request) -> Response:
        return json_response(await here.demand(_parsed(await _asked(request))))

    return {
        STATUS_PATH.encode(): Route("replication", {"GET": Endpoint(None, get_status)}),
        HOLDINGS_PATH.encode(): Route("holdings", {"POST": Endpoint(None, post_holdings)}),
        DEMANDS_PATH.encode(): Route("demands", {"POST": Endpoint(None, post_demands)}),
    }


async def _asked(request: Request) -> Digests:
    """Raises MalformedRequest, ContentTooLarge, ClientGone."""
    body = bytearray()
    async for chunk in request.chunks():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ContentTooLarge("a list of digests", MAX_BODY_BYTES)
    try:
        return msgspec.json.decode(body, type=Digests)
    except UNDECODABLE as error:
        raise MalformedRequest(f"not a list of digests: {error}") from error


def _parsed(asked: Digests) -> list[Digest]:
    """Each once. Raises InvalidName."""
    return [Digest.parse(text) for text in dict.fromkeys(asked.digests)]
