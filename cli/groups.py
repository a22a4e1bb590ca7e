"""The command groups of `reprise` and the options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Governance and disaster recovery for replicated state machines.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def group(name: str, text: str) -> typer.Typer:
    made = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(made, name=name)
    return made


swarm_app = group("swarm", "A local swarm of real processes.")
drill_app = group("drill", "Disasters, rehearsed.")
identity_app = group("identity", "Keys that sign requests.")
subnet_app = group("subnet", "Subnets: list, look at, halt.")
node_app = group("node", "Nodes: list, look at.")
registry_app = group("registry", "The NNS registry, certified.")
proposal_app = group("proposal", "Proposals: list, submit, verify, vote.")
neuron_app = group("neuron", "Neurons: list, look at, stake.")
canister_app = group("canister", "Canisters: build, install, call, query, snapshots.")
recover_app = group("recover", "Recovering what is stuck.")
recover_subnet_app = typer.Typer(
    help="Recover a subnet through a proposal.", no_args_is_help=True, rich_markup_mode=None
)
recover_app.add_typer(recover_subnet_app, name="subnet")
recover_governance_app = typer.Typer(
    help="Repair a governance that can't vote: its node operators do.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
recover_app.add_typer(recover_governance_app, name="governance")
recover_nns_app = typer.Typer(
    help="Recover a stuck NNS offline, with its node operators' signatures.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
recover_app.add_typer(recover_nns_app, name="nns")
release_app = group("release", "Releases of the replica: build, publish, elect, deploy, recall.")
ballot_app = group("ballot", "Ballots signed offline.")
cup_app = group("cup", "Catch-up packages.")
certificate_app = group("certificate", "Certificates of any subnet.")
root_key_app = group("root-key", "The root key that is trusted, and what followed it.")
checkpoint_app = group("checkpoint", "Checkpoints and their manifests.")

Folder = Annotated[
    Path, typer.Option("--swarm", envvar="REPRISE_SWARM", help="Folder of the local swarm.")
]
Output = Annotated[
    str, typer.Option("--output", "-o", help="table, json, ndjson or id.", metavar="FORMAT")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Identity = Annotated[
    str, typer.Option("--identity", envvar="REPRISE_IDENTITY", help="Who signs the request.")
]
Neuron = Annotated[int | None, typer.Option(help="Default: the one with most stake.")]
Key = Annotated[
    Path | None, typer.Option("--key", help="A private key in PEM, instead of an identity's.")
]
HERE = Path(".reprise")
