from __future__ import annotations

import pytest

from consensus.names import RepositoryName
from node.access import ANONYMOUS, Access, Action, Forbidden, OpenPolicy, Principal, Unauthenticated

APP = RepositoryName("team/app")


class ReadersOnly:
    """Anybody may pull from one repository, and do nothing else."""

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        return action is Action.PULL and repository == APP


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("repository", [None, APP])
def test_the_open_policy_allows_everything(action: Action, repository: RepositoryName | None) -> None:
    access = Access(OpenPolicy())
    access.authorize(ANONYMOUS, action, repository)
    assert access.allows(Principal("somebody"), action, repository)


def test_who_is_refused_is_asked_to_authenticate_or_told_that_it_is_forbidden() -> None:
    access = Access(ReadersOnly())
    access.authorize(ANONYMOUS, Action.PULL, APP)
    with pytest.raises(Unauthenticated, match="required to push team/app"):
        access.authorize(ANONYMOUS, Action.PUSH, APP)
    with pytest.raises(Forbidden, match="not allowed to list"):
        access.authorize(Principal("somebody"), Action.LIST, None)
    assert not access.allows(ANONYMOUS, Action.PULL, None)
