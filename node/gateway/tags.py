"""Lists of names: a repository's tags (end-8), and the repositories."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from consensus.names import RepositoryName
from node.gateway.gateway import Gateway
from node.gateway.pages import next_link, parse_page
from node.gateway.requests import Request
from node.gateway.responses import Response, json_response

Listing = Callable[[str | None, int], Awaitable[list[str]]]


async def get_tags(gateway: Gateway, request: Request, repository: RepositoryName, _: str) -> Response:
    """end-8: tags in ASCII order, a page at a time."""
    listing = partial(gateway.registry.tags, repository)
    path = f"/v2/{repository}/tags/list"
    return await _page(gateway, request, listing, path=path, key="tags", name=repository.value)


async def get_catalog(gateway: Gateway, request: Request) -> Response:
    """Repositories in ASCII order, a page at a time."""
    return await _page(gateway, request, gateway.registry.repositories, path="/v2/_catalog", key="repositories")


async def _page(
    gateway: Gateway, request: Request, listing: Listing, *, path: str, key: str, **fields: str
) -> Response:
    page = parse_page(request, gateway.limits.page_size)
    names = await listing(
        page.after, page.limit + 1 if page.limit else 0
    )  # one more tells whether there is a next page
    shown = names[: page.limit]
    headers = [next_link(path, page.limit, shown[-1])] if len(names) > len(shown) else []
    return json_response({**fields, key: shown}, headers)
