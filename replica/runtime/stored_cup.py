"""The newest catch-up package that a node acts on, as it lies on its disk.

No signature can be asked for, as a registry's package has none; so the file has a checksum.
"""

from __future__ import annotations

from pathlib import Path

from replica.protocol import cup
from replica.protocol.cup import CatchUpPackage
from replica.runtime.durable import read_checked, write_checked


def read(path: Path) -> CatchUpPackage:
    """Raises: FileNotFoundError; Malformed for a file that is damaged."""
    return cup.decode(read_checked(path))


def write(path: Path, package: CatchUpPackage, *, aside: str = ".new") -> None:
    """Replace it. `aside`: see `write_durably`."""
    write_checked(path, package.encode(), aside=aside)
