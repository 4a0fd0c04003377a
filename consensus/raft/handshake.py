"""Who is at the other end, and whether what it opens is newer than what it opened before.

A certificate of the cluster names its member in one DNS name, `<member>.<cluster id>.meridian`; nothing else in it, and
nothing that a peer says, counts as its identity. What a peer says of itself stands in the metadata of its stream: the
protocol, the cluster, the incarnation of its process and the generation of the stream within that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from consensus.errors import ConsensusError

PROTOCOL = 1
SUFFIX = ".meridian"

_KEYS = ("meridian-protocol", "meridian-cluster", "meridian-incarnation", "meridian-generation")
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_NAME = re.compile(r"([a-z0-9][a-z0-9.-]*)\.([0-9a-f]{32})\.meridian", re.ASCII)


class Reason(StrEnum):
    """Why a stream is refused."""

    NO_IDENTITY = "no_identity"
    OTHER_CLUSTER = "other_cluster"
    NO_MEMBER = "no_member"
    OURSELVES = "ourselves"
    BAD_HANDSHAKE = "bad_handshake"
    OTHER_PROTOCOL = "other_protocol"
    OUTDATED = "outdated"
    TOO_MANY = "too_many"
    BAD_FRAME = "bad_frame"
    CLOSED = "closed"


class Refused(ConsensusError):
    """What a peer presented or sent is not accepted; the message goes to the peer as well and holds nothing secret."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @classmethod
    def frame(cls, message: str) -> Refused:
        """For what was sent, not for who sent it."""
        return cls(Reason.BAD_FRAME, message)


def dns_name(member: str, cluster_id: str) -> str:
    """The name that a member's certificate carries."""
    return f"{member}.{cluster_id}{SUFFIX}"


def member_named(names: Iterable[bytes], cluster_id: str) -> str:
    """The member to whom a certificate with these alternative names was issued. Raises Refused unless exactly one of
    them is a member's, and of this cluster."""
    ours = [name.decode("ascii", "replace") for name in names if name.endswith(SUFFIX.encode())]
    if len(ours) != 1 or not (match := _NAME.fullmatch(ours[0])):
        raise Refused(Reason.NO_IDENTITY, "the certificate does not name exactly one member")
    if match[2] != cluster_id:
        raise Refused(Reason.OTHER_CLUSTER, "the certificate is that of another cluster")
    return match[1]


@dataclass(frozen=True, slots=True)
class Hello:
    """What the opener of a stream says. Both numbers grow: `generation` with each stream of a process, `incarnation`
    with each process of a member, also across restarts of its machine."""

    cluster_id: str
    incarnation: int
    generation: int

    @property
    def age(self) -> tuple[int, int]:
        """Streams of one member compare by this; the greater one is newer."""
        return self.incarnation, self.generation

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """As it is sent."""
        values = (PROTOCOL, self.cluster_id, self.incarnation, self.generation)
        return tuple((key, str(value)) for key, value in zip(_KEYS, values, strict=True))

    @classmethod
    def parse(cls, metadata: Iterable[tuple[str, str | bytes]], cluster_id: str) -> Hello:
        """Reads what a peer says. Raises Refused unless all of it is there once, in this protocol, for this cluster."""
        said = [(key, value) for key, value in metadata if key in _KEYS]
        values = dict(said)
        if len(said) != len(_KEYS) or len(values) != len(_KEYS):
            raise Refused(Reason.BAD_HANDSHAKE, "the handshake is not complete")
        protocol, cluster, incarnation, generation = (values[key] for key in _KEYS)
        if protocol != str(PROTOCOL):
            raise Refused(Reason.OTHER_PROTOCOL, f"protocol {PROTOCOL} is spoken here")
        if cluster != cluster_id:
            raise Refused(Reason.OTHER_CLUSTER, "the handshake is for another cluster")
        return cls(cluster_id, _number(incarnation), _number(generation))


def _number(text: str | bytes) -> int:
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise Refused(Reason.BAD_HANDSHAKE, "incarnation or generation is not a number")
    return int(text)
