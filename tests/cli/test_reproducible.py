"""Bundles and releases are the same bytes wherever, whenever and by whomever they are built."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nns
from replica.abi import bundle as bundles
from replica.execution.management import INTERFACE
from replica.protocol import candid
from replica.protocol.ids import ROOT, canister_id
from tests.nns.harness import ADMIN, Machine, Refused

REPOSITORY = Path(__file__).parents[2]
SURROUNDINGS = [
    {"umask": 0o022, "LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"},
    {"umask": 0o077, "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Apia", "PYTHONHASHSEED": "2"},
]


def build(folder: Path, number: int, *arguments: str) -> bytes:
    """Build with the sources in another place, at another time of theirs, under other settings."""
    settings = dict(SURROUNDINGS[number])
    umask = settings.pop("umask")
    work = folder / f"place {number}"
    if not work.exists():
        for name in ("replica", "migrations", "nns", "cli", "orchestrator"):
            shutil.copytree(REPOSITORY / name, work / name)
        for path in work.rglob("*"):
            os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
            path.chmod(0o755 if number or path.is_dir() else 0o644)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(work), **settings}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments, "--out", f"out-{number}", "-o", "json"],
        cwd=work,
        env={k: str(v) for k, v in environment.items()},
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.umask(int(str(umask))) and None,
    )
    assert done.returncode == 0, done.stderr
    made = (work / f"out-{number}").read_bytes()
    shown = json.loads(done.stdout)
    digest = hashlib.sha256(made).hexdigest()
    assert shown.get("sha256", shown.get("module_hash")) == digest
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ("release", "build", "--label", "a label"),
        ("canister", "build", "nns/governance"),
        ("canister", "build", "nns/root"),
    ],
    ids=" ".join,
)
def test_two_builds_are_identical(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    first, second = (build(tmp_path, n, *arguments) for n in (0, 1))
    assert first == second
    if "governance" in arguments[-1]:
        assert first == bundles.build(Path(nns.__file__).parent / "governance")


RULES = [
    ("import time", "import time"),
    ("from random import random", "import of random"),
    ("import socket", "import socket"),
    ("from numpy import array", "import of numpy"),
    ("from replica.protocol import cbor", "import of replica.protocol"),
    ("x = 0.5", "the float 0.5"),
    ("x = float(1)", "the name float"),
    ("x = 1 / 3", "true division"),
]


@pytest.mark.parametrize("line, what", RULES)
def test_what_a_bundle_may_not_do_is_refused_by_builder_and_replica_alike(
    tmp_path: Path, line: str, what: str
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    files = {
        "canister.toml": 'name = "c"\nabi = "v1"\n',
        "c.did": "service : () -> {}",
        "__init__.py": "from . import part\n",
        "part.py": f'"""A part."""\n\n{line}\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "canister", "build", str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0 and not list(tmp_path.glob("*.zip"))
    assert f"part.py:3: {what}" in done.stderr
    handed = bundles.pack(sorted((n, t.encode()) for n, t in files.items()))
    machine = Machine(tmp_path / "state")
    id_ = canister_id(100)
    machine.create(id_, [ADMIN.principal, ROOT])
    value = {"mode": {"install": None}, "canister_id": id_, "wasm_module": handed, "arg": b""}
    with pytest.raises(Refused, match=r"part\.py:3") as caught:
        machine.manage("install_code", value)
    assert what in str(caught.value)
    assert candid.encode(INTERFACE.methods["install_code"].args, [value], INTERFACE)
    assert not machine.state._tip.canisters[id_].bundle
