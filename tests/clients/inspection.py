"""Reading a registry by plain HTTP, to check what a client did without trusting another client."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from tests.clients.layouts import DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, children_of, digest_of

ACCEPT = ", ".join([INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST])


@dataclass(frozen=True)
class Inspection:
    """Checked reads of one registry at host:port."""

    registry: str

    def request(self, method: str, path: str) -> httpx.Response:
        """One request below /v2/."""
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.request(method, f"http://{self.registry}/v2/{path}", headers={"Accept": ACCEPT})

    def exists(self, path: str) -> bool:
        """Whether a HEAD finds this; any answer but 200 and 404 is a failure."""
        status = self.request("HEAD", path).status_code
        assert status in (200, 404), f"HEAD {path}: {status}"
        return status == 200

    def digest(self, repository: str, reference: str) -> str:
        """The digest of a manifest, computed from its bytes."""
        answer = self.request("GET", f"{repository}/manifests/{reference}")
        assert answer.status_code == 200, f"{repository}:{reference}: {answer.status_code} {answer.text}"
        assert answer.headers["Docker-Content-Digest"] == digest_of(answer.content)
        return digest_of(answer.content)

    def tags(self, repository: str) -> list[str]:
        """The repository's tags in the registry's own order; none where it does not know the repository."""
        answer = self.request("GET", f"{repository}/tags/list")
        return list(answer.json()["tags"] or []) if answer.status_code == 200 else []

    def tree(self, repository: str, reference: str) -> dict[str, bytes]:
        """Everything reachable from a manifest, by digest; every blob's bytes are checked against their digest."""
        pending = [("manifests", self.digest(repository, reference))]
        found: dict[str, bytes] = {}
        while pending:
            kind, digest = pending.pop()
            answer = self.request("GET", f"{repository}/{kind}/{digest}")
            assert answer.status_code == 200, f"{repository}@{digest}: {answer.status_code}"
            assert digest_of(answer.content) == digest
            found[digest] = answer.content
            below = "manifests" if kind == "manifests" and "manifests" in answer.json() else "blobs"
            children = children_of(answer.content) if kind == "manifests" else []
            pending += [(below, child) for child in children if child not in found]
        return found
