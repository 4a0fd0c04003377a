"""The replicator: the process of a member that brings blobs from the other nodes, for all gateways of its own."""
