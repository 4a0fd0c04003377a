"""The other members of the cluster, as this node's configuration names them."""

from __future__ import annotations

from node.config import Config
from node.credentials import asking_context
from replication.peers import Peers


def other_members(config: Config) -> Peers:
    """The way to them, for bytes and for requests; the caller closes it. Raises ssl.SSLError, OSError."""
    addresses = config.cluster.transfer_addresses
    del addresses[config.node.name]
    cluster = config.cluster
    return Peers(addresses, cluster.id, asking_context(cluster), congestion_control=cluster.congestion_control)
