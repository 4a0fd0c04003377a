"""How commands find the node that they ask, and ask it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from consensus.errors import UNDECODABLE
from node.cli import find_config
from node.config import Config, environment, load

if TYPE_CHECKING:
    import httpx

NOT_READY = 3
ANSWER_SECONDS = 10.0

Answer = TypeVar("Answer", bound=msgspec.Struct)


def configured(path: Path | None) -> Config:
    """As `serve` would read it; where there is none, that of the first region of the cluster on this machine."""
    found = find_config(path)
    if found is None:
        from node.local import Cluster, LocalError

        try:
            first = Cluster.from_environment(environment()).regions[0].folder.config_file
        except LocalError:
            first = None
        found = first if first is not None and first.is_file() else None
    return load(found, environment())


def client_of(base: str, ca: str | None) -> httpx.Client:
    """Of an address, with who signed its certificate where it is not one of the system's. Raises ClickException."""
    import httpx

    try:
        verify = ssl.create_default_context(cafile=ca)
        return httpx.Client(base_url=base, timeout=ANSWER_SECONDS, verify=verify, trust_env=False)
    except (httpx.InvalidURL, ssl.SSLError) as error:
        raise click.ClickException(f"{base}: {error}") from error


def ask(client: httpx.Client, url: str) -> httpx.Response:
    """Whatever the answer's status. Raises ClickException if there is none."""
    import httpx

    try:
        return client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"{client.base_url}: no answer: {error}") from error


def object_in(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer, empty if there is none."""
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def answer_of(client: httpx.Client, path: str, kind: type[Answer], body: msgspec.Struct | None = None) -> Answer:
    """What the admin address says to a GET, or a POST with a body. Raises Refused, ClickException."""
    answer = ask(client, path) if body is None else post(client, path, body)
    if answer.status_code not in (200, 202):
        errors = object_in(answer).get("errors") or [{}]
        raise Refused(answer.status_code, errors[0].get("message") or f"{answer.url}: {answer.reason_phrase}")
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except UNDECODABLE as error:
        raise click.ClickException(f"{answer.url}: this is not a node of this version: {error}") from error


def post(client: httpx.Client, path: str, body: msgspec.Struct) -> httpx.Response:
    """With a JSON body. Raises ClickException if there is no answer."""
    import httpx

    try:
        return client.post(path, content=msgspec.json.encode(body), headers={"content-type": "application/json"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"{client.base_url}: no answer: {error}") from error


class Refused(click.ClickException):
    """The node answered that it does not."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_late(error: click.ClickException) -> bool:
    """Whether somebody is there who has not answered in time."""
    import httpx

    return isinstance(error.__cause__, httpx.TimeoutException)
