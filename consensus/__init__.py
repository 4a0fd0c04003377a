"""The lowest package: the vocabulary, the commands, the replicated log, the state machine and its read side.

Imports point downwards only: `chaos -> node -> replication -> consensus`; `tests/test_tidy.py` holds the tree to it.
"""
