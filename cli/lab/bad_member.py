"""The scenario bad-member: one node of four attacks its subnet with its real keys.

Its replica is held and an attacker (`cli.lab.attacker`) has its folder and its ports. What the
others do under each attack is compared with what they do while that node is simply down: either is
one faulty member of four.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cli.lab import attacks
from cli.lab.attacker import BYTES_A_SECOND, CPU_SHARE, GRACE_S
from cli.lab.drill import Drill, Outcome, describe_settings
from cli.lab.layout import NodeEntry, SubnetEntry
from cli.lab.watching import Watch, watch
from cli.output import lines
from cli.recovery import detect
from replica.protocol.errors import Unavailable

RATE_MIN = 0.6
"""Of the undisturbed blocks a second."""
RESIDENT_BYTES_MAX = 400 << 20
"""Above what a replica had undisturbed."""
GROWTH_MAX = 2.0
"""Times what the folders grew undisturbed in the same time."""
REFUSED_S_MAX = 70
"""A peer is refused for a minute at most; the next attack begins when it is let in again."""
COLUMNS = (
    "attack", "blocks_a_second", "of_undisturbed", "standstill_s", "memory_mib", "growth_mib",
    "restarts", "named_by", "sent_mb_s", "attacker_cpu", "over",
)  # fmt: skip


def bad_member(drill: Drill) -> Outcome:
    """One member floods, forges and lies, in one way after the other; the others go on."""
    subnet = drill.swarm.subnet(drill.options.attacked)
    node, names = subnet.nodes[-1], drill.options.attacks or attacks.NAMES
    with drill.phases.phase("swarm up") as notes:
        drill.up()
        drill.wait_for("a first signed CUP", lambda: _cup_height(drill, subnet) > 0, 60)
        drill.supervisor.hold(node.folder)
        before = drill.certified_height(subnet)
        notes.append(f"{describe_settings(drill)}; {node.name} is down from now on")
    with drill.phases.phase("undisturbed") as notes:
        end_s = drill.now_s() + drill.options.attack_seconds
        calm = watch(drill, subnet, subnet.nodes[:-1], lambda: drill.now_s() >= end_s)
        notes.append(_describe(calm))
    cases = [_case(drill, subnet, name, calm) for name in names]
    with drill.phases.phase("verify") as notes:
        kept, text = drill.verify_journal()
        notes.append(text)
    for line in lines(cases, COLUMNS):
        drill.say(f"    {line}")
    over = [f"{c['attack']}: {c['over']}" for c in cases if c["over"]]
    outcome = drill.outcome(
        "bad-member",
        rto_seconds=max(c["standstill_s"] for c in cases),
        kept=kept,
        before=before,
        after=drill.certified_height(subnet),
        good=kept and not over,
        cases=[{"attack": "none", **_row(calm, calm)}, *cases],
    )
    outcome.error = "; ".join(filter(None, [outcome.error, *over]))
    return outcome


def _cup_height(drill: Drill, subnet: SubnetEntry) -> int:
    found = detect.look(subnet, drill.probe)
    signed = [r.status["cup_height"] for r in found if r.status and r.status["cup_signed"]]
    return max(signed, default=0)


def _case(drill: Drill, subnet: SubnetEntry, name: str, calm: Watch) -> dict[str, Any]:
    """Carry out one attack; return what was seen, and what of it is over a bar."""
    node = subnet.nodes[-1]
    _wait_until_let_in(drill, subnet, node)
    with drill.phases.phase(name) as notes:
        seconds = drill.options.attack_seconds
        with _attacking(node, name, seconds) as process:
            seen = watch(drill, subnet, subnet.nodes[:-1], lambda: process.poll() is not None)
            deeds = _deeds(process)
        case = {"attack": name, **_row(seen, calm), "named_by": seen.named.get(node.name, 0)}
        case["sent_mb_s"] = round(deeds["bytes_a_second"] / 1e6, 2)
        case["attacker_cpu"] = round(deeds["cpu_share"], 2)
        case |= {"frames": deeds["frames"], "connections": deeds["connections"]}
        case["over"] = ", ".join(_over(seen, calm, node.name))
        notes.append(_describe(seen) + (f"; OVER: {case['over']}" if case["over"] else ""))
    return case


@contextmanager
def _attacking(node: NodeEntry, name: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Run the attacker; it has begun when this yields, and has ended when this is left."""
    command = [sys.executable, "-m", "cli.lab.attacker", str(node.folder), name]
    command += ["--seconds", str(seconds)]
    command += ["--bytes-a-second", str(BYTES_A_SECOND), "--cpu-share", str(CPU_SHARE)]
    with open(node.folder / "attacker.log", "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != "attacking":
            raise Unavailable(f"the attacker does not start: see {node.folder}/attacker.log")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _deeds(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=GRACE_S)
    if process.returncode != 0 or not output:
        raise Unavailable(f"the attacker ended with status {process.returncode}")
    deeds: dict[str, Any] = json.loads(output.splitlines()[-1])
    return deeds


def _wait_until_let_in(drill: Drill, subnet: SubnetEntry, node: NodeEntry) -> None:
    def is_let_in() -> bool:
        found = [r.status for r in detect.look(subnet, drill.probe) if r.status]
        standings = [s["peer_standings"].get(str(node.id), {}) for s in found]
        return all(s.get("refused_for_s", 0) == 0 for s in standings)

    drill.wait_for("the peers to let the attacker in", is_let_in, REFUSED_S_MAX, 0.5)


def _row(seen: Watch, calm: Watch) -> dict[str, Any]:
    return {
        "blocks_a_second": round(seen.rate, 1),
        "of_undisturbed": round(seen.rate / calm.rate, 2),
        "standstill_s": round(seen.standstill_s, 1),
        "memory_mib": seen.resident_bytes >> 20,
        "growth_mib": round(seen.grown_bytes / (1 << 20), 1),
        "restarts": seen.restarts,
    }


def _over(seen: Watch, calm: Watch, attacker: str) -> list[str]:
    """Return which bars a period is over."""
    bars = {
        f"{seen.rate / calm.rate:.0%} of the blocks": seen.rate < RATE_MIN * calm.rate,
        "memory": seen.resident_bytes > calm.resident_bytes + RESIDENT_BYTES_MAX,
        "growth of folders": seen.grown_bytes > GROWTH_MAX * calm.grown_bytes,
        f"{seen.restarts} restarts": seen.restarts > 0,
        "nobody names the attacker": attacker not in seen.named,
    }
    return [what for what, is_over in bars.items() if is_over]


def _describe(seen: Watch) -> str:
    named = ", ".join(f"{name} (by {many})" for name, many in seen.named.items())
    return (
        f"{seen.rate:.1f} blocks/s, standstill {seen.standstill_s:.1f} s, "
        f"{seen.resident_bytes >> 20} MiB, folders + {seen.grown_bytes >> 10} KiB, "
        f"{seen.restarts} restarts; named: {named or 'nobody'}"
    )
