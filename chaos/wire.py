"""The registry's protocol as a client speaks it, one request at a time; every unlooked-for answer is written down.

NoAnswer     the connection broke, timed out or ended in 503: it may or may not have happened
Surprise     an answer that no healthy registry gives here; already in `History.surprises`
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Self

import httpx

from chaos.content import ManifestBytes
from chaos.history import History, PendingUpload

REQUEST_SECONDS = 20.0
Body = bytes | AsyncIterator[bytes]


class NoAnswer(Exception):
    """What was asked for may or may not have happened."""


class NotDone(Exception):
    """What was asked for has not happened and will not."""


class Surprise(Exception):
    """The answer makes no sense."""


class Wire:
    """One client's connections. `severed` is set by whoever kills the registry, just before: no answer is news then.
    `cut_off` says that the node is frozen or without a majority: it may refuse, and goes on afterwards."""

    def __init__(self, address: str, history: History) -> None:
        self.history = history
        self.severed = False
        self.cut_off = False
        self.refused = 0  # times it did not answer, or with 503
        self.address = address
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(
            base_url=f"http://{address}", timeout=REQUEST_SECONDS, limits=limits, trust_env=False
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self,
        method: str,
        url: str | httpx.URL,
        expected: Collection[int],
        *,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
    ) -> httpx.Response:
        """An answer whose status is one of `expected`; raises NoAnswer, NotDone, Surprise."""
        try:
            response = await self._client.request(method, url, headers=headers, content=body)
        except (httpx.TransportError, httpx.StreamError) as error:
            self.refused += 1
            if not self._is_forgiving:
                self.history.surprises.append(f"{method} {url}: {error!r}")
            raise NoAnswer from error
        if response.status_code in expected:
            return response
        if response.status_code == 507 and self.history.tolerant:
            raise NotDone
        if response.status_code == 503 and self._is_forgiving:
            self.refused += 1
            raise NoAnswer
        self.history.surprises.append(f"{method} {url}: {response.status_code} {response.text[:300]}")
        raise NoAnswer if response.status_code >= 500 else Surprise

    @property
    def _is_forgiving(self) -> bool:
        return self.severed or self.cut_off or self.history.tolerant

    async def begin_upload(self, repository: str, content: bytes, digest: str) -> PendingUpload:
        """POST: a new session, written down as pending."""
        response = await self.ask("POST", f"/v2/{repository}/blobs/uploads/", {202})
        return self.expect_upload(repository, response, content, digest)

    def expect_upload(self, repository: str, response: httpx.Response, content: bytes, digest: str) -> PendingUpload:
        """A 202 to a POST has made a session."""
        upload = PendingUpload(repository, response.headers["location"], digest, content, self.address)
        self.history.uploads.append(upload)
        self.history.held.add((self.address, digest))
        return upload

    async def send_chunk(self, upload: PendingUpload, start: int, body: Body, length: int) -> None:
        """PATCH of `length` bytes from `start`; the session's new location is kept."""
        headers = {"content-type": "application/octet-stream", "content-range": f"{start}-{start + length - 1}"}
        if isinstance(body, bytes):
            headers["content-length"] = str(length)
        response = await self.ask("PATCH", upload.location, {202}, headers=headers, body=body)
        upload.location = response.headers["location"]

    async def close_upload(self, upload: PendingUpload, rest: bytes) -> None:
        """The PUT that ends the session, with what is left of the content."""
        url = httpx.URL(upload.location).copy_merge_params({"digest": upload.digest})
        headers = {"content-type": "application/octet-stream", "content-length": str(len(rest))}
        await self.ask("PUT", url, {201}, headers=headers, body=rest)
        self.history.uploads.remove(upload)

    async def cancel_upload(self, upload: PendingUpload) -> None:
        """DELETE of the session."""
        await self.ask("DELETE", upload.location, {204})
        self.history.uploads.remove(upload)

    async def upload_offset(self, upload: PendingUpload) -> int | None:
        """GET of the session: how many bytes it has, or None if it is gone."""
        response = await self.ask("GET", upload.location, {204, 404})
        if response.status_code == 404:
            return None
        upload.location = response.headers.get("location", upload.location)
        last = int(response.headers["range"].partition("-")[2])
        return last + 1 if last else 0

    async def put_manifest(
        self, repository: str, reference: str, manifest: ManifestBytes, *, condition: dict[str, str] | None = None
    ) -> bool:
        """PUT; False if `condition` did not hold (412)."""
        headers = {"content-type": manifest.media_type} | (condition or {})
        expected = {201, 412} if condition else {201}
        url = f"/v2/{repository}/manifests/{reference}"
        return (await self.ask("PUT", url, expected, headers=headers, body=manifest.content)).status_code == 201
