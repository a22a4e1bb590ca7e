"""Releases of NNS canisters that are broken on purpose: what the canister drills roll out."""

from __future__ import annotations

from pathlib import Path

import nns
from replica.abi import bundle as bundles

WORDS = "this release is broken on purpose"


def build(name: str, appended: str = "") -> bytes:
    """Build an NNS canister as it is installed here, with code appended to its main module."""
    folder = Path(nns.__file__).parent / name
    files = bundles.files_of(folder)
    return bundles.pack(
        (path, data + appended.encode() if path == "__init__.py" else data) for path, data in files
    )


def newer(name: str) -> bytes:
    """The same code under another hash."""
    return build(name, "\n# a newer build\n")


def traps_on_every_call(name: str) -> bytes:
    """Every method of the .did raises."""
    methods = bundles.read(build(name)).interface.methods
    parts = ["\n"]
    for method, spec in methods.items():
        kind = "query" if spec.mode == "query" else "update"
        parts.append(
            f'\n\n@{kind}\ndef {method}(ctx, *_arguments):\n    raise ValueError("{WORDS}")\n'
        )
    header = "from replica.abi.v1 import query, update\n"
    return build(name, "\n" + header + "".join(parts))


def traps_on_every_vote() -> bytes:
    """Governance can still be asked and take proposals, but not one vote."""
    return build(
        "governance",
        f'''

working_run = run


def run(ctx, neuron, command):
    if "RegisterVote" in command:
        raise ValueError("{WORDS}")
    return working_run(ctx, neuron, command)
''',
    )
