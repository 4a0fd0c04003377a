"""Drives a cluster from outside: faults, workloads, checkers. Nothing in the product imports it."""
