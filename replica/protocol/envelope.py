"""Requests of users: envelope, request id, signature and delegation checks.

Source: interface specification "HTTPS interface", "Authentication"; reference/interface.md §A2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from replica.protocol import cbor
from replica.protocol.crypto.keys import Ed25519Key, verify_der
from replica.protocol.errors import Malformed, NotAuthorized, NotVerified
from replica.protocol.hashing import domain, leb128, sha256
from replica.protocol.ids import (
    ANONYMOUS,
    MANAGEMENT_CANISTER,
    CanisterId,
    Principal,
    TimeNs,
)

INGRESS_BYTES_MAX = 2 << 20
EXPIRY_NS_MAX = 6 * 60 * 1_000_000_000
"""How far ahead an expiry may lie: 5 minutes and one of slack for clocks."""
PATHS_MAX = 1000
LABELS_MAX = 127
DELEGATIONS_MAX = 20
TARGETS_MAX = 1000
NONCE_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request. `paths` is for read_state, the other three for calls and queries."""

    kind: str
    """call, query or read_state"""
    sender: Principal
    ingress_expiry_ns: TimeNs
    request_id: bytes
    raw: bytes
    """The whole envelope as it came: what goes into a block and is checked again there."""
    canister_id: CanisterId = MANAGEMENT_CANISTER
    method: str = ""
    arg: bytes = b""
    paths: tuple[tuple[bytes, ...], ...] = field(default=())


def hash_of_map(content: dict[str, Any]) -> bytes:
    """Return the representation-independent hash of a map; absent fields are left out."""
    pairs = []
    for name, value in content.items():
        if value is None:
            continue
        if name in _REPEATED and _is_short(value):
            pairs.append(_hash_pair(name, value))
        else:
            pairs.append(_hash_name(name) + _hash_value(value))
    return sha256(b"".join(sorted(pairs)))


_REPEATED = frozenset(("request_type", "sender", "canister_id", "method_name"))
"""Fields that many requests share."""
_REMEMBERED_BYTES_MAX = 64


def _is_short(value: Any) -> bool:
    return isinstance(value, bytes | str) and len(value) <= _REMEMBERED_BYTES_MAX


@lru_cache(maxsize=1024)
def _hash_pair(name: str, value: bytes | str) -> bytes:
    return _hash_name(name) + _hash_value(value)


@lru_cache(maxsize=256)
def _hash_name(name: str) -> bytes:
    return sha256(name.encode())


def _hash_value(value: Any) -> bytes:
    if isinstance(value, bytes):
        return sha256(value)
    if isinstance(value, str):
        return sha256(value.encode())
    if isinstance(value, int) and not isinstance(value, bool):
        return sha256(leb128(value))
    if isinstance(value, list | tuple):
        return sha256(b"".join([_hash_value(v) for v in value]))
    if isinstance(value, dict):
        return hash_of_map(value)
    raise Malformed(f"a request can't hold a {type(value).__name__}")


def sign_request(content: dict[str, Any], key: Ed25519Key | None) -> tuple[bytes, bytes]:
    """Return (request id, envelope bytes); without a key the sender must be anonymous."""
    request_id = hash_of_map(content)
    envelope: dict[str, Any] = {"content": content}
    if key is not None:
        envelope["sender_pubkey"] = key.public_key_der
        envelope["sender_sig"] = key.sign(domain("ic-request") + request_id)
    return request_id, cbor.dumps(envelope, tagged=True)


def decode(raw: bytes, now_ns: int) -> Request:
    """Decode an envelope and check all that can be checked without state.

    `now_ns`: the time against which expiry is judged: the clock at the HTTP edge, the block's time
    when a payload is validated.
    Raises: Malformed, NotVerified, NotAuthorized.
    """
    if len(raw) > INGRESS_BYTES_MAX:
        raise Malformed(f"a request has at most {INGRESS_BYTES_MAX} bytes, this one {len(raw)}")
    plain = cbor.loads(raw)
    if not isinstance(plain, dict) or not isinstance(plain.get("content"), dict):
        raise Malformed("not a request envelope: no content map")
    unknown = plain.keys() - _ENVELOPE
    if unknown:
        raise Malformed(f"not a request envelope: unknown field {sorted(map(str, unknown))[0]}")
    request = _parse_content(plain["content"], raw)
    _check_expiry(request, now_ns)
    _authenticate(request, plain, now_ns)
    return request


_ENVELOPE = frozenset(("content", "sender_pubkey", "sender_sig", "sender_delegation"))
_COMMON = ("request_type", "sender", "ingress_expiry", "nonce")
_CALL = ("arg", "canister_id", "ingress_expiry", "method_name", "sender")
_NEEDED = {"call": _CALL, "query": _CALL, "read_state": ("ingress_expiry", "paths", "sender")}
_KNOWN = {kind: frozenset((*needed, *_COMMON)) for kind, needed in _NEEDED.items()}


