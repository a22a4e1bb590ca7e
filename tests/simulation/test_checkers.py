"""The checkers of whole swarms notice what they are there for: each is shown a broken history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from replica.consensus import driver as consensus
from replica.consensus.delivery import Batch, Randomness
from replica.protocol.artifacts import Certification, CertificationShare, Run
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    Epoch,
    Height,
    NodeId,
    Principal,
    RegistryVersion,
    SubnetId,
    TimeNs,
)
from replica.protocol.messages import ic_pb2 as pb
from simulation.checker import Violation
from simulation.system import nns_checker
from simulation.system.checker import SystemChecker
from simulation.system.nns_checker import NnsChecker

SUBNET, NNS = SubnetId(Principal(b"\x01\x02")), SubnetId(Principal(b"\x02\x02"))
NODES = [NodeId(Principal(bytes([i, 2]))) for i in range(1, 8)]
EPOCH = Epoch(1)


class Section:
    def __init__(self, *held: Any) -> None:
        self.held = held

    def at(self, kind: type, height: int) -> list[Any]:
        return [a for a in self.held if isinstance(a, kind) and a.height == height]


class Process:
    """A replica as the checker sees it."""

    def __init__(self, index: int = 0, *, version: str = "v1", wanted: str = "v1") -> None:
        self.machine, self.number, self.version = index, index, version
        self.it = SimpleNamespace(name=f"app-{index}", node=NODES[index])
        self.view = SimpleNamespace(
            members=NODES[:4], replica_version=wanted, halt_at_cup_height=False, is_halted=False
        )
        records = SimpleNamespace(version=5, view=lambda *_: self.view, nns=lambda: NNS)
        entry = SimpleNamespace(hash=b"block")
        chain = SimpleNamespace(
            cup=SimpleNamespace(epoch=EPOCH),
            finalized_block=lambda _: entry,
            summary_of=lambda _: SimpleNamespace(registry_version=5),
        )
        self.certifications = Section()
        self.roots: dict[int, bytes] = {}
        self.real: Any = SimpleNamespace(
            subnet=SUBNET,
            records=records,
            driver=SimpleNamespace(chain=chain, certifications=self, run=Run(version, Height(0))),
            state=SimpleNamespace(fault=None, certified_root_at=self._root_at, certified=self),
        )
        self.validated = self.certifications
        self.snapshot = SimpleNamespace(system=self)
        self.delivered = 0

    @property
    def time_ns(self) -> int:
        """Certified time: that of the height delivered last."""
        return self.delivered

    def _root_at(self, height: int) -> tuple[bytes, bytes] | None:
        return (self.roots[height], b"") if height in self.roots else None


def checker(*processes: Process) -> Any:
    system = SimpleNamespace(
        counts=Counter(),
        script_of=lambda _: None,
        machines=[SimpleNamespace(replica=p) for p in processes],
    )
    return SystemChecker(system)  # type: ignore[arg-type]


RANDOM = Randomness(Height(1), bytes(32))


def batch(height: int, *ingress: bytes) -> consensus.Execute:
    return consensus.Execute(
        Batch(Height(height), EPOCH, TimeNs(1), RegistryVersion(5), RANDOM, ingress, False)
    )


def certification(height: int, root: bytes) -> Certification:
    return Certification(EPOCH, Height(height), root, b"", b"")


def deliver(check: Any, process: Process, height: int, root: bytes, time_ns: int = 0) -> None:
    process.delivered = time_ns or height
    check.seen(process, consensus.DeliverCertification(certification(height, root)))


def share(height: int, root: bytes, node: NodeId) -> CertificationShare:
    return CertificationShare(EPOCH, Height(height), root, b"", node, b"")


def test_s5_certified_time_grows_also_over_a_recovery() -> None:
    one, two = Process(0), Process(1)
    check = checker(one, two)
    deliver(check, one, 5, b"a", 50)
    deliver(check, two, 4, b"b", 40)
    one.real.driver.chain.cup.epoch = Epoch(2)
    with pytest.raises(Violation, match="certified time does not grow from height 5 to 100"):
        deliver(check, one, 100, b"c", 50)
    with pytest.raises(Violation, match="certified time does not grow from height 5 to 3"):
        deliver(check, two, 3, b"d", 51)


def test_s5_what_a_node_answers_with_never_gets_older() -> None:
    one, again, upgraded = Process(0), Process(0), Process(0, version="v2")
    check = checker(one)
    for process, height in ((one, 8), (one, 8), (upgraded, 7)):
        process.real.state.certified_height = height
        check.answered(process)
    again.real.state.certified_height = 7
    with pytest.raises(Violation, match="answers with the state of height 7 after 8"):
        check.answered(again)


def test_s6_and_s7_states_are_equal_and_what_is_certified_is_what_was_computed() -> None:
    one, two = Process(0), Process(1)
    check = checker(one, two)
    one.roots[5], two.roots[5] = b"a", b"b"
    check.seen(one, batch(5))
    with pytest.raises(Violation, match="two different states at height 5"):
        check.seen(two, batch(5))
    with pytest.raises(Violation, match="two different states at height 5"):
        deliver(check, two, 5, b"b")
    two.real.state.fault = "told to diverge"
    check.seen(two, batch(5))


def test_s10_no_data_above_the_height_that_ends_a_release() -> None:
    late = Process(version="v1", wanted="v2")
    check = checker(late)
    check.seen(late, batch(7))
    with pytest.raises(Violation, match=r"executes data at 8.*S10"):
        check.seen(late, batch(8, b"a request"))
    halting = Process()
    halting.view.halt_at_cup_height = True
    with pytest.raises(Violation, match="S10"):
        checker(halting).seen(halting, batch(8, b"a request"))


def test_s11_the_key_stays_unless_too_few_holders_are_left() -> None:
    process = Process()

    def package(key: bytes, epoch: int, members: list[NodeId], height: int) -> Any:
        high = SimpleNamespace(public_key=key, committee=members)
        summary = SimpleNamespace(high=high)
        return SimpleNamespace(subnet=SUBNET, epoch=epoch, height=height, summary=summary)

    check = checker(process)
    check._check_key(process, package(b"k", 1, NODES[:4], 10))
    check._check_key(process, package(b"k", 1, NODES[1:5], 20))
    with pytest.raises(Violation, match="S11"):
        check._check_key(process, package(b"l", 1, NODES[3:7], 30))
    with pytest.raises(Violation, match="S11"):
        checker_with = checker(process)
        checker_with._check_key(process, package(b"k", 1, NODES[:4], 10))
        checker_with._check_key(process, package(b"l", 2, NODES[1:5], 30))
    fresh = checker(process)
    fresh._check_key(process, package(b"k", 1, NODES[:4], 10))
    fresh._check_key(process, package(b"l", 2, NODES[2:6], 30))
    fresh._check_key(process, package(b"k", 1, NODES[:4], 20))


def test_s12_a_request_is_in_one_block() -> None:
    one, two = Process(0), Process(1)
    check = checker(one, two)
    check.seen(one, batch(5, b"request"))
    check.seen(two, batch(5, b"request"))
    with pytest.raises(Violation, match=r"height 6 again \(S12\)"):
        check.seen(two, batch(6, b"request"))


def test_s15_who_knows_what_was_certified_signs_no_other_state() -> None:
    process = Process()
    check = checker(process)
    process.validated = Section(certification(5, b"a"))
    check.seen(process, consensus.Send(share(5, b"b", NODES[0])))  # it came in this very step
    check._certified_heights[0] = 5
    check.seen(process, consensus.Send(share(5, b"a", NODES[0])))
    with pytest.raises(Violation, match="S15"):
        check.seen(process, consensus.Send(share(5, b"b", NODES[0])))


def test_s16_a_recovery_keeps_what_a_quorum_had_certified() -> None:
    processes = [Process(i) for i in range(4)]
    check = checker(*processes)
    for height, count in ((40, 4), (41, 3), (42, 2)):
        for process in processes[:count]:
            deliver(check, process, height, bytes([height]))

    def word(height: int) -> Any:
        return SimpleNamespace(
            subnet=SUBNET,
            epoch=EPOCH,
            registry_version=5,
            height=height,
            state_hash=bytes([height]) * 32,
        )

    check.attested(0, word(40))
    check.attested(1, word(41))

    def package(height: int) -> Any:
        return SimpleNamespace(
            subnet=SUBNET, epoch=2, height=100, is_signed=False, state_hash=bytes([height]) * 32
        )

    machine: Any = SimpleNamespace(name="app-0")
    check.opens(machine, package(41), False)
    with pytest.raises(Violation, match=r"drops what was certified up to 41 \(S16\)"):
        check.opens(machine, package(40), False)
    with pytest.raises(Violation, match=r"nobody attested \(S16\)"):
        check.opens(machine, package(99), False)
    check.opens(machine, package(99), True)
    check.chains[SUBNET, EPOCH, "v1"].finalized[99] = b"below"
    check.opens(machine, package(41), False)
    check.chains[SUBNET, EPOCH, "v1"].finalized[100] = b"beside"
    with pytest.raises(Violation, match="not above the finalized 100"):
        check.opens(machine, package(41), False)


# --- S18 -------------------------------------------------------------------------------------


class Rows:
    """The NNS' rows, as the checker reads them."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {"blocks": [], "accounts": []}
        mint = pb.LedgerTransaction(mint=pb.Mint(amount=pb.Tokens(e8s=1000)))
        send = pb.LedgerTransaction(
            send=pb.Transfer(amount=pb.Tokens(e8s=300), max_fee=pb.Tokens(e8s=10))
        )
        for number, transaction in enumerate((mint, send)):
            encoded = pb.LedgerBlock(transaction=transaction).SerializeToString()
            self.tables["blocks"].append(
                {"number": number, "encoded": encoded, "hash": sha256(encoded)}
            )
        self.tables["accounts"] = [{"e8s": 690}, {"e8s": 300}]
        powers = b"".join(n.to_bytes(8, "big") for n in (5, 7, 11))
        self.tables["snapshots"] = [{"id": 1, "powers": powers}]
        self.proposal = {
            "id": 1,
            "snapshot": 1,
            "votes": bytes([0b001001]),  # yes, no, none
            "yes": 5,
            "no": 7,
            "decided": 0,
            "executed": 0,
            "failed": 0,
        }
        self.tables["proposals"] = [self.proposal]

    def __call__(self, _real: Any, _canister: Any, table: str) -> Iterator[dict[str, Any]]:
        return iter(self.tables[table])


