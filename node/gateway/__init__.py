"""The OCI distribution API over HTTP: a thin translation between requests and `node.registry`."""
