"""The one door through which randomness enters."""

import secrets
import uuid


def token_bytes(count: int) -> bytes:
    """`count` bytes nobody can guess."""
    return secrets.token_bytes(count)


def new_uuid() -> str:
    """A random UUID (version 4) in its usual form."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def fraction() -> float:
    """A number in [0, 1) nobody can guess."""
    return int.from_bytes(secrets.token_bytes(6), "big") / (1 << 48)
