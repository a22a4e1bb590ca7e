"""Errors of management calls."""

from __future__ import annotations

from replica.protocol.errors import Rejected


class Refused(Rejected):
    """A management call failed; carries the IC's reject and error codes."""

    def __init__(self, error_code: str, message: str) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.reject_code = int(error_code[3])
