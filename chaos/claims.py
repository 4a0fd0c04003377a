"""Names that one process of the machine can have at a time, whatever runs beside it; a name ends with its process."""

from __future__ import annotations

import socket


def claim(name: str) -> socket.socket:
    """The holder of the name, until it is closed. Raises OSError (EADDRINUSE) while another process has it."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0meridian-{name}")
    except OSError:
        holder.close()
        raise
    return holder