def _parse_content(content: dict[Any, Any], raw: bytes) -> Request:
    kind = content.get("request_type")
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise Malformed(f"request_type {str(kind)[:40]!r} is not call, query or read_state")
    for name in _NEEDED[kind]:
        if name not in content:
            raise Malformed(f"the request misses its field {name}")
    known = _KNOWN[kind]
    for name in content:
        if name not in known:
            raise Malformed(f"the request has an unknown field {str(name)[:40]!r}")
    expiry = content["ingress_expiry"]
    if type(expiry) is not int or not 0 <= expiry < 1 << 64:
        raise Malformed("ingress_expiry is not a natural number of nanoseconds")
    nonce = content.get("nonce")
    if nonce is not None and (type(nonce) is not bytes or len(nonce) > NONCE_BYTES_MAX):
        raise Malformed("nonce is not a blob of at most 32 bytes")
    common: dict[str, Any] = {
        "kind": kind,
        "sender": _principal(content, "sender"),
        "ingress_expiry_ns": TimeNs(expiry),
        "request_id": hash_of_map(content),
        "raw": raw,
    }
    if kind == "read_state":
        return Request(**common, paths=_parse_paths(content["paths"]))
    if type(content["method_name"]) is not str or type(content["arg"]) is not bytes:
        raise Malformed("method_name must be text and arg a blob")
    return Request(
        **common,
        canister_id=CanisterId(_principal(content, "canister_id")),
        method=content["method_name"],
        arg=content["arg"],
    )


def _principal(content: dict[Any, Any], name: str) -> Principal:
    if type(content[name]) is not bytes:
        raise Malformed(f"{name} is not a blob")
    return Principal(content[name])


def _parse_paths(plain: Any) -> tuple[tuple[bytes, ...], ...]:
    if not isinstance(plain, list) or len(plain) > PATHS_MAX:
        raise Malformed(f"paths is not a list of at most {PATHS_MAX}")
    for path in plain:
        if not isinstance(path, list) or len(path) > LABELS_MAX:
            raise Malformed(f"a path is not a list of at most {LABELS_MAX} labels")
        if any(type(label) is not bytes for label in path):
            raise Malformed("a path's label is not a blob")
    return tuple([tuple(p) for p in plain])


def _check_expiry(request: Request, now_ns: int) -> None:
    if request.sender == ANONYMOUS and request.kind != "call":
        return
    if request.ingress_expiry_ns < now_ns:
        raise Malformed(
            f"Invalid request expiry: {request.ingress_expiry_ns} lies "
            f"{(now_ns - request.ingress_expiry_ns) / 1e9:.1f} s in the past; "
            "sign the request anew, and check this machine's clock"
        )
    if request.ingress_expiry_ns > now_ns + EXPIRY_NS_MAX:
        raise Malformed(
            f"Invalid request expiry: {request.ingress_expiry_ns} lies more than "
            f"{EXPIRY_NS_MAX // 10**9} s ahead; check this machine's clock"
        )


def _authenticate(request: Request, envelope: dict[str, Any], now_ns: int) -> None:
    key, signature = envelope.get("sender_pubkey"), envelope.get("sender_sig")
    if request.sender == ANONYMOUS:
        if set(envelope) != {"content"}:
            raise Malformed("an anonymous request carries no key, signature or delegation")
        return
    if type(key) is not bytes or type(signature) is not bytes:
        raise NotVerified("a request of a named sender needs sender_pubkey and sender_sig")
    if Principal.self_authenticating(key) != request.sender:
        raise NotVerified("the sender is not the principal of sender_pubkey")
    chain = envelope.get("sender_delegation")
    if chain is not None:
        key = _walk_delegations(request, key, chain, now_ns)
    if not verify_der(key, domain("ic-request") + request.request_id, signature):
        raise NotVerified("the request's signature does not verify")


def _walk_delegations(request: Request, key: bytes, chain: Any, now_ns: int) -> bytes:
    """Return the key at the end of the delegation chain."""
    if not isinstance(chain, list) or len(chain) > DELEGATIONS_MAX:
        raise Malformed(f"sender_delegation is not a list of at most {DELEGATIONS_MAX}")
    seen = {key}
    for link in chain:
        match link:
            case {"delegation": dict(delegation), "signature": bytes(signature)}:
                pass
            case _:
                raise Malformed("not a signed delegation")
        next_key, expiration = delegation.get("pubkey"), delegation.get("expiration")
        if type(next_key) is not bytes or type(expiration) is not int:
            raise Malformed("a delegation needs pubkey and expiration")
        message = domain("ic-request-auth-delegation") + hash_of_map(delegation)
        if not verify_der(key, message, signature):
            raise NotVerified("a delegation's signature does not verify")
        if expiration < now_ns:
            raise NotAuthorized("a delegation has expired")
        if next_key in seen:
            raise NotVerified("the delegation chain repeats a key")
        targets = delegation.get("targets")
        if targets is not None:
            if not isinstance(targets, list) or len(targets) > TARGETS_MAX:
                raise Malformed(f"targets is not a list of at most {TARGETS_MAX}")
            if request.kind != "read_state" and bytes(request.canister_id) not in targets:
                raise NotAuthorized(f"the delegation does not cover {request.canister_id}")
        permissions = delegation.get("permissions", "all")
        if permissions not in ("all", "queries"):
            raise Malformed("permissions is neither 'all' nor 'queries'")
        if permissions == "queries" and request.kind == "call":
            raise NotAuthorized("the delegation is for queries only")
        seen.add(next_key)
        key = next_key
    return key
