"""From a root key that is trusted to the one in its place, for whoever was not there.

A root key is lost with more than f of the NNS's nodes. What hands the trust on is the recovery that
brought the new one: the old key certifies who the members and their operators were, and n - f of
these operators have signed it.
"""

from __future__ import annotations

from collections.abc import Iterable

from replica.client import certified_registry
from replica.client import nns_recovery as judging
from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.client.nns_recovery import Verdict
from replica.protocol import nns_recovery
from replica.protocol.crypto import bls
from replica.protocol.errors import NotFound, NotVerified, ReprisError
from replica.protocol.hashing import sha256
from replica.protocol.ids import RegistryVersion
from replica.protocol.nns_recovery import Bundle


def successor(bundle: Bundle, root_key: bytes) -> bytes:
    """Return the root key (DER) that a recovery put in the place of a trusted one.

    When the operators signed, and whether that was in time, is nothing that a reader can tell.
    Raises: NotVerified and what `judge` raises.
    """
    found = judging.new_root_key(bundle.recovery)
    if found is None:
        raise NotVerified("this recovery of the NNS keeps the root key")
    verdict = judged(bundle, root_key)
    if not verdict.has_quorum:
        raise NotVerified(
            f"the operators of {len(verdict.signed)} nodes have signed the new root key; "
            f"{verdict.needed} are needed"
        )
    return bls.public_key_to_der(found)


def judged(bundle: Bundle, root_key: bytes) -> Verdict:
    """Judge a recovery knowing nothing but a root key (DER), at any time after it."""
    return judging.judge(bundle, root_key, VersionedRecords(), None, None, 0)


def check_in_use(agent: Agent, bundle: Bundle, key: bytes) -> None:
    """Check that the NNS goes on under a new root key: a recovery may be signed and given up.

    `agent`: of the NNS. Raises: NotVerified, Unavailable.
    """
    recovery = bundle.recovery
    since = RegistryVersion(recovery.registry_version - 1)
    found, _ = certified_registry.ask(agent, since, key)
    if not found.deltas or found.deltas[0].batch != recovery.registry_batch:
        raise NotVerified("the NNS certifies another registry than this recovery wrote")


def find(agent: Agent, orchestrators: Iterable[str], root_key: bytes) -> tuple[Bundle, bytes]:
    """Ask orchestrators what followed a root key; return the proof and the key (DER).

    `agent`: of the NNS. Raises: NotFound when nobody shows a successor that its operators signed
    and that the NNS goes on with.
    """
    faults = []
    for url in orchestrators:
        try:
            raw = agent.get_bytes(url, f"/root_key_successor?of={sha256(root_key).hex()}")
            bundle = nns_recovery.decode(raw)
            key = successor(bundle, root_key)
            check_in_use(agent, bundle, key)
            return bundle, key
        except ReprisError as error:
            agent.next_node()
            faults.append(str(error))  # down, knows of none, or lies: the next one is asked
    raise NotFound("no node shows a root key that followed this one: " + "; ".join(faults[:3]))
