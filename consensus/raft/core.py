"""pysyncobj's Raft with its faults guarded, without a fork: what is overridden, and where.

    fault of release 0.3.17                       guard
    ------------------------------------------    -----------------------------------------------------------------
    entries acknowledged before are truncated     `following`: only a conflict truncates, never a committed entry, and
                                                  commit rises to what was compared only
    acknowledgements carry no term                `leading`: every message has one; that of another term is dropped
    stale resets make the leader resend           `leading`: an answer older than the last reset resets nothing, and
                                                  an acknowledgement never resends what is under way
    votes are counted, not voters                 `voting`: a voter counts once a term
    an isolated node disrupts when it returns     `voting`: pre-vote, and votes are refused while a leader is heard
    a cut-off leader stays one for 30 s           `leading`: it steps down after `Timing.fallback` without a majority
    nothing is synced                             the journal is flushed before an acknowledgement leaves and before
                                                  the leader counts itself; term and vote before a vote leaves
    membership changes are not serialized         `following`: kinds other than REGULAR and NO_OP are refused
    an exception in apply or a callback           nothing is applied and nobody is called in here (`member`)
    pickle                                        never reached (`pinned`)

Relied on as it is: votes go to logs that are up to date, terms, the no-op of an election, and the transfer of
leadership. No threads, and no I/O beside the journal: the caller hands over
messages and time, and what is to be sent goes to `send`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from consensus.raft.following import Following
from consensus.raft.guarded import Send, Timing
from consensus.raft.leading import Leading
from consensus.raft.links import Message
from consensus.raft.pinned import Node
from consensus.raft.voting import Voting

__all__ = ["Core", "Send", "Timing"]

_logger = logging.getLogger(__name__)


class Core(Leading, Following, Voting):
    """One member. `tick`, `acknowledge` and `receive` raise what the journal does: after LogUnavailable the member must
    not go on, after LogFull `step_down` is called for."""

    def receive(self, peer: str, message: Message) -> None:
        """A message of an authenticated member; one that makes no sense is dropped and logged."""
        node = Node(peer)
        handler = _HANDLERS.get(str(message.get("type")))
        if node not in self.otherNodes or handler is None or not _is_term(message.get("term")):
            _logger.warning("raft_message_dropped", extra={"peer": peer, "reason": "not a message of this version"})
            return
        try:
            handler(self, node, message)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            _logger.warning("raft_message_dropped", extra={"peer": peer, "reason": repr(error)})


def _is_term(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


_HANDLERS: dict[str, Callable[[Core, Node, Message], None]] = {
    "append_entries": Core.on_append_entries,
    "next_node_idx": Core.on_next_node_idx,
    "request_vote": Core.on_request_vote,
    "response_vote": Core.on_response_vote,
    "pre_vote": Core.on_pre_vote,
    "pre_vote_granted": Core.on_pre_vote_granted,
    "timeout_now": Core.on_timeout_now,
    "stale": Core.on_stale,
}
