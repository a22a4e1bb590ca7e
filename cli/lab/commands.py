"""`reprise swarm` and `reprise drill`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from cli import nns_client as nns
from cli.lab import attacks, drills
from cli.lab import swarm as lab
from cli.lab.drill import Outcome, patiently
from cli.lab.layout import Swarm
from cli.lab.old_snapshot import REST_HEIGHTS
from cli.output import say
from replica.protocol.crypto.keys import Ed25519Key
from replica.protocol.errors import Conflict, Malformed, NotFound, Unavailable


def _supervisor_pid(folder: Path) -> int | None:
    """Return the pid of a running supervisor of this very folder."""
    try:
        pid = int((folder / "supervisor.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return None
    return pid if "cli.lab.supervisor" in command else None


def swarm_up(
    folder: Path,
    nns_nodes: int,
    app_nodes: int,
    spare_nodes: int,
    step: Callable[[str], None],
) -> None:
    folder = folder.resolve()
    if _supervisor_pid(folder):
        raise Conflict(f"a swarm runs in {folder} already; `reprise swarm down` stops it")
    is_new = not (folder / "swarm.json").exists()
    if not is_new:
        Swarm.load(folder)
    else:
        if folder.exists() and any(folder.iterdir()):
            raise Conflict(
                f"{folder} is not empty and holds no swarm: if one was being made there when the "
                "machine went down, remove the folder"
            )
        step(f"creating {nns_nodes} + {app_nodes} nodes in {folder}")
        lab.create(
            folder,
            lab.Options(nns_nodes=nns_nodes, app_nodes=app_nodes, spare_nodes=spare_nodes),
        )
    with open(folder / "supervisor.log", "ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "cli.lab.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    lab.wait_for("the supervisor", lambda: _supervisor_pid(folder) is not None, 15)
    step("processes are started; waiting for certified states")
    swarm = Swarm.load(folder)
    if is_new:
        lab.initialize(swarm, step)
        _first_proposal(swarm)
    else:
        for subnet in swarm.subnets:
            agent = swarm.agent(subnet)
            for url in agent.urls:
                lab.wait_for(f"{url}", lambda u=url, a=agent: lab.is_up(a, u), 60)  # type: ignore[misc]
    step("healthy. Try: reprise node list · reprise proposal list · reprise drill list")


def _first_proposal(swarm: Swarm) -> None:
    """Leave something to vote on."""
    council = swarm.agent(swarm.nns, swarm.identity("council"))
    text = "This swarm is for learning. Vote on it: `reprise proposal vote 1 --yes`."
    patiently(
        lambda: nns.propose_motion(council, nns.default_neuron(council), "A first motion", text)
    )


def swarm_down(folder: Path, keep: bool, step: Callable[[str], None]) -> None:
    folder = folder.resolve()
    if not (folder / "swarm.json").exists():
        raise NotFound(f"no swarm in {folder}")
    pid = _supervisor_pid(folder)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 30
        while _supervisor_pid(folder) is not None:
            if time.monotonic() > end:
                raise Unavailable(f"the supervisor (pid {pid}) does not stop")
            time.sleep(0.1)
    if not keep:
        shutil.rmtree(folder)
    step("stopped" + ("" if keep else f"; {folder} removed"))


def identity_new(folder: Path, name: str) -> None:
    Swarm.load(folder)
    path = folder / "identities" / f"{name}.pem"
    if path.exists():
        raise Conflict(f"the identity {name} exists already")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise NotFound("an identity's name has letters, digits, - and _")
    key = Ed25519Key(secrets.token_bytes(32))
    lab.write_secret(path, key.to_pem())
    sys.stdout.write(f"{key.principal}\n")


def drill_simulated(name: str, seed: int, as_json: bool) -> int:
    """Run a drill in virtual time, with a storm of faults. Return the exit status."""
    if name not in drills.SCENARIOS:
        raise NotFound(f"no scenario {name}; `reprise drill list` shows them")
    if drills.SCENARIOS[name].is_real_only:
        raise Malformed(f"{name} is about real processes and disks: run it without --simulated")
    (point,) = entry_points(group="reprise.simulation", name="drill")
    say(f"drill {name}, simulated with seed {seed}: {drills.SCENARIOS[name].what}")
    try:
        outcome, met = point.load()(name, seed, say=say)
    except AssertionError as violation:
        say(f"failed: {violation}")
        return 1
    say("met: " + ", ".join(f"{count} {what}" for what, count in sorted(met.items())))
    outcome.seed = seed
    return _report(outcome, f"RTO {outcome.rto_seconds:.1f} s of virtual time", as_json, good=True)


def drill_run(
    name: str,
    options: lab.Options,
    as_json: bool,
    keep: Path | None,
    kill_offset: int | None,
) -> int:
    """Return the exit status. `options`: 0 nodes of the NNS stand for the scenario's number."""
    if name not in drills.SCENARIOS:
        raise NotFound(f"no scenario {name}; `reprise drill list` shows them")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise Conflict(f"{keep} is not empty")
    scenario = drills.SCENARIOS[name]
    budget = scenario.budget_s
    say(f"drill {name}: {scenario.what}")
    keep = keep.resolve() if keep is not None else None
    options = replace(options, nns_nodes=options.nns_nodes or scenario.nns_nodes)
    outcome = drills.run(name, options, say, keep, kill_offset)
    within = kill_offset is not None or outcome.rto_seconds <= budget
    told = f"RTO {outcome.rto_seconds:.1f} s (budget {budget:.0f} s)"
    return _report(outcome, told, as_json, good=outcome.outcome == "recovered" and within)


def drill_options(
    name: str,
    nns_nodes: int | None,
    *,
    on_nns: bool,
    attack_names: list[str] | None,
    seconds: float | None,
    heights: int | None,
) -> lab.Options:
    """Return what a drill is run with. Raises: Malformed for what it knows nothing of."""
    options = lab.Options(nns_nodes=nns_nodes or 0)
    if (on_nns or attack_names or seconds is not None) and name != "bad-member":
        raise Malformed("--nns, --attack and --seconds belong to the drill bad-member")
    if heights is not None and name != "old-snapshot":
        raise Malformed("--heights belongs to the drill old-snapshot")
    unknown = sorted(set(attack_names or ()) - set(attacks.NAMES))
    if unknown:
        raise NotFound(f"no attack {', '.join(unknown)}; there are {', '.join(attacks.NAMES)}")
    if on_nns:
        options = replace(options, nns_nodes=max(nns_nodes or 0, 4), app_nodes=1, attacked="nns")
    if heights is not None:
        interval = heights + REST_HEIGHTS
        options = replace(options, heights_back=heights, interval_blocks=interval)
    return replace(
        options,
        attacks=tuple(attack_names or ()),
        attack_seconds=options.attack_seconds if seconds is None else seconds,
    )


def _report(outcome: Outcome, told: str, as_json: bool, *, good: bool) -> int:
    kept = "preserved" if outcome.state_preserved else "NOT preserved"
    why = f"; {outcome.error}" if outcome.error else ""
    say(f"{outcome.outcome}: {told}, state {kept}{why}")
    plain = {k: v for k, v in vars(outcome).items() if v not in ("", []) or k == "proposal_ids"}
    if as_json:
        sys.stdout.write(json.dumps(plain) + "\n")
    else:
        sys.stdout.write(
            f"outcome: {outcome.outcome}\nstate_preserved: "
            f"{str(outcome.state_preserved).lower()}\nrto_seconds: {outcome.rto_seconds}\n"
        )
    return 0 if good else 1
