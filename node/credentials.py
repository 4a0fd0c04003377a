"""TLS between nodes: both sides show a certificate of the cluster's CA.

Its CN is the member's name, its O the cluster's id, and it is good for the host `<member>.<cluster id>.meridian`, under
which a member is reached whatever its address.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import Any

from node.config import Cluster

log = logging.getLogger(__name__)


def serving_context(cluster: Cluster) -> ssl.SSLContext:
    """For a listener: no connection without a certificate of the CA. Raises ssl.SSLError, OSError."""
    return _prepared(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cluster)


def asking_context(cluster: Cluster) -> ssl.SSLContext:
    """For a client, which checks the other side's name too. Raises ssl.SSLError, OSError."""
    return _prepared(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cluster)


def _prepared(context: ssl.SSLContext, cluster: Cluster) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cluster.ca)
    context.load_cert_chain(cluster.certificate, cluster.key)
    return context


class Admission:
    """Who may talk to this node as a member: the others, as their certificates name them."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster_id = cluster.id
        self._others = frozenset(cluster.addresses) - {name}

    def __call__(self, certificate: Mapping[str, Any]) -> bool:
        """Of a verified certificate, as ssl's getpeercert has it. Who is turned away is logged."""
        members, clusters = _names(certificate, "commonName"), _names(certificate, "organizationName")
        if clusters == [self._cluster_id] and len(members) == 1 and members[0] in self._others:
            return True
        log.warning("peer_refused", extra={"members": members, "clusters": clusters})
        return False


def _names(certificate: Mapping[str, Any], kind: str) -> list[str]:
    return [value for part in certificate.get("subject", ()) for key, value in part if key == kind]
