"""The one way to the database, and what becomes of its errors.

What canisters' code can provoke is refused before a statement is made (`replica.abi.tables`), so
any error here is the machine's: a page that can't be read, a full disk, no memory. Another node has
none, so nothing that follows from it may be a result: see `MachineFault`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from replica.protocol.errors import MachineFault, ReprisError

T = TypeVar("T")

BUSY_S = 5
"""How long one try waits for a lock that somebody else holds on the database."""
BUSY_TRIES_MAX = 12
"""A minute in all, for an operator's own statement; then a restart makes another file."""
_BUSY_CODES = (5, 6)
"""SQLITE_BUSY and SQLITE_LOCKED. Source: https://www.sqlite.org/rescode.html"""


class Latch:
    """Remembers that the machine failed: whoever takes an outcome over asks it first.

    An error alone could be lost on its way up, in a `finally` or `__exit__` of canisters' code.
    """

    def __init__(self) -> None:
        self.fault: MachineFault | None = None
        """The first one."""

    def check(self) -> None:
        """Raises: MachineFault once the machine has failed."""
        if self.fault is not None:
            raise MachineFault(str(self.fault)) from self.fault.__cause__

    def trip(self, doing: str, error: BaseException) -> MachineFault:
        """Note an error; return the fault to raise. `doing`: what went wrong, as in a log."""
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        first_line = said.partition("\n")[0]
        made = MachineFault(f"{doing}: {type(error).__name__}: {first_line}")
        made.__cause__ = error
        self.note(made)
        return made

    def note(self, fault: MachineFault) -> None:
        if self.fault is None:
            self.fault = fault


class Access:
    """A connection, and the latch that its errors go to."""

    def __init__(self, connection: sa.Connection, latch: Latch, *, tries_max: int) -> None:
        """`tries_max`: how often a statement is tried while the database is locked."""
        self.connection, self.latch, self._tries_max = connection, latch, tries_max

    def attempt(self, doing: str, action: Callable[[], T]) -> T:
        """Return what a statement or transaction gives. Raises: MachineFault."""
        self.latch.check()
        for left in reversed(range(self._tries_max)):
            try:
                return action()
            except ReprisError:
                raise
            except Exception as error:
                if not (left and _is_busy(error)):
                    raise self.latch.trip(doing, error) from error
        raise AssertionError("unreachable")


def _is_busy(error: Exception) -> bool:
    """Whether somebody else has the database locked; tells nothing about the disk."""
    raised = getattr(error, "orig", None) or error
    return (getattr(raised, "sqlite_errorcode", 0) & 0xFF) in _BUSY_CODES
