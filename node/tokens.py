"""Names of uploads as clients see them: `<uuid>.<node>.<code>`, bound to one repository.

The code (HMAC-SHA-256, 128 bits of it) covers all three, so that an id cannot be guessed, carried to another repository
or pointed at another node. It names the node because only that one has the bytes.
"""

from __future__ import annotations

import hashlib
import hmac

from consensus.names import RepositoryName
from node.errors import UploadUnknown

_MAX_CHARACTERS = 256
_CODE_CHARACTERS = 32


def named_node(token: str) -> str:
    """The node that a token says has the upload, which only that node can verify; "" for no token at all."""
    parts = token.split(".")
    return parts[1] if len(parts) == 3 and len(token) <= _MAX_CHARACTERS and token.isascii() else ""


class UploadTokens:
    """Makes and checks the tokens of one node."""

    def __init__(self, node_id: str, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the secret of upload tokens takes at least 16 bytes")
        self._node_id = node_id
        self._secret = secret

    def issue(self, upload_id: str, repository: RepositoryName) -> str:
        """The token of an upload of this node; safe in a URL."""
        return f"{upload_id}.{self._node_id}.{self._code(upload_id, self._node_id, repository)}"

    def read(self, token: str, repository: RepositoryName) -> str:
        """The upload's id. Raises UploadUnknown for every token that this node did not issue for this repository."""
        named, _, code = token.rpartition(".")
        upload_id, _, node_id = named.partition(".")
        if len(token) > _MAX_CHARACTERS or not token.isascii() or node_id != self._node_id:
            raise UploadUnknown
        if not hmac.compare_digest(code, self._code(upload_id, node_id, repository)):
            raise UploadUnknown
        return upload_id

    def _code(self, upload_id: str, node_id: str, repository: RepositoryName) -> str:
        message = "\0".join((upload_id, node_id, repository.value)).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:_CODE_CHARACTERS]
