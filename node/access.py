"""Who may do what: the one question that every route asks before it says anything else about a repository."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from consensus.names import RepositoryName


class Action(StrEnum):
    """What somebody wants to do. Without a repository it concerns the registry, or every repository of it."""

    CONNECT = "connect"  # learn that this is a registry; what `docker login` tries
    LIST = "list"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `name` is None for somebody who did not say."""

    name: str | None


ANONYMOUS = Principal(None)


class AccessDenied(Exception):
    """The root of refusals; the message never tells whether the repository exists."""


class Unauthenticated(AccessDenied):
    """Nobody in particular may not do this: say who you are."""


class Forbidden(AccessDenied):
    """This principal may not do this."""


class Policy(Protocol):
    """A rule about who may do what."""

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        """Quick, and without side effects: it is asked for every request."""


class OpenPolicy:
    """Everybody may do everything."""

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        """True."""
        return True


class Access:
    """The policy in force."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        """For what is offered if allowed and left out otherwise, such as a mount's source."""
        return self._policy.allows(principal, action, repository)

    def authorize(self, principal: Principal, action: Action, repository: RepositoryName | None) -> None:
        """Returns if it is allowed. Raises Unauthenticated, Forbidden."""
        if self._policy.allows(principal, action, repository):
            return
        where = f" {repository}" if repository else ""
        if principal == ANONYMOUS:
            raise Unauthenticated(f"authentication is required to {action}{where}")
        raise Forbidden(f"not allowed to {action}{where}")
