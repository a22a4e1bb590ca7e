"""The `reprise` command. Only declarations: a command imports what it needs when it runs.

The groups are in `cli.groups`; releases, code and recoveries have files of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import recover_commands, release_commands
from cli.groups import (
    HERE,
    Folder,
    Identity,
    Json,
    Neuron,
    Output,
    app,
    canister_app,
    certificate_app,
    checkpoint_app,
    cup_app,
    drill_app,
    identity_app,
    neuron_app,
    node_app,
    proposal_app,
    recover_subnet_app,
    registry_app,
    subnet_app,
    swarm_app,
)
from cli.output import emit, errors, progress, say, show

# --- swarm -----------------------------------------------------------------------------------


@swarm_app.command("up")
def swarm_up(
    folder: Folder = HERE,
    nns_nodes: Annotated[int, typer.Option(help="Nodes of the NNS subnet.", min=1)] = 1,
    app_nodes: Annotated[int, typer.Option(help="Nodes of the application subnet.", min=1)] = 4,
    spare_nodes: Annotated[
        int, typer.Option(help="Registered nodes that are in no subnet.", min=0)
    ] = 0,
) -> None:
    """Start a local swarm and return when it is healthy."""
    with errors():
        from cli.lab import commands

        commands.swarm_up(folder, nns_nodes, app_nodes, spare_nodes, progress("swarm"))


@swarm_app.command("status")
def swarm_status(folder: Folder = HERE, output: Output = "table") -> None:
    """Show every node of the swarm."""
    node_list(folder, output)


@swarm_app.command("down")
def swarm_down(
    folder: Folder = HERE,
    keep: Annotated[bool, typer.Option(help="Keep the folder and its data.")] = False,
) -> None:
    """Stop all processes of the swarm and remove its folder."""
    with errors():
        from cli.lab import commands

        commands.swarm_down(folder, keep, progress("swarm"))


# --- drill -----------------------------------------------------------------------------------


@drill_app.command("list")
def drill_list(output: Output = "table") -> None:
    """List the scenarios."""
    with errors():
        from cli.lab import drills

        rows = [
            {"name": name, "rto_budget_s": s.budget_s, "nns_nodes": s.nns_nodes, "what": s.what}
            for name, s in drills.SCENARIOS.items()
        ]
        emit(rows, output, key="name", columns=["name", "rto_budget_s", "nns_nodes", "what"])


@drill_app.command("run")
def drill_run(
    name: str,
    nns_nodes: Annotated[
        int | None, typer.Option(help="Nodes of the NNS subnet; default: the scenario's.", min=1)
    ] = None,
    json_: Json = False,
    keep: Annotated[
        Path | None, typer.Option(help="Run in this new folder and leave it for inspection.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="In virtual time, in this process.")
    ] = False,
    seed: Annotated[int, typer.Option(help="With --simulated: what is drawn.", min=0)] = 0,
    nns: Annotated[bool, typer.Option("--nns", help="bad-member: of the NNS, of four.")] = False,
    attack: Annotated[
        list[str] | None, typer.Option(help="bad-member: one of its attacks; default: all.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="bad-member: of each attack; default: 60.", min=1)
    ] = None,
    heights: Annotated[
        int | None, typer.Option(help="old-snapshot: age of the copy; default: 200.", min=1)
    ] = None,
    kill_offset: Annotated[
        int | None, typer.Option(hidden=True, help="Kill one process in every phase.")
    ] = None,
) -> None:
    """Run a scenario on a fresh swarm; exit 1 when it fails or exceeds its budget."""
    with errors():
        from cli.lab import commands

        if simulated:
            raise SystemExit(commands.drill_simulated(name, seed, json_))
        options = commands.drill_options(
            name, nns_nodes, on_nns=nns, attack_names=attack, seconds=seconds, heights=heights
        )
        raise SystemExit(commands.drill_run(name, options, json_, keep, kill_offset))


# --- identity --------------------------------------------------------------------------------


@identity_app.command("list")
def identity_list(folder: Folder = HERE, output: Output = "table") -> None:
    """List the swarm's identities and their principals."""
    with errors():
        from cli import context

        found = context.swarm(folder)
        names = sorted(p.stem for p in (folder / "identities").glob("*.pem"))
        rows = [{"name": n, "principal": str(found.identity(n).principal)} for n in names]
        emit(rows, output, key="name", columns=["name", "principal"])


@identity_app.command("new")
def identity_new(name: str, folder: Folder = HERE) -> None:
    """Make a new Ed25519 identity."""
    with errors():
        from cli.lab import commands

        commands.identity_new(folder, name)


# --- subnet and node -------------------------------------------------------------------------


@subnet_app.command("list")
def subnet_list(folder: Folder = HERE, output: Output = "table") -> None:
    """List the subnets in the registry."""
    with errors():
        from cli import views

        columns = ["name", "id", "type", "nodes", "certified", "state"]
        emit(views.subnets(folder), output, key="id", columns=columns)


