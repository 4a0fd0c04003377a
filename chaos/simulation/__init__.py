"""Deterministic simulation of the replicated log: the shipped modules, on a network, a clock and disks made for it.

    plan      what a seed decides: members, timing, network, disks, which faults and how often
    world     the clock and the queue of what happens next; members, clients and faults meet here
    machine   one member: its process, which can end at any sync, and its folder, which outlives it
    network   links that keep the transport's contract, or in some seeds none
    volume    disks that forget what was not synced, wholly or in parts
    replica   the state behind the log: the real one in some seeds, a counter in the others
    client    proposals, retried under their request id, and reads
    watched   a member's journal, and what of it may be found after a crash
    stage     what stories are told with
    stories   courses of events that chance would hardly find, each the reason for some guard
    nemesis   faults, or a story told over and over, and the calm at the end in which the cluster has to recover
    judge     the promises, checked on everything that was observed
    trace     what happened, to be told and to be compared
    guards    each guard of the core, and how to take it away
    omission  each sync of the product, and how to leave it out
    campaign  many seeds, resumable; and the proof that what is taken away is noticed

A seed and a commit reproduce a run exactly. Snapshots come in at `machine` (where a member is told that it lags) and
`nemesis` (where logs are trimmed: for now only below what every member has durably applied).
"""
