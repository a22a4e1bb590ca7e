"""Forgetting the state of the subnet that a node leaves: whatever cuts it short, it is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica.runtime.settings import NodeSettings
from tests.orchestrator.test_attestation import settings  # noqa: F401

FOLDERS = ("checkpoints/0000000000000014/canisters", "sync-00", "replay", "diverged_checkpoints")
FILES = ("pool-1-aa.journal", "state.db", "state.db-wal", "zz", "cup.stored", "registry.journal")


class Killed(BaseException):
    pass


def fill(data: Path) -> None:
    for name in FOLDERS:
        (data / name).mkdir(parents=True, exist_ok=True)
        (data / name / "file").write_bytes(b"of the subnet that is left")
    for name in FILES:
        (data / name).write_bytes(b"content")


@pytest.mark.parametrize("step", range(20))
def test_the_package_that_tells_of_the_state_goes_after_it(
    step: int,
    settings: NodeSettings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In any order of the folder, a kill could leave checkpoints that nobody would remove again."""
    fill(settings.data)
    left, order = [step], list[str]()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            order.append(f"{name} {Path(arguments[0]).name}")
            return real(*arguments, **named)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", counted("unlink", os.unlink))
        patch.setattr(Path, "unlink", counted("unlink", Path.unlink))
        patch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
        try:
            settings.clear_state()
        except Killed:
            rest = {p.name for p in settings.data.iterdir()} - {"registry.journal"}
            assert "cup.stored" in rest or not rest, "else nobody would go on with it"
    settings.clear_state()
    assert os.listdir(settings.data) == ["registry.journal"]


def test_the_folder_is_synced_before_the_package_goes(
    settings: NodeSettings,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a power cut may bring the state back, and not the package."""
    fill(settings.data)
    held: list[set[str]] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (held.append(set(os.listdir(settings.data))), real(fd))[1]
    )
    settings.clear_state()
    assert held[0] == {"cup.stored", "registry.journal"} and held[-1] == {"registry.journal"}
