"""`reprise release` and the commands on canisters' code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.groups import (
    HERE,
    Folder,
    Identity,
    Neuron,
    Output,
    canister_app,
    release_app,
)
from cli.output import emit, errors, show


@release_app.command("build")
def release_build(
    out: Annotated[Path, typer.Option(help="Where the package is written.")] = Path("release.zip"),
    label: Annotated[str, typer.Option(help="A text to keep in the package.")] = "",
    output: Output = "table",
) -> None:
    """Build a reproducible package of the replica that is installed here."""
    with errors():
        from cli import releases

        show(releases.build(out, label), output)


@release_app.command("show")
def release_show(package: Path, output: Output = "table") -> None:
    """Show a package's version, SHA-256 and label."""
    with errors():
        from cli import releases

        show(releases.describe(package), output)


@release_app.command("list")
def release_list(folder: Folder = HERE, output: Output = "table") -> None:
    """List the elected releases and where they run."""
    with errors():
        from cli import releases

        columns = ["version", "sha256", "runs_on", "recalled_on", "urls"]
        emit(releases.elected(folder), output, key="version", columns=columns)


@release_app.command("publish")
def release_publish(
    package: Path,
    folder: Folder = HERE,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Where nodes find the package; default: the swarm's own mirror."),
    ] = None,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose to elect a package, by its SHA-256."""
    with errors():
        from cli import releases

        releases.publish(folder, package, url or [], identity, neuron)


@release_app.command("deploy")
def release_deploy(
    version: str,
    subnet: str,
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose that a subnet runs an elected release from its next catch-up package on."""
    with errors():
        from cli import releases

        releases.deploy(folder, version, subnet, identity, neuron)


@release_app.command("recall")
def release_recall(
    version: str,
    subnet: str,
    folder: Folder = HERE,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose that a release is never started on a subnet (again)."""
    with errors():
        from cli import releases

        releases.recall(folder, version, subnet, identity, neuron)


@canister_app.command("build")
def canister_build(
    source: Annotated[Path, typer.Argument(help="The canister's folder, such as nns/governance.")],
    out: Annotated[Path | None, typer.Option(help="Default: NAME.zip here.")] = None,
    output: Output = "table",
) -> None:
    """Build a canister's bundle, reproducibly; name file and line of whatever breaks a rule."""
    with errors():
        from cli import releases

        show(releases.build_bundle(source, out), output)


@canister_app.command("install")
def canister_install(
    canister: str,
    module: Annotated[Path, typer.Argument(help="A bundle made by `reprise canister build`.")],
    folder: Folder = HERE,
    mode: Annotated[str, typer.Option(help="install, reinstall or upgrade.")] = "upgrade",
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose to install code on an NNS canister: root does it, or lifeline for root."""
    with errors():
        from cli import releases

        releases.install(folder, canister, module, mode, identity, neuron)


@canister_app.command("changes")
def canister_changes(folder: Folder = HERE, output: Output = "table") -> None:
    """List what root has changed, newest first, and what became of it. Not certified."""
    with errors():
        from cli import context
        from cli.recovery import governance

        agent = context.nns_agent(context.swarm(folder))
        columns = ["id", "canister_id", "mode", "state", "module_hash", "failure"]
        emit(governance.changes(agent), output, key="id", columns=columns)


@canister_app.command("snapshots")
def canister_snapshots(canister: str, folder: Folder = HERE, output: Output = "table") -> None:
    """List the snapshots of an NNS canister."""
    with errors():
        from cli import releases

        columns = ["id", "taken_at_timestamp", "total_size"]
        emit(releases.snapshots(folder, canister), output, key="id", columns=columns)


@canister_app.command("snapshot")
def canister_snapshot(
    canister: str,
    folder: Folder = HERE,
    load: Annotated[
        str | None, typer.Option(help="Propose to load this snapshot instead of taking one.")
    ] = None,
    identity: Identity = "default",
    neuron: Neuron = None,
) -> None:
    """Propose to take a snapshot of an NNS canister, or to load one back."""
    with errors():
        from cli import releases

        releases.snapshot(folder, canister, load, identity, neuron)
