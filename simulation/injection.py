"""What a plan's faults do to a simulated subnet, each at its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.plan import Fault
from simulation.scheduler import GENESIS_NS

if TYPE_CHECKING:
    from simulation.subnet import Node, World


def schedule(world: World) -> None:
    """Have every fault of the plan come at its time; what is put back later is copied before."""
    for fault in world.plan.faults:
        if fault.kind == "old copy":
            for index in fault.nodes:
                at_ns = max(0, fault.at_ns - fault.amount)
                world.at(GENESIS_NS + at_ns, world.cast.old_copies.take, world.nodes[index])
        world.at(GENESIS_NS + fault.at_ns, inject, world, fault)


def inject(world: World, fault: Fault) -> None:
    world.note(f"fault {fault.kind} {fault.nodes}")
    world.counts[fault.kind] += 1
    nodes = [world.nodes[i] for i in fault.nodes]
    if _to_processes(world, fault, nodes) or _to_clocks(world, fault, nodes):
        return
    if _to_links(world, fault) or _to_the_registry(world, fault):
        return
    faulty = [n for n in nodes if n.index in world.plan.faulty]
    if not _by_byzantine_members(world, fault, faulty):
        raise ValueError(f"no such fault: {fault.kind}")


def _to_processes(world: World, fault: Fault, nodes: list[Node]) -> bool:
    for node in nodes:
        match fault.kind:
            case "crash":
                world.stop(node)
            case "torn crash":
                node.torn = True
            case "wipe":
                world.stop(node)
                world.cast.past.forgot.add(node.index)
                node.durable, node.state = {}, world.new_state(node.index)
                node.package = world.genesis.package
            case "restart":
                if node.driver is None and world.is_needed(node):
                    world.start(node)
            case "pause" | "resume":
                node.paused = fault.kind == "pause"
                world.wake(node, world.now)
    return fault.kind in ("crash", "torn crash", "wipe", "restart", "pause", "resume")


def _to_clocks(world: World, fault: Fault, nodes: list[Node]) -> bool:
    for node in nodes:
        if fault.kind == "skew":
            node.skew_ns += fault.amount
        elif fault.kind == "stall clock":
            node.stalled_at_ns = world.now
    return fault.kind in ("skew", "stall clock")


def _to_links(world: World, fault: Fault) -> bool:
    network = world.network
    match fault.kind:
        case "partition":
            network.cut = frozenset(fault.nodes)
        case "deafen":
            network.deaf = frozenset(fault.nodes)
        case "clog":
            network.clogged = frozenset(fault.nodes)
        case "heal":
            world.heal()
        case _:
            return False
    return True


def _to_the_registry(world: World, fault: Fault) -> bool:
    if fault.kind == "members":
        world.change_members(tuple([world.nodes[i].keys.node for i in fault.nodes]))
    elif fault.kind == "release":
        world.releases.publish(fault.what)
    else:
        return False
    return True


def _by_byzantine_members(world: World, fault: Fault, nodes: list[Node]) -> bool:
    """What a smaller plan has left without its Byzantine member does nothing."""
    for node in nodes:
        match fault.kind:
            case "flood":
                world.cast.flooder.flood(node, fault.what, fault.amount)
            case "silence":
                world.cast.silent.add(node.index)
            case "leave":
                world.cast.gone.add(node.index)
                world.stop(node)
            case "old copy":
                world.cast.old_copies.put_back(node)
    return fault.kind in ("flood", "silence", "leave", "old copy")