@subnet_app.command("show")
def subnet_show(subnet: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Show a subnet's registry record."""
    with errors():
        from cli import views

        show(views.subnet_record(folder, subnet), output)


@subnet_app.command("status")
def subnet_status(subnet: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Say whether a subnet makes progress, and if not, why."""
    with errors():
        from cli import views

        show(views.diagnosis(folder, subnet), output)


@subnet_app.command("halt")
def subnet_halt(
    subnet: str,
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose to halt a subnet (SetSubnetOperationalLevel)."""
    with errors():
        from cli import actions

        actions.halt(folder, subnet, identity, neuron)


@subnet_app.command("change-members")
def subnet_change_members(
    subnet: str,
    add: Annotated[list[str] | None, typer.Option(help="A registered node in no subnet.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A member.")] = None,
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose to add nodes to a subnet and remove others (ChangeSubnetMembership)."""
    with errors():
        from cli import actions

        actions.change_members(folder, subnet, add or [], remove or [], identity, neuron)


@node_app.command("list")
def node_list(folder: Folder = HERE, output: Output = "table") -> None:
    """List all nodes with their heights, and what their orchestrators find wrong with them."""
    with errors():
        from cli import context

        columns = [
            "name",
            "subnet",
            "status",
            "finalized",
            "certified",
            "cup",
            "registry",
            "state_digest",
            "trouble",
            "url",
        ]
        rows = context.status_rows(context.swarm(folder))
        emit(rows, output, key="id", columns=columns)


@node_app.command("show")
def node_show(node: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Show a node's record and addresses."""
    with errors():
        from cli import views

        show(views.node(folder, node), output)


@node_app.command("status")
def node_status(node: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Show what a node's replica and orchestrator say of themselves."""
    with errors():
        from cli import views

        show(views.node_status(folder, node), output)


# --- registry --------------------------------------------------------------------------------


@registry_app.command("get")
def registry_get(
    key: str,
    folder: Folder = HERE,
    version: Annotated[int | None, typer.Option(help="As of this version.")] = None,
    raw: Annotated[bool, typer.Option(help="Print the value's bytes as hex only.")] = False,
    output: Output = "table",
) -> None:
    """Show a key's value, fetched with its certificate and decoded."""
    with errors():
        from cli import views

        found = views.registry_value(folder, key, version)
        if raw:
            sys.stdout.write(found["value"].hex() + "\n")
        else:
            show(found, output)


@registry_app.command("history")
def registry_history(
    key: Annotated[str | None, typer.Argument(help="Default: all keys.")] = None,
    folder: Folder = HERE,
    output: Output = "table",
) -> None:
    """List the versions of a key, or all versions."""
    with errors():
        from cli import views

        rows = views.registry_history(folder, key)
        emit(rows, output, key="version", columns=["version", "key", "bytes", "what"])


# --- proposals and neurons -------------------------------------------------------------------


@proposal_app.command("list")
def proposal_list(folder: Folder = HERE, output: Output = "table") -> None:
    """List proposals, newest first."""
    with errors():
        from cli import views

        columns = ["id", "status", "topic", "yes", "no", "total", "title"]
        emit(views.proposals(folder), output, key="id", columns=columns)


@proposal_app.command("show")
def proposal_show(proposal: int, folder: Folder = HERE, output: Output = "table") -> None:
    """Show a proposal with its decoded payload."""
    with errors():
        from cli import views

        show(views.proposal(folder, proposal), output)


@proposal_app.command("verify")
def proposal_verify(proposal: int, folder: Folder = HERE, output: Output = "table") -> None:
    """Re-derive what a recovery proposal claims, before voting; exit 7 when it does not hold."""
    with errors():
        from cli import views

        show(views.verify_proposal(folder, proposal), output)


@proposal_app.command("submit")
def proposal_submit(
    title: Annotated[str, typer.Option(help="5 to 256 bytes.")],
    motion: Annotated[str, typer.Option(help="Text of the motion.")],
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Submit a motion. (Recoveries: `reprise recover subnet propose`.)"""
    with errors():
        from cli import actions

        actions.submit_motion(folder, title, motion, identity, neuron)


@proposal_app.command("vote")
def proposal_vote(
    proposal: int,
    yes: Annotated[bool, typer.Option("--yes/--no", help="The vote.")],
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Cast a neuron's vote."""
    with errors():
        from cli import actions

        actions.vote(folder, proposal, yes, identity, neuron)


@neuron_app.command("list")
def neuron_list(
    folder: Folder = HERE, identity: Identity = "default", output: Output = "table"
) -> None:
    """List the identity's neurons."""
    with errors():
        from cli import views

        columns = ["id", "stake_icp", "state", "dissolve_delay_s", "voting_power"]
        emit(views.neurons(folder, identity), output, key="id", columns=columns)


@neuron_app.command("show")
def neuron_show(neuron: int, folder: Folder = HERE, output: Output = "table") -> None:
    """Show what everybody may see of a neuron."""
    with errors():
        from cli import views

        show(views.neuron(folder, neuron), output)


@neuron_app.command("stake")
def neuron_stake(
    amount: Annotated[float, typer.Argument(help="In tokens, such as 12.5.")],
    folder: Folder = HERE,
    identity: Identity = "default",
    memo: Annotated[int, typer.Option(help="Numbers this identity's neurons.")] = 1,
) -> None:
    """Transfer tokens to a new neuron and claim it."""
    with errors():
        from cli import actions

        actions.stake(folder, amount, identity, memo)


# --- canisters -------------------------------------------------------------------------------


@canister_app.command("call")
def canister_call(
    canister: str,
    method: str,
    arg: Annotated[str, typer.Argument(help="Arguments as JSON, such as '[{\"a\": 1}]'.")] = "[]",
    folder: Folder = HERE,
    identity: Identity = "default",
) -> None:
    """Call a method and print its certified answer."""
    with errors():
        from cli import actions

        actions.canister(folder, canister, method, arg, identity, query=False)


@canister_app.command("query")
def canister_query(
    canister: str,
    method: str,
    arg: Annotated[str, typer.Argument(help="Arguments as JSON.")] = "[]",
    folder: Folder = HERE,
    identity: Identity = "default",
) -> None:
    """Ask one node; fast, but not certified."""
    with errors():
        from cli import actions

        actions.canister(folder, canister, method, arg, identity, query=True)


@canister_app.command("status")
def canister_status(canister: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Show a canister's certified module hash and controllers."""
    with errors():
        from cli import views

        show(views.canister(folder, canister), output)


# --- recovery --------------------------------------------------------------------------------


@recover_subnet_app.command("plan")
def recover_plan(
    subnet: str,
    folder: Folder = HERE,
    out: Annotated[Path, typer.Option(help="Where the plan is written.")] = Path("plan.json"),
    replace: Annotated[
        list[str] | None,
        typer.Option(
            help="OLD=NEW: a member that is gone for good, and the registered node in its place. "
            "The subnet gets a new key, dealt by the NNS."
        ),
    ] = None,
    output: Output = "table",
) -> None:
    """Gather evidence of a halted subnet, judge it, dry-run the change, write a plan.

    When more than f members are gone for good, name each with a spare node in its place.
    """
    with errors():
        from cli import actions

        show(actions.plan(folder, subnet, out, replace or []), output)


@recover_subnet_app.command("propose")
def recover_propose(
    plan: Annotated[Path, typer.Argument(help="The plan's file.")] = Path("plan.json"),
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """File the recovery proposal of a plan."""
    with errors():
        from cli import actions

        actions.propose(folder, plan, identity, neuron)


@recover_subnet_app.command("status")
def recover_status(subnet: str, folder: Folder = HERE, output: Output = "table") -> None:
    """Show how far a recovery is: registry, CUP, nodes."""
    with errors():
        from cli import views

        show(views.recovery_status(folder, subnet), output)


# --- artefacts that anyone can check ---------------------------------------------------------


@cup_app.command("show")
def cup_show(
    source: Annotated[str, typer.Argument(help="A file, or a node's name.")],
    folder: Folder = HERE,
    output: Output = "table",
) -> None:
    """Show a catch-up package."""
    with errors():
        from cli import artefacts

        show(artefacts.describe_cup(artefacts.read_cup(source, folder)), output)


@cup_app.command("verify")
def cup_verify(
    source: Annotated[str, typer.Argument(help="A file, or a node's name.")],
    key: Annotated[
        str | None, typer.Option(help="The subnet's key in hex (DER); default: the registry's.")
    ] = None,
    folder: Folder = HERE,
) -> None:
    """Check a catch-up package's signature; exit 7 when it does not hold."""
    with errors():
        from cli import artefacts

        artefacts.verify_cup(source, key, folder)


@certificate_app.command("verify")
def certificate_verify(
    file: Path,
    root_key: Annotated[str, typer.Option("--root-key", help="Root key in hex (DER).")],
    canister: Annotated[
        str | None, typer.Option(help="Demand that the subnet is responsible for this canister.")
    ] = None,
    output: Output = "table",
) -> None:
    """Check a CBOR certificate of any network; exit 7 for anything that is not a valid one."""
    with errors():
        from cli import artefacts

        show(artefacts.verify_certificate(file, root_key, canister), output)


@checkpoint_app.command("manifest")
def checkpoint_manifest(
    folder: Path,
    version: Annotated[int, typer.Option(help="Manifest version.", min=0, max=3)] = 3,
    chunk_bytes: Annotated[int, typer.Option(help="Bytes per chunk.", min=1)] = 1 << 20,
    output: Output = "table",
) -> None:
    """Compute the root hash of any folder's manifest."""
    with errors():
        from cli import artefacts

        show(artefacts.manifest_of(folder, version, chunk_bytes), output)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()


__all__ = ["app", "main", "recover_commands", "release_commands", "say"]
