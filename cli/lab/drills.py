"""Drills: a disaster on a local swarm of real processes, recovered as an operator would.

Each scenario is a function of a `Drill` in a file of its own. Its steps use the same code as the
commands of the command line.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cli.lab import swarm as lab
from cli.lab.bad_member import bad_member
from cli.lab.catch_up import node_catch_up
from cli.lab.divergence import subnet_divergence
from cli.lab.drill import Drill, Outcome, Say, node_rows
from cli.lab.ground import Ground
from cli.lab.killer import Killer
from cli.lab.loss import subnet_loss
from cli.lab.membership import membership_change
from cli.lab.nns_loss import nns_loss
from cli.lab.nns_stall import nns_stall
from cli.lab.old_snapshot import REST_HEIGHTS, old_snapshot
from cli.lab.repair import canister_failure, governance_failure, root_failure
from cli.lab.upgrade import upgrade
from replica.protocol.errors import ReprisError


@dataclass(frozen=True)
class Scenario:
    run: Callable[[Drill], Outcome]
    what: str
    budget_s: float = 90.0
    nns_nodes: int = 1
    trace: bool = False
    spare_nodes: int = 0
    interval_blocks: int = 100
    """Heights from one CUP to the next; fewer where several CUPs have to pass."""
    is_real_only: bool = False
    """Whether it is about processes or copies of folders, of which simulations have none."""


SCENARIOS: dict[str, Scenario] = {
    "subnet-divergence": Scenario(
        subnet_divergence,
        "half of a subnet computes another state; governance recovers it",
        60.0,
    ),
    "node-catch-up": Scenario(
        node_catch_up,
        "one node restarts, falls two CUPs behind, loses its disk; it heals by itself",
        60.0,
    ),
    "upgrade": Scenario(
        upgrade,
        "an elected release takes over at a CUP height on four nodes under load",
        trace=True,
    ),
    "membership-change": Scenario(
        membership_change,
        "nodes join, leave and are replaced, once with f members down; the subnet's key stays",
        spare_nodes=3,
        interval_blocks=30,
    ),
    "subnet-loss": Scenario(
        subnet_loss,
        "half of a subnet burns down; spare nodes and keys dealt by the NNS replace it",
        120.0,
        nns_nodes=4,
        spare_nodes=2,
    ),
    "canister-failure": Scenario(
        canister_failure,
        "a ledger release traps on every call; governance adopts the repair, root installs it",
    ),
    "root-failure": Scenario(
        root_failure, "a root release traps on every call; lifeline replaces it"
    ),
    "governance-failure": Scenario(
        governance_failure,
        "a governance release traps on every vote; node operators vote through root",
        nns_nodes=4,
    ),
    "nns-stall": Scenario(
        nns_stall,
        "half of the NNS computes another state; its node operators recover it offline",
        nns_nodes=4,
    ),
    "nns-loss": Scenario(
        nns_loss,
        "half of the NNS burns down; who is left and spare nodes make a new root key",
        120.0,
        nns_nodes=4,
        spare_nodes=2,
    ),
    "bad-member": Scenario(
        bad_member,
        "one node of four attacks with its real keys, in every way; the others go on",
        10.0,
        is_real_only=True,
    ),
    "old-snapshot": Scenario(
        old_snapshot,
        "a node's folder goes back to an old copy, three times; nobody contradicts himself",
        30.0,
        interval_blocks=lab.Options.heights_back + REST_HEIGHTS,
        is_real_only=True,
    ),
}
SIMULATED = {name: scenario for name, scenario in SCENARIOS.items() if not scenario.is_real_only}


def run(
    name: str,
    options: lab.Options,
    say: Say,
    keep: Path | None = None,
    kill_offset: int | None = None,
    ground: Ground | None = None,
) -> Outcome:
    """Run a scenario on a fresh swarm in a folder of its own; always takes the swarm down."""
    scenario = SCENARIOS[name]
    options = replace(options, trace=scenario.trace, spare_nodes=scenario.spare_nodes)
    interval = options.interval_blocks or scenario.interval_blocks
    options = replace(options, interval_blocks=interval)
    folder = keep if keep is not None else Path(tempfile.mkdtemp(prefix="reprise-drill-"))
    killer = Killer(kill_offset) if kill_offset is not None else None
    drill = Drill(folder, options, say, killer, ground)
    try:
        return scenario.run(drill)
    except (ReprisError, OSError) as error:
        return Outcome(
            name,
            "failed",
            0.0,
            drill.phases.to_plain(),
            False,
            0,
            0,
            node_rows(drill),
            drill.proposals,
            error=f"{type(error).__name__}: {error}",
        )
    finally:
        if killer is not None:
            for kill in killer.kills:
                say(f"  kill -9  {kill}")
        drill.writer.request_stop()
        drill.close()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