@pytest.fixture
def nns_rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    found = Rows()
    monkeypatch.setattr(nns_checker, "rows", found)
    return found


def real(height: int) -> Any:
    """A replica that has certified up to a height."""
    return SimpleNamespace(state=SimpleNamespace(certified=object(), certified_height=height))


REAL = real(1)


def test_s18_the_ledger_conserves(nns_rows: Rows) -> None:
    NnsChecker().look(REAL)
    nns_rows.tables["accounts"][0]["e8s"] += 1
    with pytest.raises(Violation, match="accounts hold 991 e8s, blocks leave 990"):
        NnsChecker().look(REAL)


def test_s18_blocks_of_the_ledger_stay(nns_rows: Rows) -> None:
    check = NnsChecker()
    check.look(REAL)
    nns_rows.tables["blocks"][1]["hash"] = bytes(32)
    with pytest.raises(Violation, match="block 1 of the ledger was replaced"):
        check.look(real(2))


def test_s18_votes_count_once(nns_rows: Rows) -> None:
    NnsChecker().look(REAL)
    nns_rows.proposal["yes"] += 5
    with pytest.raises(Violation, match="counts other votes than were cast"):
        NnsChecker().look(REAL)


def test_s18_a_proposal_is_executed_once(nns_rows: Rows) -> None:
    check = NnsChecker()
    nns_rows.proposal.update(decided=50, executed=51)
    check.look(REAL)
    nns_rows.proposal["executed"] = 60
    with pytest.raises(Violation, match="decided or executed again"):
        check.look(real(2))


def test_s18_who_is_behind_has_not_executed_it_yet(nns_rows: Rows) -> None:
    check = NnsChecker()
    nns_rows.proposal.update(decided=50, executed=51)
    assert check.look(real(2))
    nns_rows.proposal["executed"] = 0
    assert not check.look(real(1))
