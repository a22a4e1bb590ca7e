"""Bytes that others fixed: every vector of the IC that we have passes, every broken one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replica.client import folders
from replica.protocol import certificate, hash_tree, manifest
from replica.protocol.errors import Malformed, NotVerified, Rejected
from replica.protocol.ids import Principal

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "state_vectors.json").read_text()
)
MANIFESTS, TREES, CERTIFICATES = (
    VECTORS["manifest"],
    VECTORS["hash_tree"],
    VECTORS["certificates"],
)
ROOT_KEY = bytes.fromhex(CERTIFICATES["ic_root_key_der_hex"])
FILES = {
    "root.bin": bytes(1000),
    "subdir/memory": b"\x01" * 2048,
    "subdir/metadata": b"\x02" * 1050,
    "subdir/queue": b"",
}


def manifest_of_table(table: dict[str, Any], version: int) -> manifest.Manifest:
    files = [manifest.FileInfo(p, s, bytes.fromhex(h)) for p, s, h in table["file_table"]]
    chunks = [manifest.ChunkInfo(i, s, o, bytes.fromhex(h)) for i, s, o, h in table["chunk_table"]]
    return manifest.Manifest(version, tuple(files), tuple(chunks))


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_root_of_a_real_subnets_manifest(version: int) -> None:
    table = MANIFESTS["testcase_1canister"]
    expected = table.get(f"root_v{version}") or table[f"derived_root_v{version}"]
    assert manifest.root(manifest_of_table(table, version)).hex() == expected


def test_encoding_of_a_real_subnets_manifest() -> None:
    table = MANIFESTS["testcase_1canister"]
    assert manifest.encode(manifest_of_table(table, 2)).hex() == table["encoded_v2_hex"]


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_manifest_of_a_folder(version: int, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    computed = folders.manifest_of(tmp_path, version, 1024)
    expected = MANIFESTS["simple_dir"]["versions"][f"v{version}"]
    assert manifest.root(computed).hex() == expected["root"]
    assert manifest.encode(computed).hex() == expected["encoded"]


def test_known_hashes() -> None:
    derived = MANIFESTS["derived"]
    assert manifest.file_hash([]).hex() == derived["empty_file_hash"]
    assert manifest.chunk_hash(bytes(1 << 20)).hex() == derived["zero_1MiB_chunk_hash"]


@pytest.mark.parametrize("vector", [v for v in TREES["vectors"] if "cbor" in v], ids=str)
def test_hash_tree_vectors(vector: dict[str, Any]) -> None:
    tree = hash_tree.decode(bytes.fromhex(vector["cbor"]))
    assert tree.digest.hex() == vector["root"]
    for path, expected in vector.get("lookups", []):
        found = hash_tree.lookup(tree, [p.encode() for p in path])
        if isinstance(found, hash_tree.Leaf):
            assert found.value.decode() == expected
        else:
            assert type(found).__name__ == expected


def test_pruning_the_full_tree_gives_the_pruned_vector() -> None:
    full, pruned = TREES["vectors"][0], TREES["vectors"][1]
    tree = hash_tree.decode(bytes.fromhex(full["cbor"]))
    paths = [[p.encode() for p in path] for path in pruned["pruned_with_paths"]]
    made = hash_tree.witness(tree, paths)
    assert hash_tree.encode(made).hex() == pruned["cbor"]


@pytest.mark.parametrize("item", CERTIFICATES["items"], ids=lambda i: str(i["name"]))
def test_real_certificates(item: dict[str, Any]) -> None:
    raw = bytes.fromhex(item["cert_hex"])
    if not item["check"]["sig_ok"]:
        with pytest.raises(NotVerified):
            certificate.verify(raw, ROOT_KEY)
        return
    verified = certificate.verify(raw, ROOT_KEY)
    assert verified.tree.digest.hex() == item["check"]["root_hash"]
    assert verified.time_ns == item["check"]["time_ns"]


def real(name: str) -> bytes:
    return bytes.fromhex(
        next(i["cert_hex"] for i in CERTIFICATES["items"] if i["name"].endswith(name))
    )


def test_a_canister_outside_the_subnets_range_is_refused() -> None:
    raw = real("ivg37_delegated_v2.bin")
    inside = Principal.from_text("ivg37-qiaaa-aaaab-aaaga-cai")
    assert certificate.verify(raw, ROOT_KEY, inside)
    with pytest.raises(NotVerified, match="not responsible"):
        certificate.verify(raw, ROOT_KEY, Principal.from_text("ryjl3-tyaaa-aaaaa-aaaba-cai"))


def test_pruned_ranges_don_t_count_as_permission() -> None:
    inside = Principal.from_text("ivg37-qiaaa-aaaab-aaaga-cai")
    with pytest.raises(NotVerified):
        certificate.verify(real("ivg37_delegated_v2_pruned_subnet.bin"), ROOT_KEY, inside)


@pytest.mark.parametrize("position", range(0, 1000, 37))
def test_any_altered_byte_of_a_certificate_is_noticed(position: int) -> None:
    raw = bytearray(real("ivg37_delegated_v2.bin"))
    raw[position] ^= 1
    try:
        altered = certificate.verify(bytes(raw), ROOT_KEY)
    except Rejected:
        return
    original = certificate.verify(real("ivg37_delegated_v2.bin"), ROOT_KEY)
    assert altered.tree.digest == original.tree.digest, "another tree passed as signed"


def test_another_root_key_is_refused() -> None:
    key = bytearray(ROOT_KEY)
    key[-1] ^= 1
    with pytest.raises((NotVerified, Malformed)):
        certificate.verify(real("ivg37_delegated_v2.bin"), bytes(key))


def test_sorting_of_paths_is_by_component() -> None:
    made = manifest.assemble([("a-b/c", 0, []), ("a/b", 0, [])])
    assert [f.path for f in made.files] == ["a/b", "a-b/c"]


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../b", "a//b", ".", "a/./b"])
def test_manifest_paths_that_leave_the_folder_are_refused(path: str) -> None:
    made = manifest.assemble([(path, 0, [])])
    with pytest.raises(Malformed):
        manifest.decode(manifest.encode(made))


def test_a_manifest_whose_file_hash_lies_is_refused() -> None:
    chunk = manifest.ChunkInfo(0, 3, 0, manifest.chunk_hash(b"abc"))
    lying = manifest.Manifest(3, (manifest.FileInfo("a", 3, bytes(32)),), (chunk,))
    with pytest.raises(NotVerified):
        manifest.decode(manifest.encode(lying))
