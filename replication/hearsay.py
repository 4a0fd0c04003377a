"""What one transfer makes of what nodes tell each other about copies: who else may be asked, and how long to wait for
somebody where nobody is left. Told the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from consensus.names import Digest, StoreId

LOOK_SECONDS = 0.25  # between two looks at who has a copy by now


class Hearsay:
    """`look_again` says who may be asked by now, for `patience_seconds` after nobody was left; `untrue` is to be told
    who does not hold the blob after all."""

    def __init__(
        self,
        look_again: Callable[[], Iterable[StoreId]] = tuple,
        patience_seconds: float = 0.0,
        untrue: Callable[[StoreId, Digest], None] = lambda store, digest: None,
    ) -> None:
        self.untrue = untrue
        self._look_again = look_again
        self._patience_seconds = patience_seconds
        self._looked_at = float("-inf")
        self._hopeless_since: float | None = None

    def others(self, now: float, *, hopeless: bool) -> Iterable[StoreId]:
        """Who may be asked too; nobody if that was looked at a moment ago, unless nobody else is left."""
        if not hopeless and now - self._looked_at < LOOK_SECONDS:
            return ()
        self._looked_at = now
        return self._look_again()

    def is_over(self, now: float, *, hopeless: bool) -> bool:
        """Whether nobody has been left for so long that nobody is waited for any more."""
        if not hopeless:
            self._hopeless_since = None
            return False
        if self._hopeless_since is None:
            self._hopeless_since = now
        return now - self._hopeless_since >= self._patience_seconds
