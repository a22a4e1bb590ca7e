"""This node's part in making a new root key: it deals, and looks at what others dealt to it.

Whoever builds a recovery of the NNS asks for both. A dealing is a function of the node's secret and
of the plan, and gives nothing away; which dealings count is what operators sign.
"""

from __future__ import annotations

from replica.client import new_committee
from replica.client.local_registry import LocalRegistry
from replica.protocol import canonical
from replica.protocol.errors import Conflict, LimitExceeded
from replica.protocol.nns_recovery import Dealt, KeyPlan
from replica.runtime.settings import NodeSettings

MEMBERS_MAX = 100


class KeyMaker:
    def __init__(self, settings: NodeSettings, records: LocalRegistry) -> None:
        self.settings, self.records = settings, records

    def deal(self, raw: bytes) -> bytes:
        """Return canonical `Dealt` for a canonical `KeyPlan`. Raises: Conflict, Malformed."""
        plan = canonical.decode(KeyPlan, raw)
        self._check(plan)
        secrets = self.settings.secrets()
        made = new_committee.deal(self.records, plan, self.settings.node, secrets)
        return canonical.encode(Dealt(plan, made))

    def look(self, raw: bytes) -> list[str]:
        """Return whose dealings this node can't use. Raises: Conflict, NotVerified, Malformed."""
        dealt = canonical.decode(Dealt, raw)
        self._check(dealt.plan)
        new_committee.check_dealings(self.records, dealt.plan, dealt.dealings)
        secret = self.settings.secrets().dealing
        return [
            str(n)
            for n in new_committee.bad_dealers(
                dealt.plan, dealt.dealings, self.settings.node, secret
            )
        ]

    def _check(self, plan: KeyPlan) -> None:
        if len(plan.members) > MEMBERS_MAX or list(plan.members) != sorted(set(plan.members)):
            raise LimitExceeded(f"at most {MEMBERS_MAX} members, in order, each once")
        if plan.subnet != self.records.nns():
            raise Conflict("keys are made this way for the NNS subnet only")
        if self.settings.node not in plan.members:
            raise Conflict("this node is not to be a member")
