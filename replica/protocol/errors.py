"""What can go wrong, by whose fault it is.

    ReprisError
    ├── Rejected      a caller or a peer broke a rule; nothing changed; trying again won't help
    │   ├── Malformed     bytes that are not what they claim to be
    │   ├── NotVerified   a signature, hash or witness that does not hold
    │   ├── NotAuthorized, NotFound, Conflict, LimitExceeded
    └── Unavailable   the environment; the same request may succeed later
    MachineFault      the node's own disk, database or memory: the process ends

An assertion is our own bug: it stops the process and is never caught. Every class has a stable
`code`, from which the exit code of a command and the HTTP status of a reply follow.
"""

from __future__ import annotations

from typing import ClassVar


class ReprisError(Exception):
    """Root of the errors that a caller is meant to handle; never raised itself."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class Rejected(ReprisError):
    """A rule was broken by the caller or peer; the state is unchanged."""

    code = "rejected"
    exit_code = 9
    http_status = 400


class Malformed(Rejected):
    """Bytes or text that don't follow their format."""

    code = "malformed"
    exit_code = 2


class NotVerified(Rejected):
    """A signature, a hash or a witness that doesn't hold: never retry."""

    code = "not-verified"
    exit_code = 7


class NotAuthorized(Rejected):
    """The caller has no right to this."""

    code = "not-authorized"
    exit_code = 4
    http_status = 403


class NotFound(Rejected):
    """The thing asked for does not exist."""

    code = "not-found"
    exit_code = 5
    http_status = 404


class Conflict(Rejected):
    """What the caller assumed is no longer so (a stale version, a vote already cast)."""

    code = "conflict"
    exit_code = 6
    http_status = 409


class LimitExceeded(Rejected):
    """Larger, longer or deeper than a documented bound."""

    code = "limit-exceeded"
    http_status = 413


class Unavailable(ReprisError):
    """The environment did not let us; the same request may succeed later."""

    code = "unavailable"
    exit_code = 10
    http_status = 503


class MachineFault(BaseException):
    """This node's disk, database or memory failed, and no other node's did.

    Nothing that follows from it may become a result: the replica ends unsigned, and a restart makes
    its database anew. No Exception, so that canisters' code can't catch it.
    """
