"""Messages as bytes. A frame is one msgpack map, or a mark: the byte that msgpack never uses and eight more.

Everything that comes in is bounded before it is built: the frame by the transport, here each list and map, all elements
together, the depth (by msgpack, at 1,024), and no extension types.
"""

from __future__ import annotations

from typing import Any

import msgpack

from consensus.raft.handshake import Refused
from consensus.raft.links import MAX_ELEMENTS, MAX_FRAME_BYTES, MAX_LENGTH, Message

MARK_BYTES = 9
_MARK = b"\xc1"


def encode(message: Message) -> bytes:
    """Raises ValueError, TypeError or OverflowError for what msgpack cannot hold or is over MAX_FRAME_BYTES."""
    frame: bytes = msgpack.packb(message, use_bin_type=True)
    if len(frame) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(frame)} bytes; at most {MAX_FRAME_BYTES} can be sent")
    return frame


def decode(frame: bytes) -> Message:
    """The inverse, with tuples for lists. Raises Refused."""
    if len(frame) > MAX_FRAME_BYTES:
        raise Refused.frame("the frame is too long")
    budget = _Budget()
    try:
        message = msgpack.unpackb(
            frame,
            use_list=False,
            raw=False,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=0,
            list_hook=budget.spend,
            object_hook=budget.spend,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Refused.frame("the frame is not a msgpack map within the bounds") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise Refused.frame("the frame is not a map with names for keys")
    return message


def mark(number: int) -> bytes:
    """The frame of a heartbeat, sent back as it is; 0 says that the stream is accepted."""
    return _MARK + number.to_bytes(8)


def is_mark(frame: bytes) -> bool:
    """Raises Refused for what begins as one and is none."""
    if frame[:1] != _MARK:
        return False
    if len(frame) != MARK_BYTES:
        raise Refused.frame("the frame is a heartbeat of a wrong length")
    return True


class _Budget:
    def __init__(self) -> None:
        self._left = MAX_ELEMENTS

    def spend(self, container: Any) -> Any:
        self._left -= 1 + len(container)
        if self._left < 0:
            raise ValueError("too many elements")
        return container
