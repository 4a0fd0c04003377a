"""What can go wrong below the use cases.

    ConsensusError
    ├── InvalidName          a digest, repository, tag, region or media type that does not parse
    ├── InvalidManifest      manifest bytes that no registry should keep
    ├── InvalidCommand       bytes that are not a command this version knows, or are over its size
    ├── StateRefused         a state database of another cluster, schema or future version
    ├── SnapshotError
    │   ├── SnapshotRefused      of another cluster or schema, or no newer than the state
    │   ├── SnapshotDamaged      bytes that are not what the manifest says: they have to come anew
    │   ├── SnapshotFull         no room for it on the disk: nothing was changed, reading goes on
    │   └── SnapshotUnavailable  none to be had now, or the way to it broke off: what has come stays, ask again
    └── LogError
        ├── LogCorrupt       a bad record in the middle of the log: an operator has to decide
        ├── LogFull          no space left: nothing was appended, reading goes on
        ├── LogTrimmed       entries were asked for that have been trimmed
        └── LogUnavailable   stopped, or failed for good: what was under way may or may not be in the log

What a client can cause and a caller expects (conflict, not found, refused) is not here: it is an `Outcome`.
"""

import msgspec

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding the bytes of others by msgspec raises."""


class ConsensusError(Exception):
    """The root of this package's errors."""


class InvalidName(ConsensusError, ValueError):
    """Text that is not what it claims to be; `kind` names what was expected ("digest", "repository", ...)."""

    def __init__(self, kind: str, text: str, reason: str) -> None:
        super().__init__(f"invalid {kind}: {reason}")
        self.kind = kind
        self.text = text[:300]
        self.reason = reason


class InvalidManifest(ConsensusError, ValueError):
    """Manifest bytes that cannot be accepted; the message says why, in words for the client."""


class InvalidCommand(ConsensusError, ValueError):
    """Bytes that are not a command of a known version, or a command over `MAX_COMMAND_BYTES`."""


class StateRefused(ConsensusError):
    """A state database that must not be opened by this version or this node."""


class SnapshotError(ConsensusError):
    """The root of what goes wrong with a copy of the state; the state itself is as it was."""


class SnapshotRefused(SnapshotError):
    """A whole snapshot that this node must not install."""


class SnapshotDamaged(SnapshotError):
    """Bytes or a manifest that are not what they are said to be."""


class SnapshotFull(SnapshotError):
    """The disk has no room for a snapshot beside what pulls and pushes need."""


class SnapshotUnavailable(SnapshotError):
    """No snapshot for now: none is kept, the peer does not answer, or it broke off half-way."""


class LogError(ConsensusError):
    """The root of what a log engine raises."""


class LogCorrupt(LogError):
    """A record that fails its checksum with valid records behind it; the message says what to do."""


class LogFull(LogError):
    """The disk has no room: nothing of the entry is in the log, now or later."""


class LogTrimmed(LogError):
    """Entries below the first kept index were asked for; a snapshot is needed instead."""


class LogUnavailable(LogError):
    """The engine is stopped or has failed; an append under way may or may not have happened."""
