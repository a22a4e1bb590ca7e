"""Portable ballots: votes signed offline, carried by anyone, checked by anyone.

A ballot names what it is for and the hash of exactly what is decided, so it can't be used for
anything else; it counts until its deadline. Whether the voter has a say, and how much, is for
whoever counts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from replica.protocol import canonical, cbor
from replica.protocol.crypto.keys import Ed25519Key, verify_der
from replica.protocol.errors import Malformed, NotVerified
from replica.protocol.hashing import domain, domain_hash
from replica.protocol.ids import Principal

GOVERNANCE_UPGRADE = "upgrade of the governance canister"
NNS_RECOVERY = "recovery of the NNS subnet"
NODE_HALT = "halt of a node"
PURPOSES = (GOVERNANCE_UPGRADE, NNS_RECOVERY, NODE_HALT)
YES, NO = 1, 2
BALLOT_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Ballot:
    purpose: str
    """One of PURPOSES."""
    subject: bytes
    """Hash of what is decided, 32 bytes."""
    choice: int
    """1 yes, 2 no."""
    deadline_s: int
    """Seconds since 1970 after which the ballot counts for nothing."""
    voter_key: bytes
    """The voter's public key in DER: Ed25519, P-256 or secp256k1."""
    signature: bytes = b""

    @property
    def voter(self) -> Principal:
        return Principal.self_authenticating(self.voter_key)

    @property
    def message(self) -> bytes:
        return domain("reprise-ballot") + canonical.encode(replace(self, signature=b""))

    def encode(self) -> bytes:
        return canonical.encode(self)


def sign(purpose: str, subject: bytes, choice: int, deadline_s: int, key: Ed25519Key) -> Ballot:
    unsigned = Ballot(purpose, subject, choice, deadline_s, key.public_key_der)
    return replace(unsigned, signature=key.sign(unsigned.message))


def decode(data: bytes) -> Ballot:
    """Decode a ballot and check its signature. Raises: Malformed, NotVerified."""
    if len(data) > BALLOT_BYTES_MAX:
        raise Malformed(f"a ballot has at most {BALLOT_BYTES_MAX} bytes")
    ballot = canonical.decode(Ballot, data)
    if ballot.purpose not in PURPOSES or ballot.choice not in (YES, NO):
        raise Malformed("a ballot with an unknown purpose or choice")
    if len(ballot.subject) != 32:
        raise Malformed("a ballot's subject is a hash of 32 bytes")
    if not verify_der(ballot.voter_key, ballot.message, ballot.signature):
        raise NotVerified(f"the ballot of {ballot.voter} is not signed by it")
    return ballot


def subject_of(purpose: str, parts: list[object]) -> bytes:
    """Return the hash that a ballot on these parts (bytes, texts, integers) is bound to."""
    return domain_hash("reprise-ballot-subject", purpose.encode(), cbor.dumps(parts))


def to_plain(ballot: Ballot) -> dict[str, object]:
    """Return a ballot as JSON can hold it: a file to be carried by hand."""
    plain = {f.name: getattr(ballot, f.name) for f in fields(ballot)}
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in plain.items()}


def from_plain(plain: dict[str, object]) -> Ballot:
    """Undo `to_plain` and check the signature. Raises: Malformed, NotVerified."""
    try:
        ballot = Ballot(
            str(plain["purpose"]),
            bytes.fromhex(str(plain["subject"])),
            int(str(plain["choice"])),
            int(str(plain["deadline_s"])),
            bytes.fromhex(str(plain["voter_key"])),
            bytes.fromhex(str(plain["signature"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise Malformed(f"not a ballot: {error}") from error
    return decode(ballot.encode())
