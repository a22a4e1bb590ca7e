"""What a crash leaves in a node's data is removed by its name, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from replica.runtime import leftovers

FOREIGN = (
    "pool-1-abc.journal",
    "pool-1-abc.journal.new.mine",
    "my pool-1-abc.journal.new",
    "sync-notes",
    "sync-00ff00ff00ff00ff.bak",
    "replay-build",
    "replay.old",
    "lost+found",
    "registry.journal",
    "cup.stored",
)


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_only_what_has_a_name_that_was_given_is_swept(tmp_path: Path) -> None:
    for name in (*FOREIGN, "pool-7-0123456789abcdef.journal.new", "replay.order"):
        (tmp_path / name).write_bytes(b"x")
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "000000000000000a").mkdir(parents=True)
    for name in ("000000000000000a.root", "0000000000000014.root.new", "a.root.new", "copy.new"):
        (checkpoints / name).write_bytes(b"x")
    for name in ("sync-00ff00ff00ff00ff", "sync-11ff00ff00ff00ff", "replay"):
        (tmp_path / name / "files").mkdir(parents=True)
    swept = leftovers.sweep_unfinished(tmp_path)
    assert swept == ["pool-7-0123456789abcdef.journal.new", "0000000000000014.root.new"]
    assert _names(checkpoints) == {
        "000000000000000a",
        "000000000000000a.root",
        "a.root.new",
        "copy.new",
    }
    assert leftovers.sweep_syncs(tmp_path, bytes.fromhex("11ff00ff00ff00ff") + bytes(24)) == [
        "sync-00ff00ff00ff00ff"
    ]
    assert leftovers.sweep_replays(tmp_path) == ["replay", "replay.order"]
    assert _names(tmp_path) == {*FOREIGN, "checkpoints", "sync-11ff00ff00ff00ff"}
    assert leftovers.sweep_syncs(tmp_path, b"") == ["sync-11ff00ff00ff00ff"]
    assert not leftovers.sweep_unfinished(tmp_path) and not leftovers.sweep_replays(tmp_path)


def test_pools_of_other_epochs_are_swept_and_copies_of_pools_are_not(tmp_path: Path) -> None:
    names = ("pool-1-abc.journal", "pool-2-abc.journal", "pool-2-def.journal")
    copies = ("pool-copy.journal", "pool-1-abc.journal.bak", "pool-1-abc.journal.damaged")
    for name in (*names, *copies):
        (tmp_path / name).write_bytes(b"x")
    swept = leftovers.sweep_pools(tmp_path, tmp_path / names[1])
    assert swept == [names[0], names[2]] and _names(tmp_path) == {names[1], *copies}


def test_a_diverged_state_is_kept_until_the_subnet_is_far_past_it(tmp_path: Path) -> None:
    aside = tmp_path / leftovers.DIVERGED
    for height in (100, 200):
        (aside / f"{height:016x}").mkdir(parents=True)
    assert not leftovers.sweep_diverged(tmp_path, 200) and aside.is_dir()
    assert leftovers.sweep_diverged(tmp_path, 201) == [leftovers.DIVERGED]
    assert not leftovers.sweep_diverged(tmp_path, 10**9)
    aside.mkdir()
    assert leftovers.sweep_diverged(tmp_path, 1)
