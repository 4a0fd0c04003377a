"""What can go wrong about a lab; each message is for the person at the terminal, and says what to do if that is known.

LabError
├── TopologyError       the topology, or a change to it, says something that cannot be
├── NamespacesRefused   this machine or this user cannot have network namespaces
├── LinesBroken         what carries packets has ended, or does not understand
└── LabRefused          no lab is up in this folder, or one is; or it did not get ready
"""

from __future__ import annotations


class LabError(Exception):
    """Any of these."""


class TopologyError(LabError):
    """The topology, or a change to it, says something that cannot be; the message says where and what is expected."""


class NamespacesRefused(LabError):
    """This machine or this user cannot have network namespaces; the message says why."""


class LinesBroken(LabError):
    """What carries packets has ended, or does not understand."""


class LabRefused(LabError):
    """No lab is up in this folder, or one is, or it did not get ready."""
