"""The hash tree of certificates: labelled trees, witnesses, look-ups and root hashes.

A `Tree` is what travels in a certificate (some branches pruned to their hashes); a `LabeledTree`
is what a replica holds: nested dicts of labels to subtrees or leaf bytes. `witness` cuts the
former from the latter. Shape: siblings sorted by label, paired per level, an odd one carried up.

Source: interface specification "Certification"; reference/state.md §2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from replica.protocol import cbor
from replica.protocol.errors import Malformed
from replica.protocol.hashing import domain, domain_hash

DEPTH_MAX = 127

Path = Sequence[bytes]
LabeledTree = Mapping[bytes, Any] | bytes
"""Nested mapping of labels to subtrees; bytes are a leaf."""


# Never changed once made; not `frozen`, since that takes five times as long, for every node.


@dataclass(slots=True, unsafe_hash=True)
class Empty:
    digest: bytes


@dataclass(slots=True, unsafe_hash=True)
class Fork:
    left: Tree
    right: Tree
    digest: bytes


@dataclass(slots=True, unsafe_hash=True)
class Labeled:
    label: bytes
    subtree: Tree
    digest: bytes


@dataclass(slots=True, unsafe_hash=True)
class Leaf:
    value: bytes
    digest: bytes


@dataclass(slots=True, unsafe_hash=True)
class Pruned:
    digest: bytes


Tree = Empty | Fork | Labeled | Leaf | Pruned

EMPTY = Empty(domain_hash("ic-hashtree-empty"))

# Every block builds thousands of nodes: what is hashed first is put together once.
FORK, LABELED, LEAF = [domain(f"ic-hashtree-{kind}") for kind in ("fork", "labeled", "leaf")]


def fork(left: Tree, right: Tree) -> Fork:
    return Fork(left, right, sha256(FORK + left.digest + right.digest).digest())


def labeled(label: bytes, subtree: Tree) -> Labeled:
    return Labeled(label, subtree, sha256(LABELED + label + subtree.digest).digest())


def leaf(value: bytes) -> Leaf:
    return Leaf(value, sha256(LEAF + value).digest())


def build(tree: LabeledTree | Tree) -> Tree:
    """Turn nested mappings into a tree; a `Tree` found inside (a cached subtree) is kept."""
    if isinstance(tree, Empty | Fork | Labeled | Leaf | Pruned):
        return tree
    if isinstance(tree, bytes):
        return leaf(tree)
    return join([labeled(label, build(tree[label])) for label in sorted(tree)])


def join(siblings: list[Tree]) -> Tree:
    """Combine siblings, already in label order, into one tree."""
    if not siblings:
        return EMPTY
    level: list[Tree] = siblings
    while len(level) > 1:
        paired: list[Tree] = [fork(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


# --- witnesses -------------------------------------------------------------------------------


def witness(tree: Tree, paths: Iterable[Path]) -> Tree:
    """Prune all that no path needs; a path that does not exist keeps its neighbours as proof."""
    wanted = [tuple(p) for p in paths]
    return _prune(tree, wanted) if wanted else Pruned(tree.digest)


def _prune(tree: Tree, paths: list[tuple[bytes, ...]]) -> Tree:
    if not paths:
        return Pruned(tree.digest)
    if any(not p for p in paths) or isinstance(tree, Leaf | Empty | Pruned):
        return tree
    labels = list(_labels(tree))
    by_label: dict[bytes, list[tuple[bytes, ...]]] = {}
    shown: set[bytes] = set()
    for path in paths:
        head = path[0]
        if head in labels:
            by_label.setdefault(head, []).append(path[1:])
        else:
            shown.update(_neighbours(labels, head))
    return _keep(tree, by_label, shown)


def _neighbours(labels: list[bytes], absent: bytes) -> set[bytes]:
    before = [label for label in labels if label < absent]
    after = [label for label in labels if label > absent]
    return {*before[-1:], *after[:1]}


def _labels(tree: Tree) -> Iterable[bytes]:
    if isinstance(tree, Fork):
        yield from _labels(tree.left)
        yield from _labels(tree.right)
    elif isinstance(tree, Labeled):
        yield tree.label


def _keep(tree: Tree, by_label: dict[bytes, list[tuple[bytes, ...]]], shown: set[bytes]) -> Tree:
    if isinstance(tree, Fork):
        left, right = _keep(tree.left, by_label, shown), _keep(tree.right, by_label, shown)
        if isinstance(left, Pruned | Empty) and isinstance(right, Pruned | Empty):
            return Pruned(tree.digest)
        return Fork(left, right, tree.digest)
    if isinstance(tree, Labeled):
        if tree.label in by_label:
            return Labeled(tree.label, _prune(tree.subtree, by_label[tree.label]), tree.digest)
        if tree.label in shown:
            return Labeled(tree.label, Pruned(tree.subtree.digest), tree.digest)
        return Pruned(tree.digest)
    return tree


# --- look-ups --------------------------------------------------------------------------------


class Absent:
    """The tree proves that the path does not exist."""


class Unknown:
    """The tree was pruned where the path would be: nothing can be said."""


ABSENT, UNKNOWN = Absent(), Unknown()


def lookup(tree: Tree, path: Path) -> Tree | Absent | Unknown:
    """Find the subtree at a path, or what the tree proves about its absence."""
    node: Tree = tree
    for label in path:
        found = _find(node, label)
        if isinstance(found, Absent | Unknown):
            return found
        node = found
    return UNKNOWN if isinstance(node, Pruned) else node


def lookup_leaf(tree: Tree, path: Path) -> bytes | None:
    """Return the leaf's bytes; None when absent, unknown, or not a leaf."""
    found = lookup(tree, path)
    return found.value if isinstance(found, Leaf) else None


