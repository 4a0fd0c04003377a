"""Regions joined by an emulated WAN, on one machine."""
