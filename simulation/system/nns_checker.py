"""S18, on the rows that an NNS replica has certified: the ledger conserves, a vote counts once, and
a proposal is decided and executed once.

Everything is computed anew from what lies below it: balances from blocks, tallies from ballots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replica.abi.tables import decode_row
from replica.node import Replica
from replica.protocol.ids import GOVERNANCE, LEDGER, CanisterId
from replica.protocol.messages import ic_pb2 as pb
from replica.state.placement import tables_of
from simulation.checker import Violation

YES, NO = 1, 2


class NnsChecker:
    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        """Hashes of the ledger's blocks by number."""
        self.outcomes: dict[int, tuple[int, int, int]] = {}
        """When a proposal was decided, executed and found to fail, in seconds; 0: not yet."""
        self.height = -1
        """Of the newest rows that were looked at: replicas that are behind it have older ones."""

    def look(self, real: Replica) -> bool:
        """Return whether there was anything new to see. Raises: Violation."""
        if real.state.certified is None or real.state.certified_height <= self.height:
            return False
        self.height = real.state.certified_height
        self._check_ledger(real)
        self._check_governance(real)
        return True

    def _check_ledger(self, real: Replica) -> None:
        supply = 0
        for row in rows(real, LEDGER, "blocks"):
            if self.blocks.setdefault(row["number"], row["hash"]) != row["hash"]:
                raise Violation(f"block {row['number']} of the ledger was replaced (S18)")
            transaction = pb.LedgerBlock.FromString(row["encoded"]).transaction
            supply += transaction.mint.amount.e8s - transaction.burn.amount.e8s
            supply -= transaction.send.max_fee.e8s  # which this ledger burns
        held = sum(row["e8s"] for row in rows(real, LEDGER, "accounts"))
        if held != supply:
            raise Violation(f"accounts hold {held} e8s, blocks leave {supply} (S18)")

    def _check_governance(self, real: Replica) -> None:
        powers = {s["id"]: s["powers"] for s in rows(real, GOVERNANCE, "snapshots")}
        for proposal in rows(real, GOVERNANCE, "proposals"):
            number = proposal["id"]
            tally = _tally(proposal["votes"], powers[proposal["snapshot"]])
            if (proposal["yes"], proposal["no"]) != (tally[YES], tally[NO]):
                raise Violation(f"proposal {number} counts other votes than were cast (S18)")
            now = (proposal["decided"], proposal["executed"], proposal["failed"])
            before = self.outcomes.setdefault(number, now)
            if any(b and b != n for b, n in zip(before, now)):
                raise Violation(f"proposal {number} was decided or executed again (S18)")
            if proposal["executed"] and proposal["failed"]:
                raise Violation(f"proposal {number} was executed and failed (S18)")
            self.outcomes[number] = now


def _tally(votes: bytes, powers: bytes) -> dict[int, int]:
    """Sum up voting powers (8 bytes each) by vote (2 bits each, the lowest first)."""
    out = {0: 0, YES: 0, NO: 0, 3: 0}
    for i in range(len(powers) // 8):
        vote = (votes[i // 4] >> (2 * (i % 4))) & 3
        out[vote] += int.from_bytes(powers[8 * i : 8 * i + 8], "big")
    return out


def rows(real: Replica, canister: CanisterId, table: str) -> Iterator[dict[str, Any]]:
    """Yield a table's rows as of the certified height."""
    assert real.state.certified is not None
    found = real.state.certified.snapshot.canisters.get(canister)
    for placed in tables_of(found) if found is not None else ():
        if placed.table.name == table:
            for _, raw in real.state.store.scan(placed.name, b"", None):
                yield decode_row(placed.table, raw)
