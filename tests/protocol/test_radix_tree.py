"""The tree of requests: its shape follows from the labels alone, and any verifier takes it."""

from __future__ import annotations

import random

import pytest

from replica.protocol import hash_tree, radix_tree
from replica.protocol.hash_tree import ABSENT, EMPTY, Tree, leaf
from replica.protocol.hashing import sha256


def labels(count: int, seed: int) -> list[bytes]:
    return [sha256(b"%d %d" % (seed, i)) for i in range(count)]


def built(content: dict[bytes, bytes]) -> Tree:
    return radix_tree.update(EMPTY, {k: leaf(v) for k, v in content.items()})


@pytest.mark.parametrize("seed", range(8))
def test_changes_in_any_order_give_the_tree_of_what_is_there(seed: int) -> None:
    dice = random.Random(seed)
    known = labels(200, seed) + [
        bytes([i]) + bytes(30) + bytes([j]) for i in (0, 128) for j in (0, 1)
    ]
    tree: Tree = EMPTY
    content: dict[bytes, bytes] = {}
    for _ in range(60):
        changes: dict[bytes, Tree | None] = {}
        for label in dice.sample(known, dice.randrange(0, 30)):
            if dice.random() < 0.4:
                changes[label] = None
                content.pop(label, None)
            else:
                content[label] = dice.randbytes(3)
                changes[label] = leaf(content[label])
        tree = radix_tree.update(tree, changes)
        assert tree == built(content)
    gone: dict[bytes, Tree | None] = dict.fromkeys(content)
    assert radix_tree.update(tree, gone) == EMPTY


def test_each_label_is_found_and_each_other_proven_absent() -> None:
    content = {label: bytes([i % 251]) for i, label in enumerate(labels(500, 1))}
    tree = built(content)
    for label, value in content.items():
        shown = hash_tree.decode(hash_tree.encode(hash_tree.witness(tree, [(label,)])))
        assert shown.digest == tree.digest
        assert hash_tree.lookup_leaf(shown, [label]) == value
    for label in labels(50, 2):
        shown = hash_tree.decode(hash_tree.encode(hash_tree.witness(tree, [(label,)])))
        assert shown.digest == tree.digest
        assert hash_tree.lookup(shown, [label]) is ABSENT


def test_a_small_change_shares_all_but_a_path() -> None:
    content = dict.fromkeys(labels(4096, 3), b"x")
    tree, (new,) = built(content), labels(1, 4)
    after = radix_tree.update(tree, {new: leaf(b"y")})

    def nodes(node: Tree) -> set[int]:
        found, waiting = set(), [node]
        while waiting:
            node = waiting.pop()
            found.add(id(node))
            if isinstance(node, hash_tree.Fork):
                waiting += [node.left, node.right]
        return found

    made = nodes(after) - nodes(tree)
    assert 2 < len(made) < 40
    assert radix_tree.update(after, {new: None}).digest == tree.digest
