"""A hash tree of many hashed labels that changes a little at a time.

Verifiers take any binary tree whose labels are in order. Where siblings are few, they are paired by
position, as on the IC (`hash_tree.join`); but then one more label moves all that follow, and a
subnet that answers a thousand requests a second would hash its whole history of requests each
round. Here a fork stands where labels first differ in a bit: the shape is a function of the set of
labels, never of the order in which they came, and a change touches one path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from replica.protocol.hash_tree import EMPTY, FORK, Empty, Fork, Labeled, Tree, labeled

LABEL_BYTES = 32
_BITS = 8 * LABEL_BYTES

_Change = tuple[int, bytes, Tree | None]
"""The label as a number, the label, its subtree (None: it goes)."""


@dataclass(slots=True, unsafe_hash=True)
class Branch(Fork):
    """A fork of labels that agree in all bits above `bit`, counted from the lowest."""

    bit: int
    sample: int
    """One of the labels."""


def update(tree: Tree, changes: Mapping[bytes, Tree | None]) -> Tree:
    """Return a tree that this module made, or `EMPTY`, with labels set or (None) removed.

    Labels are hashes of 32 bytes: so paths stay short whoever chooses what is hashed.
    """
    assert all(len(label) == LABEL_BYTES for label in changes)
    ordered = [(int.from_bytes(k, "big"), k, changes[k]) for k in sorted(changes)]
    return _update(tree, ordered)


def _update(tree: Tree, changes: list[_Change]) -> Tree:
    if not changes:
        return tree
    if isinstance(tree, Empty):
        return _make([c for c in changes if c[2] is not None])
    if isinstance(tree, Branch):
        sample, bit = tree.sample, tree.bit
    else:
        assert isinstance(tree, Labeled), "not a tree that this module made"
        sample, bit = int.from_bytes(tree.label, "big"), -1
    # Changes are in order: if all labels share a prefix, the outermost two and the sample do.
    apart = ((sample ^ changes[0][0]) | (sample ^ changes[-1][0])).bit_length() - 1
    if apart > bit:
        low, high = _split(changes, apart)
        if sample >> apart & 1:
            return _branch(_update(EMPTY, low), _update(tree, high), apart)
        return _branch(_update(tree, low), _update(EMPTY, high), apart)
    if isinstance(tree, Branch):
        if len(changes) == 1:  # most of the way down
            if changes[0][0] >> bit & 1:
                return _branch(tree.left, _update(tree.right, changes), bit)
            return _branch(_update(tree.left, changes), tree.right, bit)
        low, high = _split(changes, bit)
        return _branch(_update(tree.left, low), _update(tree.right, high), bit)
    ((_, label, subtree),) = changes
    return EMPTY if subtree is None else labeled(label, subtree)


def _make(changes: list[_Change]) -> Tree:
    if not changes:
        return EMPTY
    if len(changes) == 1:
        _, label, subtree = changes[0]
        assert subtree is not None
        return labeled(label, subtree)
    bit = (changes[0][0] ^ changes[-1][0]).bit_length() - 1
    low, high = _split(changes, bit)
    return _branch(_make(low), _make(high), bit)


def _split(changes: list[_Change], bit: int) -> tuple[list[_Change], list[_Change]]:
    """Cut ordered changes that agree above a bit into those without and those with it."""
    first, end = 0, len(changes)
    while first < end:
        middle = (first + end) // 2
        if changes[middle][0] >> bit & 1:
            end = middle
        else:
            first = middle + 1
    return changes[:first], changes[first:]


def _branch(left: Tree, right: Tree, bit: int) -> Tree:
    if isinstance(left, Empty):
        return right
    if isinstance(right, Empty):
        return left
    sample = left.sample if isinstance(left, Branch) else _label(left)
    return Branch(left, right, sha256(FORK + left.digest + right.digest).digest(), bit, sample)


def _label(tree: Tree) -> int:
    assert isinstance(tree, Labeled)
    return int.from_bytes(tree.label, "big")
