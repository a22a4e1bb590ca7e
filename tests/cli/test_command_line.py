"""The command line: exit codes, output, start-up, documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "state_vectors.json").read_text())
ROOT_KEY = VECTORS["certificates"]["ic_root_key_der_hex"]


def reprise(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for item in VECTORS["certificates"]["items"]:
        path = tmp_path / item["name"].replace("/", "_")
        path.write_bytes(bytes.fromhex(item["cert_hex"]))
        paths[item["name"]] = path
    return paths


def test_real_certificates_verify_and_others_exit_with_7(certificates: dict[str, Path]) -> None:
    good = certificates["agent-rs/ivg37_delegated_v2.bin"]
    done = reprise("certificate", "verify", good, "--root-key", ROOT_KEY, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["valid"] is True
    bad = certificates["agent-js/canisterStatus.test/0"]
    assert reprise("certificate", "verify", bad, "--root-key", ROOT_KEY).returncode == 7
    noise = good.parent / "noise"
    noise.write_bytes(b"not cbor at all")
    assert reprise("certificate", "verify", noise, "--root-key", ROOT_KEY).returncode == 7
    other = ("--canister", "ryjl3-tyaaa-aaaaa-aaaba-cai")
    assert reprise("certificate", "verify", good, "--root-key", ROOT_KEY, *other).returncode == 7


def test_manifest_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "d" / "subdir").mkdir(parents=True)
    files = {
        "root.bin": bytes(1000),
        "subdir/memory": b"\1" * 2048,
        "subdir/metadata": b"\2" * 1050,
        "subdir/queue": b"",
    }
    for name, data in files.items():
        (tmp_path / "d" / name).write_bytes(data)
    for version in ("0", "1", "2", "3"):
        done = reprise(
            "checkpoint",
            "manifest",
            tmp_path / "d",
            "--version",
            version,
            "--chunk-bytes",
            "1024",
            "-o",
            "json",
        )
        expected = VECTORS["manifest"]["simple_dir"]["versions"][f"v{version}"]["root"]
        assert json.loads(done.stdout)["root_hash"] == expected


def test_errors_say_what_to_do_next(tmp_path: Path) -> None:
    done = reprise("node", "list", cwd=tmp_path)
    assert done.returncode == 5
    assert "reprise swarm up" in done.stderr and done.stdout == ""
    assert reprise("drill", "run", "no-such").returncode == 5
    assert reprise("no-such-command").returncode == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['reprise','--help']\n"
        "from cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy={'sqlalchemy','alembic','fastapi','uvicorn','blspy','httpx2','cryptography'}\n"
        "found=heavy & set(sys.modules); assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_has_help_and_is_documented() -> None:
    import typer.main

    from cli.main import app

    documented = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    root = typer.main.get_command(app)

    def walk(command: object, path: str) -> None:
        commands = getattr(command, "commands", None)
        if commands:
            for name, inner in commands.items():
                walk(inner, f"{path} {name}".strip())
            return
        assert getattr(command, "help", None), f"{path} has no help"
        assert f"`reprise {path}" in documented, f"docs/commands.md misses {path}"

    walk(root, "")


def test_the_readme_names_both_commands_first() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    screen = "\n".join(text.splitlines()[:40])
    assert "make drill" in screen and "make test" in screen
