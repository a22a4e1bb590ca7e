"""The releases on this node: downloaded ahead, verified, two kept, started by their SHA-256.

A download runs beside the checks, one at a time. A package that does not have the elected hash is
thrown away and the next source is asked: first the URLs in the registry, then the subnet's other
orchestrators, which hand on what they hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2

from replica.client import local_registry as keys
from replica.client import release
from replica.client.agent import Task, World
from replica.client.local_registry import LocalRegistry
from replica.protocol.errors import NotFound, ReprisError, Unavailable
from replica.protocol.messages import ic_pb2 as pb
from replica.protocol.messages import parse
from replica.runtime.settings import NodeSettings

KEPT = 2
DOWNLOAD_S_MAX = 120.0
RETRY_S = 1.0
LOG_CHARACTERS_MAX = 400


class Releases:
    def __init__(
        self,
        settings: NodeSettings,
        records: LocalRegistry,
        peers: Callable[[], list[str]],
        log: Callable[[str], None],
        world: World,
    ) -> None:
        """`peers`: base URLs of the other orchestrators of this node's subnet."""
        self.settings, self.records, self.peers, self.log = settings, records, peers, log
        self.world = world
        self.root = settings.releases
        self._download_task: Task | None = None
        self._unpacking = world.lock()
        self._used: list[str] = []
        self.last_error = ""

    def record(self, version: str) -> pb.ReplicaVersionRecord:
        """Raises: NotFound for a release that was never elected."""
        return parse(pb.ReplicaVersionRecord, self.records.need(keys.replica_version(version)))

    def folder(self, version: str) -> Path:
        """Return the folder of a release that is here. Raises: Unavailable, NotFound."""
        folder = self.root / self.record(version).release_package_sha256_hex
        if not folder.is_dir():
            raise Unavailable(f"the release {version[:12]} is not here yet")
        return folder

    def ready(self, version: str) -> Path:
        """Return the folder of a release to start something from: it is what its package says.

        One that has rotted, or that a crash left half there, is unpacked anew from the package
        beside it. Raises: Unavailable, NotFound.
        """
        folder = self.folder(version)
        with self._unpacking:
            if release.is_sound(self.root, folder.name):
                return folder
            self.log(f"the release {version[:12]} is not what its package says: unpacked anew")
            if release.restore(self.root, folder.name):
                return folder
        raise Unavailable(f"the release {version[:12]} and its package are damaged: fetched again")

    def sweep(self) -> None:
        """Remove what a crash has left. Only while nothing is downloaded."""
        removed = release.sweep(self.root)
        if removed:
            self.log(
                f"removes what was left of releases: {', '.join(removed)}"[:LOG_CHARACTERS_MAX]
            )

    def has(self, version: str) -> bool:
        try:
            return self.folder(version).is_dir()
        except ReprisError:
            return False

    def package(self, sha256_hex: str) -> bytes:
        """Return a package that is held here, for a peer. Raises: NotFound."""
        path = self.root / f"{sha256_hex}.zip"
        if len(sha256_hex) == 64 and sha256_hex.isalnum():
            with suppress(FileNotFoundError):  # also when it is dropped just now
                return path.read_bytes()
        raise NotFound(f"no release package {sha256_hex[:64]} here")

    def take(self, package: bytes, sha256_hex: str) -> None:
        """Verify and unpack a package; see `replica.client.release.unpack`."""
        with self._unpacking:
            release.unpack(package, self.root, sha256_hex)

    # -- downloading

    def prepare(self, versions: list[str]) -> None:
        """Begin to download what is missing of these, and drop what is older than two releases."""
        if self._download_task is not None and self._download_task.is_alive():
            return
        missing = [v for v in versions if not self.has(v)]
        if not missing:
            self._prune(versions)
            return
        self._download_task = self.world.spawn(partial(self._download, missing[0]))

    def _download(self, version: str) -> None:
        try:
            found = self.record(version)
        except ReprisError as error:
            self.last_error = str(error)
            return
        wanted = found.release_package_sha256_hex
        urls = list(found.release_package_urls)
        if urls:
            start = sum(bytes(self.settings.node)) % len(urls)
            urls = urls[start:] + urls[:start]
        urls += [f"{peer}/release/{wanted}" for peer in self.peers()]
        for url in urls:
            try:
                self.take(self._get(url), wanted)
            except (ReprisError, httpx2.HTTPError, OSError) as error:
                text = f"release {version[:12]} from {url}: {error or type(error).__name__}"
                if text != self.last_error:
                    self.log(text)
                self.last_error = text
                continue
            self.log(f"release {version[:12]} is here, verified")
            self.last_error = ""
            return
        self.world.pause(RETRY_S)

    def _get(self, url: str) -> bytes:
        body = bytearray()
        with (
            self.world.client(10.0) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            for part in response.iter_bytes():
                body += part
                if len(body) > release.PACKAGE_BYTES_MAX:
                    raise Unavailable(
                        f"the package has more than {release.PACKAGE_BYTES_MAX} bytes"
                    )
        return bytes(body)

    def _prune(self, versions: list[str]) -> None:
        """Keep what is wanted now and what was used before it: two releases at least."""
        for version in reversed(versions):
            digest = self.record(version).release_package_sha256_hex
            if digest in self._used:
                self._used.remove(digest)
            self._used.append(digest)
        keep = set(self._used[-max(KEPT, len(versions)) :])
        held = [p for p in self.root.iterdir() if p.is_dir() and len(p.name) == 64]
        if len(held) <= KEPT:
            return
        for path in held:
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)
                release.package_path(self.root, path.name).unlink(missing_ok=True)
                release.files_path(self.root, path.name).unlink(missing_ok=True)
