"""`reprise recover governance`, `reprise recover nns` and `reprise ballot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.groups import (
    HERE,
    Folder,
    Identity,
    Key,
    Output,
    ballot_app,
    recover_governance_app,
    recover_nns_app,
    root_key_app,
)
from cli.output import emit, errors, show

Ballots = Annotated[list[Path] | None, typer.Argument(help="Files made by the signers.")]
Yes = Annotated[bool, typer.Option("--yes/--no", help="The vote.")]
Node = Annotated[str, typer.Option("--node", help="A node's name in the swarm, or its folder.")]


# --- governance can't vote -----------------------------------------------------------------------


@recover_governance_app.command("propose")
def governance_propose(
    module: Annotated[Path, typer.Argument(help="The bundle that repairs governance.")],
    folder: Folder = HERE,
    identity: Identity = "operator-nns-0",
) -> None:
    """Propose to root, as a node operator of the NNS, to upgrade governance."""
    with errors():
        from cli import offline

        offline.governance_propose(folder, module, identity)


@recover_governance_app.command("status")
def governance_status(folder: Folder = HERE, output: Output = "table") -> None:
    """List the operators' pending proposals. With -o json: what ballots are signed for."""
    with errors():
        from cli import offline

        columns = ["proposer", "proposed_module", "yes", "no", "needed", "nodes", "deadline_s"]
        rows = offline.governance_status(folder)
        emit(rows, output, key="subject", columns=columns)


@recover_governance_app.command("sign")
def governance_sign(
    proposal: Annotated[Path, typer.Argument(help="`recover governance status -o json`, saved.")],
    out: Annotated[Path, typer.Option(help="Where the ballot is written.")] = Path("ballot.json"),
    yes: Yes = True,
    module: Annotated[
        Path | None, typer.Option(help="Sign only if exactly this bundle is proposed.")
    ] = None,
    key: Key = None,
    folder: Folder = HERE,
    identity: Identity = "operator-nns-0",
) -> None:
    """Sign a ballot offline: needs the file and the key, no network."""
    with errors():
        from cli import offline

        offline.governance_sign(folder, proposal, out, yes, module, key, identity)


@recover_governance_app.command("relay")
def governance_relay(
    ballots: Ballots = None, folder: Folder = HERE, identity: Identity = "default"
) -> None:
    """Hand in ballots; anyone may."""
    with errors():
        from cli import offline

        offline.governance_relay(folder, ballots or [], identity)


@ballot_app.command("show")
def ballot_show(file: Path, output: Output = "table") -> None:
    """Show a ballot and check its signature; exit 7 when it does not hold."""
    with errors():
        from cli import offline

        show(offline.ballot_show(file), output)


# --- the NNS is stuck ---------------------------------------------------------------------------


@recover_nns_app.command("halt")
def nns_halt(
    node: Annotated[str, typer.Argument(help="A node's name in the swarm, or its folder.")],
    folder: Folder = HERE,
    key: Key = None,
    identity: Annotated[
        str | None, typer.Option(help="Default: the node's operator, in a local swarm.")
    ] = None,
) -> None:
    """Order one's own node to sign nothing more until the NNS is recovered."""
    with errors():
        from cli import offline

        offline.nns_halt(folder, node, key, identity)


@recover_nns_app.command("build")
def nns_build(
    node: Node = "nns-0",
    out: Annotated[Path, typer.Option(help="Where the bundle is written.")] = Path("nns.bundle"),
    release: Annotated[
        Path | None, typer.Option(help="A release package that replaces the present one.")
    ] = None,
    release_url: Annotated[list[str] | None, typer.Option(help="Where else it is found.")] = None,
    canister: Annotated[str | None, typer.Option(help="A canister to upgrade as well.")] = None,
    module: Annotated[Path | None, typer.Option(help="The bundle to upgrade it to.")] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="A node that is gone for good and the spare one in its place: for more than f of "
            "them, whose going takes the root key along. Those who go on make a new one.",
        ),
    ] = None,
    folder: Folder = HERE,
    output: Output = "table",
) -> None:
    """Build a recovery bundle on a node: gather, judge, replay, make the catch-up package."""
    with errors():
        from cli import offline

        urls, pairs = release_url or [], replace or []
        made = offline.nns_build(folder, node, out, release, urls, canister, module, pairs)
        show(made, output)


@recover_nns_app.command("show")
def nns_show(bundle: Path, output: Output = "table") -> None:
    """Show what a bundle would do and who has signed it."""
    with errors():
        from cli import offline

        show(offline.nns_show(bundle), output)


@recover_nns_app.command("verify")
def nns_verify(
    bundle: Path, node: Node = "nns-0", folder: Folder = HERE, output: Output = "table"
) -> None:
    """Re-derive a bundle's state by replay on one's own node; exit 7 when it does not hold."""
    with errors():
        from cli import offline

        show(offline.nns_verify(folder, bundle, node), output)


@recover_nns_app.command("sign")
def nns_sign(
    bundle: Path,
    out: Annotated[Path, typer.Option(help="Where the ballot is written.")] = Path("ballot.json"),
    yes: Yes = True,
    key: Key = None,
    folder: Folder = HERE,
    identity: Identity = "operator-nns-0",
) -> None:
    """Sign a bundle offline: needs the file and the key, no network."""
    with errors():
        from cli import offline

        offline.nns_sign(folder, bundle, out, yes, key, identity)


@recover_nns_app.command("apply")
def nns_apply(
    bundle: Path,
    ballots: Ballots = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", help="Whose orchestrator; default: nns-0.")
    ] = None,
    folder: Folder = HERE,
) -> None:
    """Hand a bundle and ballots to nodes' orchestrators, which check both by themselves."""
    with errors():
        from cli import offline

        offline.nns_apply(folder, bundle, ballots or [], node or ["nns-0"])


@recover_nns_app.command("status")
def nns_status(folder: Folder = HERE, output: Output = "table") -> None:
    """Show, node by node, how far a recovery of the NNS is."""
    with errors():
        from cli import offline

        columns = ["node", "recovery", "signed", "height", "replica", "epoch", "certified", "note"]
        emit(offline.nns_status(folder), output, key="id", columns=columns)


# --- trusting what came after a lost root key ----------------------------------------------------


@root_key_app.command("show")
def root_key_show(folder: Folder = HERE, output: Output = "table") -> None:
    """Show the root key that everything here is verified with."""
    with errors():
        from cli import offline

        show(offline.root_key(folder), output)


@root_key_app.command("accept")
def root_key_accept(
    bundle: Annotated[
        Path | None, typer.Argument(help="The recovery that brought it; default: ask the nodes.")
    ] = None,
    folder: Folder = HERE,
    output: Output = "table",
) -> None:
    """Trust the successor of a lost root key; exit 7 unless n - f operators have signed it."""
    with errors():
        from cli import offline

        show(offline.accept_root_key(folder, bundle), output)
