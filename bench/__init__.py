"""Meridian measured beside docker-registry and nginx on one machine: `make bench`."""
