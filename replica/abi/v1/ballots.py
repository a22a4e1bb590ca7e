"""Portable ballots, for canisters that count them."""

from replica.protocol.ballot import GOVERNANCE_UPGRADE, NO, YES, Ballot, decode, subject_of

__all__ = ["GOVERNANCE_UPGRADE", "NO", "YES", "Ballot", "decode", "subject_of"]
