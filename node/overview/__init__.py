"""Replication as people see it: what is under way in each region, where a blob is, how much of an image is where."""
