"""The replicated log of three to five nodes: pysyncobj made trustworthy behind the port of `consensus.log`."""
