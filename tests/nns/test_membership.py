"""The registry's rules for who may join and leave a subnet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cli import nns_client
from nns import genesis
from replica.client import local_registry as keys
from replica.protocol.ids import REGISTRY, ROOT, Principal
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from tests.nns.harness import ADMIN, START_NS, Machine, Refused, nns_bundle
from tests.nns.test_nns_canisters import machine as nns_machine  # noqa: F401 - a fixture

DID = nns_client.interface("registry")
STRANGER = Principal(b"nobody knows this node")


@dataclass
class Network:
    machine: Machine
    made: genesis.Genesis

    def change(
        self, add: list[Principal], remove: list[Principal], subnet: Principal | None = None
    ) -> Any:
        payload = {
            "subnet_id": subnet or self.made.subnets[1].id,
            "node_ids_add": add,
            "node_ids_remove": remove,
        }
        return self.machine.query(REGISTRY, DID, "simulate_change_subnet_membership", payload)

    def app(self, index: int) -> Principal:
        return self.made.subnets[1].nodes[index].node

    def spare(self, index: int) -> Principal:
        return self.made.spares[index].node


@pytest.fixture
def network(nns_machine: Machine) -> Iterator[Network]:  # noqa: F811
    plans = [
        genesis.SubnetPlan(name, nodes, name == "nns", 99, 400, 40, 10, 5000)
        for name, nodes in (("nns", 1), ("app", 4))
    ]
    ports = list(range(20_000, 20_024))
    made = genesis.make(plans, "v1", "00" * 32, ADMIN.principal, ports, START_NS, spare_nodes=3)
    nns_machine.create(REGISTRY, [ADMIN.principal, ROOT])
    nns_machine.install(REGISTRY, nns_bundle("registry"), {"mutations": [made.batch()]})
    yield Network(nns_machine, made)


@pytest.mark.parametrize(
    ("add", "remove"), [([0], []), ([], [0]), ([0], [1])], ids=["add", "remove", "replace"]
)
def test_members_that_the_registry_then_holds(
    network: Network, add: list[int], remove: list[int]
) -> None:
    coming = [network.spare(i) for i in add]
    going = [network.app(i) for i in remove]
    (change,) = network.change(coming, going)["changes"]
    assert change["key"] == keys.subnet_record(network.made.subnets[1].id)
    members = [Principal(m) for m in parse(pb.SubnetRecord, change["after"]).membership]
    staying = [n.node for n in network.made.subnets[1].nodes if n.node not in going]
    assert members == sorted([*staying, *coming])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda n: ([], []), "name nodes"),
        (lambda n: ([], [n.spare(0)]), "not a member"),
        (lambda n: ([n.app(0)], []), "member of subnet"),
        (lambda n: ([n.made.nns.nodes[0].node], []), "member of subnet"),
        (lambda n: ([STRANGER], []), "not registered"),
        (lambda n: ([n.spare(0), n.spare(0)], []), "named twice"),
        (lambda n: ([n.spare(0), n.spare(1), n.spare(2)], []), "change fewer at once"),
        (lambda n: ([n.spare(0), n.spare(1)], [n.app(0), n.app(1)]), "change fewer at once"),
        (lambda n: ([], [n.app(0), n.app(1), n.app(2), n.app(3)]), "at least one node"),
    ],
)
def test_changes_that_are_refused(
    network: Network, make: Callable[[Network], tuple[list[Principal], list[Principal]]], text: str
) -> None:
    add, remove = make(network)
    with pytest.raises(Refused, match=text):
        network.change(add, remove)


def test_only_governance_changes_members(network: Network) -> None:
    payload = {
        "subnet_id": network.made.subnets[1].id,
        "node_ids_add": [network.spare(0)],
        "node_ids_remove": [],
    }
    with pytest.raises(Refused, match="only governance"):
        network.machine.call(REGISTRY, DID, "change_subnet_membership", payload, key=ADMIN)
