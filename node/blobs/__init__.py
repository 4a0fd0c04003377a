"""Implementations of the ports in `replication.stores`; one suite, `tests/node/blobs`, holds them to it."""
