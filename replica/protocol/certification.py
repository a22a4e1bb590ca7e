"""What a certification shows beside the signed root: of which epoch and height the state is.

The signed message is the IC's and holds the root alone. So a certification carries a witness, a
pruned tree with the leaves /metadata/epoch and /metadata/height, which hashes to that root. A root
has one witness: it shows nothing else.

Source: interface specification, "Certification"; the leaves are our own.
"""

from __future__ import annotations

from functools import lru_cache

from replica.protocol import hash_tree
from replica.protocol.errors import Malformed
from replica.protocol.hashing import leb128

EPOCH_PATH, HEIGHT_PATH = (b"metadata", b"epoch"), (b"metadata", b"height")
POSITION_PATHS = [EPOCH_PATH, HEIGHT_PATH]
WITNESS_BYTES_MAX = 1024
"""Pruned siblings from the root down to two leaves: some 400 bytes with ten top-level labels."""


@lru_cache(maxsize=1024)
def witness_fault(root: bytes, witness: bytes, epoch: int, height: int) -> str | None:
    """Return what is wrong with the claim that a root is the state tree of an epoch and height."""
    if len(witness) > WITNESS_BYTES_MAX:
        return f"a witness of {len(witness)} bytes; it has at most {WITNESS_BYTES_MAX}"
    try:
        tree = hash_tree.decode(witness)
    except Malformed as error:
        return str(error)
    if tree.digest != root:
        return "the witness does not hash to the root"
    if hash_tree.lookup_leaf(tree, HEIGHT_PATH) != leb128(height):
        return "the witness shows another height"
    if hash_tree.lookup_leaf(tree, EPOCH_PATH) != leb128(epoch):
        return "the witness shows another epoch"
    if hash_tree.encode(hash_tree.witness(tree, POSITION_PATHS)) != witness:
        return "the witness shows more than epoch and height"
    return None
