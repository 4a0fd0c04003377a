"""The product: configuration, command line, supervisor, gateways, keeper, blob stores and telemetry."""
