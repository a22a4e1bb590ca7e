"""An orchestrator's routes: what a stranger may ask, how wrong it can be asked, what comes back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from orchestrator.__main__ import build
from orchestrator.agent import Orchestrator
from orchestrator.interface import DEALINGS_BYTES_MAX, Interface
from orchestrator.key_maker import KeyMaker
from orchestrator.trust import Trust
from replica.client import new_committee, succession
from replica.client.agent import Agent
from replica.protocol import canonical, nns_recovery
from replica.protocol.ballot import BALLOT_BYTES_MAX
from replica.protocol.errors import NotFound
from replica.protocol.hashing import sha256
from replica.protocol.nns_recovery import Dealt, NewKeys
from replica.runtime import settings as node_settings
from replica.runtime.settings import NodeSettings
from tests.orchestrator.test_new_root_key import Lost
from tests.orchestrator.test_new_root_key import lost as lost  # a fixture
from tests.orchestrator.test_new_root_key import new as new  # a fixture
from tests.orchestrator.test_nns_recovery import Node
from tests.orchestrator.test_nns_recovery import nns as nns  # a fixture


@pytest.fixture
def orchestrator(lost: Lost, tmp_path: Path) -> Any:
    node = Node(tmp_path / "node", lost.nns)
    me = lost.members[0]
    secrets = lost.secrets_of(me)
    settings = SimpleNamespace(node=me, secrets=lambda: secrets)
    maker = KeyMaker(cast(NodeSettings, settings), node.records)
    agent = Agent([], lost.nns.made.root_key)
    changes: list[str] = []
    trust = Trust(node.settings, agent, changes.append, lambda: changes.append("changed"))
    return SimpleNamespace(
        status=lambda: {"fine": True},
        attest=lambda height: b"%d" % height,
        replicator=SimpleNamespace(certified_since=lambda since: b"%d" % since),
        halt=lambda body: {"bytes": len(body)},
        recovery=node.recovery,
        trust=trust,
        key_maker=maker,
        changes=changes,
        folder=node.folder,
    )


def client(orchestrator: Any) -> TestClient:
    return TestClient(build(cast(Orchestrator, orchestrator)), raise_server_exceptions=False)


@pytest.mark.parametrize(
    "path, status",
    [
        ("/status", 200),
        ("/attestation?height=7", 200),
        ("/attestation", 400),
        ("/attestation?height=-1", 400),
        ("/attestation?height=" + "9" * 30, 400),
        ("/registry_deltas?since=x", 400),
        ("/root_key_successor?of=zz", 400),
        ("/root_key_successor?of=" + "00" * 32, 404),
        ("/root_key_successor?of=" + "../" * 20, 400),
        ("/nns_recovery", 404),
        ("/nothing", 404),
        ("/docs", 404),
    ],
)
def test_what_is_asked(orchestrator: Any, path: str, status: int) -> None:
    assert client(orchestrator).get(path).status_code == status


def test_bodies_are_bounded_before_anybody_looks_at_them(orchestrator: Any) -> None:
    asked = client(orchestrator)
    assert asked.post("/halt", content=b"x" * BALLOT_BYTES_MAX).json() == {
        "bytes": BALLOT_BYTES_MAX
    }
    assert asked.post("/halt", content=b"x" * (BALLOT_BYTES_MAX + 1)).status_code == 413
    assert asked.post("/nothing", content=b"x").status_code == 413
    assert asked.post("/status").status_code == 404
    for path in ("/new_keys/deal", "/new_keys/look", "/nns_recovery"):
        assert asked.post(path, content=b"noise").status_code == 400
    assert Interface(orchestrator).body_bytes_max("/new_keys/look") == DEALINGS_BYTES_MAX


def test_a_node_deals_the_same_each_time_and_looks_at_its_shares(
    orchestrator: Any, lost: Lost, new: NewKeys
) -> None:
    asked = client(orchestrator)
    raw = canonical.encode(lost.plan)
    first = asked.post("/new_keys/deal", content=raw).content
    assert first == asked.post("/new_keys/deal", content=raw).content
    dealt = canonical.decode(Dealt, first)
    assert dealt.dealings == tuple(d for d in new.dealings if d.dealer == lost.members[0])
    new_committee.check_dealings(lost.nns.records, lost.plan, dealt.dealings)
    everything = canonical.encode(Dealt(lost.plan, new.dealings))
    assert asked.post("/new_keys/look", content=everything).json() == []


def test_no_dealing_for_another_subnet_or_for_others_only(orchestrator: Any, lost: Lost) -> None:
    asked, plan = client(orchestrator), lost.plan
    app = lost.nns.made.subnets[1].id
    others = plan.members[1:]
    for change, text in (
        ({"subnet": app}, "for the NNS subnet only"),
        ({"members": others}, "not to be a member"),
        ({"members": plan.members[::-1]}, "in order"),
    ):
        wrong = canonical.encode(type(plan)(**{**_plain(plan), **change}))
        answer = asked.post("/new_keys/deal", content=wrong)
        assert answer.status_code in (409, 413) and text in answer.text


def _plain(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__slots__}


def test_who_follows_a_new_root_key_can_tell_others_why(
    orchestrator: Any, lost: Lost, new: NewKeys
) -> None:
    bundle, old = lost.bundle(new, 0, 1, 2), lost.nns.made.root_key
    orchestrator.trust.follow(bundle)
    assert orchestrator.changes[-1] == "changed"
    shown = client(orchestrator).get(f"/root_key_successor?of={sha256(old).hex()}")
    told = nns_recovery.decode(shown.content)
    key = succession.successor(told, old)
    assert (orchestrator.folder / "root_key.der").read_bytes() == key
    assert node_settings.trusted_root_key(orchestrator.folder, old) == key


def test_a_root_key_that_the_nns_does_not_go_on_with_is_not_followed(
    orchestrator: Any, lost: Lost, new: NewKeys
) -> None:
    """The operators have signed it, but then the old members came back."""
    bundle, old = lost.bundle(new, 0, 1, 2), lost.nns.made.root_key
    orchestrator.trust.follow(bundle)
    asked = client(orchestrator)

    class Nns(Agent):
        answer = b""

        def get_bytes(self, url: str, path: str) -> bytes:
            return bytes(asked.get(path).content)

        def query(self, canister: Any, method: str, arg: bytes) -> bytes:
            return self.answer

    agent = Nns(["http://nns"], old)
    agent.answer = lost.nns.raw
    with pytest.raises(NotFound, match="does not verify"):
        succession.find(agent, ["http://nns-0"], old)
    agent.answer = lost.certified_anew(bundle)
    found, key = succession.find(agent, ["http://nns-0"], old)
    assert found.recovery == bundle.recovery and key == succession.successor(bundle, old)


def test_nothing_is_followed_without_the_operators(
    orchestrator: Any, lost: Lost, new: NewKeys
) -> None:
    with pytest.raises(Exception, match="3 are needed"):
        orchestrator.trust.follow(lost.bundle(new, 0, 1))
    assert not orchestrator.changes
    assert not (orchestrator.folder / "root_key.der").exists()
