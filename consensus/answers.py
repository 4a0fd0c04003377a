"""Exactly once: who may propose, up to where each has been answered, and the answers above that.

A proposer is the index of its EnrolProposer entry. What lies at or below its acknowledged watermark is never applied
again; what lies above and has been applied is answered with the outcome of the first time.
"""

from __future__ import annotations

import sqlite3

from consensus.codec import decode_outcome, encode_outcome
from consensus.commands import Envelope, Outcome, Reason, Status

MAX_PROPOSERS = 4096
PROPOSER_IDLE_MS = 24 * 3600 * 1000
MAX_AHEAD = 65_536  # how far above its watermark a proposer may number, and so how many outcomes are kept for it


def enrol(connection: sqlite3.Connection, index: int, now_ms: int, name: str) -> Outcome:
    """A new proposer with identity `index`; those idle for a day, or beyond the most recently used, are forgotten."""
    connection.execute("INSERT INTO proposers VALUES (?, ?, 0, ?)", (index, name, now_ms))
    idle = connection.execute("SELECT id FROM proposers WHERE used_ms < ?", (now_ms - PROPOSER_IDLE_MS,)).fetchall()
    excess = connection.execute(
        "SELECT id FROM proposers ORDER BY used_ms, id LIMIT max(0, (SELECT count(*) FROM proposers) - ?)",
        (MAX_PROPOSERS,),
    ).fetchall()
    connection.executemany("DELETE FROM outcomes WHERE proposer = ?", {*idle, *excess})
    connection.executemany("DELETE FROM proposers WHERE id = ?", {*idle, *excess})
    return Outcome(Status.DONE, index, changed=index, created=True)


def admit(connection: sqlite3.Connection, index: int, now_ms: int, envelope: Envelope) -> Outcome | None:
    """None if the command is to be applied now, otherwise the answer. Raises the watermark in either case."""
    proposer, sequence = envelope.proposer, envelope.sequence
    row = connection.execute(
        "SELECT acknowledged, outcome FROM proposers LEFT JOIN outcomes ON proposer = id AND sequence = ? WHERE id = ?",
        (sequence, proposer),
    ).fetchone()
    if row is None:
        return Outcome(Status.REFUSED, index, reason=Reason.PROPOSER_UNKNOWN)
    before, kept = row
    acknowledged = max(before, envelope.acknowledged)
    connection.execute(
        "UPDATE proposers SET acknowledged = ?, used_ms = ? WHERE id = ?", (acknowledged, now_ms, proposer)
    )
    if acknowledged > before:
        connection.execute("DELETE FROM outcomes WHERE proposer = ? AND sequence <= ?", (proposer, acknowledged))
    if sequence <= acknowledged:
        return Outcome(Status.REFUSED, index, reason=Reason.ALREADY_ANSWERED)
    if kept is not None:
        return decode_outcome(kept)
    if sequence > acknowledged + MAX_AHEAD:
        return Outcome(Status.REFUSED, index, reason=Reason.MALFORMED)
    return None


def keep(connection: sqlite3.Connection, envelope: Envelope, outcome: Outcome) -> None:
    """Remembers the answer until the proposer acknowledges it."""
    connection.execute(
        "INSERT INTO outcomes VALUES (?, ?, ?)", (envelope.proposer, envelope.sequence, encode_outcome(outcome))
    )