def children(tree: Tree) -> list[tuple[bytes, Tree]]:
    """Return the labelled children that are not pruned, in order."""
    if isinstance(tree, Fork):
        return children(tree.left) + children(tree.right)
    return [(tree.label, tree.subtree)] if isinstance(tree, Labeled) else []


def _flatten(tree: Tree, out: list[Tree]) -> list[Tree]:
    if isinstance(tree, Fork):
        _flatten(tree.left, out)
        _flatten(tree.right, out)
    elif not isinstance(tree, Empty):
        out.append(tree)
    return out


def _find(tree: Tree, label: bytes) -> Tree | Absent | Unknown:
    previous_is_gap = False
    for node in _flatten(tree, []):
        if isinstance(node, Labeled):
            if node.label == label:
                return node.subtree
            if node.label > label:
                return UNKNOWN if previous_is_gap else ABSENT
            previous_is_gap = False
        elif isinstance(node, Pruned):
            previous_is_gap = True
        else:  # a leaf where labels are expected
            return ABSENT
    return UNKNOWN if previous_is_gap else ABSENT


# --- encoding --------------------------------------------------------------------------------


def to_plain(tree: Tree) -> Any:
    """Return the nested arrays of the certificate format."""
    if isinstance(tree, Fork):
        return [1, to_plain(tree.left), to_plain(tree.right)]
    if isinstance(tree, Labeled):
        return [2, tree.label, to_plain(tree.subtree)]
    if isinstance(tree, Leaf):
        return [3, tree.value]
    if isinstance(tree, Pruned):
        return [4, tree.digest]
    return [0]


def from_plain(plain: Any, depth: int = 0) -> Tree:
    """Undo `to_plain`; labels must strictly increase. Raises: Malformed."""
    tree = _from_plain(plain, depth)
    _check_order(tree)
    return tree


def _from_plain(plain: Any, depth: int) -> Tree:
    if depth > DEPTH_MAX:
        raise Malformed(f"hash tree deeper than {DEPTH_MAX}")
    match plain:
        case [0]:
            return EMPTY
        case [1, left, right]:
            return fork(_from_plain(left, depth + 1), _from_plain(right, depth + 1))
        case [2, bytes(label), subtree]:
            return labeled(label, _from_plain(subtree, depth + 1))
        case [3, bytes(value)]:
            return leaf(value)
        case [4, bytes(digest)] if len(digest) == 32:
            return Pruned(digest)
    raise Malformed("not a hash tree node")


def _check_order(tree: Tree) -> None:
    labels = list(_labels(tree))
    if any(a >= b for a, b in zip(labels, labels[1:])):
        raise Malformed("hash tree labels out of order")
    for node in _flatten(tree, []):
        if isinstance(node, Labeled):
            _check_order(node.subtree)


def encode(tree: Tree, *, tagged: bool = False) -> bytes:
    return cbor.dumps(to_plain(tree), tagged=tagged)


def decode(data: bytes) -> Tree:
    return from_plain(cbor.loads(data))
