"""Upgrades: row migration, failures that leave no trace, snapshots, and what code may not do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from replica.execution.management import INTERFACE
from replica.protocol import candid, canonical, manifest
from replica.protocol.hashing import sha256
from replica.protocol.ids import MANAGEMENT_CANISTER, Height, canister_id
from replica.state import checkpoint
from tests.nns.harness import ADMIN, Machine, Refused, make_bundle

BOOK = canister_id(100)
OLD_DID = """service : () -> {
  fill : (nat64, nat64) -> ();
  get : (nat64) -> (opt record { id : nat64; owner : text });
  count : () -> (nat64);
}"""
OLD = """
from replica.abi.v1 import query, update

@update
def fill(ctx, start, count):
    for number in range(start, start + count):
        ctx.table("entries").put(id=number, owner=f"owner {number}")

@query
def get(ctx, number):
    return ctx.table("entries").get(number)

@query
def count(ctx):
    return sum(1 for _ in ctx.table("entries").range())
"""
OLD_TABLES = """
[tables.entries]
key = ["id"]
columns = { id = "nat64", owner = "text" }
"""
NEW_DID = """service : () -> {
  get : (nat64) -> (opt record { id : nat64; owner : text; length : nat64 });
  by_owner : (text) -> (vec nat64);
  count : () -> (nat64);
}"""
NEW_TABLES = """
[tables.entries]
key = ["id"]
columns = { id = "nat64", owner = "text", length = "nat64" }
indexes = { unique_owner = ["owner"] }
"""
NEW = """
from replica.abi.v1 import migrate, post_upgrade, query

@migrate
def entries(row):
    return {**row, "owner": row["owner"].upper(), "length": len(row["owner"])}

@query
def get(ctx, number):
    return ctx.table("entries").get(number)

@query
def by_owner(ctx, owner):
    return [r["id"] for r in ctx.table("entries").by_index("unique_owner", owner)]

@query
def count(ctx):
    return sum(1 for _ in ctx.table("entries").range())
"""
OLD_INTERFACE, NEW_INTERFACE = candid.parse(OLD_DID), candid.parse(NEW_DID)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "state")
    made.create(BOOK, [ADMIN.principal])
    install(made, make_bundle(tmp_path / "old", OLD, OLD_DID, OLD_TABLES), "install")
    yield made


def install(machine: Machine, module: bytes, mode: str = "upgrade") -> None:
    machine.trusted += (sha256(module),)
    machine.install(BOOK, module, mode=mode)


def contents(machine: Machine) -> tuple[bytes, dict[str, list[tuple[bytes, bytes]]]]:
    """All of a canister: its record with its code, and every row it could see."""
    from replica.state.placement import all_tables

    canister = machine.state._tip.canisters[BOOK]
    rows = machine.state._rows()
    return canonical.encode(canister), {
        p.name: list(rows.scan(p.name, b"", None)) for p in all_tables(canister)
    }


def root_of(machine: Machine, folder: Path) -> bytes:
    folder.mkdir(parents=True)
    checkpoint.Writer(folder, None).write(
        machine.state._tip, machine.state._rows(), checkpoint.Changed()
    )
    return manifest.root(checkpoint.compute_manifest(folder))


def test_a_changed_table_opens_a_generation_and_its_rows_move(
    machine: Machine, tmp_path: Path
) -> None:
    machine.call(BOOK, OLD_INTERFACE, "fill", 0, 300)
    machine.certify()
    machine.block(checkpoint=True)
    install(machine, make_bundle(tmp_path / "new", NEW, NEW_DID, NEW_TABLES))
    assert machine.results[-1].moved_rows == 300
    row = machine.query(BOOK, NEW_INTERFACE, "get", 7)
    assert row == {"id": 7, "owner": "OWNER 7", "length": 7}
    assert machine.query(BOOK, NEW_INTERFACE, "by_owner", "OWNER 7") == [7]
    machine.block(checkpoint=True)
    incremental = machine.state.checkpoint_root_at(machine.height)
    assert incremental == root_of(machine, tmp_path / "scratch")
    snapshot, changes = checkpoint.load(machine.state.folder(machine.height), Height(9))
    assert snapshot.canisters == machine.state._tip.canisters
    names = {n: len(rows) for n, rows in changes.items()}
    assert names == {f"{BOOK.hex()}/entries@1": 300, f"{BOOK.hex()}/entries@1#unique_owner": 300}
    machine.certify()
    inspector = sa.inspect(machine.state.store.engine)
    assert "c100_sample_entries$g1" in inspector.get_table_names()
    assert "c100_sample_entries" in inspector.get_table_names(), "until a CUP is past it"
    machine.state.forget_below(machine.height)
    inspector = sa.inspect(machine.state.store.engine)
    assert "c100_sample_entries" not in inspector.get_table_names()
    assert machine.query(BOOK, NEW_INTERFACE, "count") == 300, "and from the database"


def test_new_optional_columns_need_no_code(machine: Machine, tmp_path: Path) -> None:
    machine.call(BOOK, OLD_INTERFACE, "fill", 0, 3)
    tables = OLD_TABLES.replace('owner = "text"', 'owner = "text", note = "opt text"')
    did = OLD_DID.replace("owner : text", "owner : text; note : opt text")
    install(machine, make_bundle(tmp_path / "new", OLD, did, tables))
    assert machine.call(BOOK, candid.parse(did), "get", 2)["note"] is None


def test_an_upgrade_loses_no_table_by_accident(machine: Machine, tmp_path: Path) -> None:
    before = contents(machine)
    gone = make_bundle(tmp_path / "gone", "", "service : () -> {}")
    with pytest.raises(Refused, match="loses the table entries"):
        install(machine, gone)
    silent = NEW.replace("@migrate\n", "")
    with pytest.raises(Refused, match="must say how its rows are moved"):
        install(machine, make_bundle(tmp_path / "silent", silent, NEW_DID, NEW_TABLES))
    assert contents(machine) == before
    machine.call(BOOK, OLD_INTERFACE, "fill", 0, 3)
    install(
        machine,
        make_bundle(tmp_path / "d", "", "service : () -> {}", 'dropped_tables = ["entries"]'),
    )
    old = make_bundle(tmp_path / "old", OLD, OLD_DID, OLD_TABLES)
    install(machine, old)
    assert machine.call(BOOK, OLD_INTERFACE, "count") == 0, "what was dropped stays dropped"


FAILURES = {
    "a row that breaks the migration": (
        NEW.replace("return {**row,", 'return {**row, "id": [][0],'),
        "moving rows failed: IndexError",
    ),
    "a row outside its column's domain": (
        NEW.replace('"length": len(row["owner"])', '"length": -1'),
        "is not a nat64",
    ),
    "rows that are not distinct": (
        NEW.replace('row["owner"].upper()', '"the same"'),
        "demands distinct values",
    ),
    "a migration without end": (
        NEW.replace("    return {**row,", "    while True:\n        pass\n    return {**row,"),
        "step budget",
    ),
    "a migration that grows a number": (
        NEW.replace('len(row["owner"])', "10 ** 10 ** 9"),
        "million bits",
    ),
    "post_upgrade that raises": (
        NEW + "\n@post_upgrade\ndef after(ctx):\n    raise ValueError('no')\n",
        "post_upgrade failed: ValueError",
    ),
    "post_upgrade that writes, then traps": (
        NEW
        + "\n@post_upgrade\ndef after(ctx):\n"
        + "    ctx.table('entries').put(id=999, owner='x', length=1)\n    return [][0]\n",
        "post_upgrade failed: IndexError",
    ),
    "post_upgrade without end": (
        NEW + "\n@post_upgrade\ndef after(ctx):\n    while True:\n        pass\n",
        "step budget",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_upgrade_leaves_code_and_rows_bit_for_bit(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    code, text = FAILURES[name]
    machine.call(BOOK, OLD_INTERFACE, "fill", 0, 120)
    before = contents(machine)
    with pytest.raises(Refused, match=text):
        install(machine, make_bundle(tmp_path / "bad", code, NEW_DID, NEW_TABLES))
    assert contents(machine) == before
    assert machine.call(BOOK, OLD_INTERFACE, "count") == 120
    rows = machine.state._rows()
    assert list(rows.scan(f"{BOOK.hex()}/entries@1", b"", None)) == []
    # The state is that of a node on which the attempt was a call that was merely refused.
    assert not machine.results[-2].moved_rows


def test_the_digest_of_a_refused_upgrade_knows_nothing_of_the_attempt(tmp_path: Path) -> None:
    """Nodes refuse different bad bundles: but for the answer, their states are the same."""
    states = []
    for number, name in enumerate(list(FAILURES)[:6]):
        machine = Machine(tmp_path / f"state{number}")
        machine.create(BOOK, [ADMIN.principal])
        install(machine, make_bundle(tmp_path / "old", OLD, OLD_DID, OLD_TABLES), "install")
        machine.call(BOOK, OLD_INTERFACE, "fill", 0, 10)
        with pytest.raises(Refused):
            install(
                machine,
                make_bundle(tmp_path / f"b{number}", FAILURES[name][0], NEW_DID, NEW_TABLES),
            )
        snapshot = machine.state._tip
        states.append((snapshot.canisters, machine.results[-1].rows.changes))
    assert all(s == states[0] for s in states)


def test_a_hundred_thousand_rows_move_in_one_upgrade(
    machine: Machine, tmp_path: Path, campaign: Counter[str]
) -> None:
    for start in range(0, 100_000, 20_000):
        machine.call(BOOK, OLD_INTERFACE, "fill", start, 20_000)
    machine.certify()
    began = time.perf_counter()
    install(machine, make_bundle(tmp_path / "new", NEW, NEW_DID, NEW_TABLES))
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    machine.certify()
    flushed = time.perf_counter() - began
    assert machine.results[-1].moved_rows == 100_000
    assert machine.query(BOOK, NEW_INTERFACE, "get", 99_999)["length"] == 11
    campaign["rows moved by an upgrade"] = 100_000
    campaign["milliseconds to move them"] = int(seconds * 1000)
    campaign["milliseconds to flush them"] = int(flushed * 1000)


# --- code and its limits -----------------------------------------------------------------------


def test_two_versions_of_a_canisters_code_never_mix(machine: Machine, tmp_path: Path) -> None:
    """Modules of both versions have one name; each version sees its own."""
    did = "service : () -> { which : () -> (text) }"
    code = """
from replica.abi.v1 import update
from . import part
from .part import NAME

@update
def which(ctx):
    from .part import NAME as late
    return part.NAME + NAME + late
"""
    interface = candid.parse(did)
    second = canister_id(101)
    machine.create(second, [ADMIN.principal])
    modules = [
        make_bundle(
            tmp_path / n, code, did, 'dropped_tables = ["entries"]', {"part.py": f"NAME = '{n}'\n"}
        )
        for n in ("a", "b")
    ]
    machine.trusted += tuple(sha256(m) for m in modules)
    machine.install(second, modules[0])
    install(machine, modules[1])
    assert machine.call(second, interface, "which") == "aaa"
    assert machine.call(BOOK, interface, "which") == "bbb"
    machine.install(second, modules[1], mode="upgrade")
    assert machine.call(second, interface, "which") == "bbb"


def test_without_controllers_nobody_upgrades(machine: Machine, tmp_path: Path) -> None:
    machine.manage("update_settings", {"canister_id": BOOK, "settings": {"controllers": []}})
    newer = make_bundle(tmp_path / "new", NEW, NEW_DID, NEW_TABLES)
    with pytest.raises(Refused, match="IC0512"):
        install(machine, newer)
    with pytest.raises(Refused, match="IC0512"):
        machine.manage(
            "update_settings", {"canister_id": BOOK, "settings": {"controllers": [ADMIN.principal]}}
        )
    value = {"amount": None, "settings": {"controllers": []}, "specified_id": None}
    made = machine.manage("provisional_create_canister_with_cycles", value)["canister_id"]
    assert machine.state._tip.canisters[made].controllers == ()


def test_a_canister_that_traps_on_everything_does_not_stop_the_subnet(
    machine: Machine, tmp_path: Path
) -> None:
    did = "service : () -> { f : () -> () }"
    code = """
from replica.abi.v1 import timer, update, post_upgrade

@post_upgrade
def after(ctx):
    ctx.set_timer(1)

@timer
def ring(ctx):
    raise ValueError("always")

@update
def f(ctx):
    raise ValueError("always")
"""
    install(machine, make_bundle(tmp_path / "t", code, did, 'dropped_tables = ["entries"]'))
    for _ in range(5):
        with pytest.raises(Refused, match="always"):
            machine.call(BOOK, candid.parse(did), "f")
        machine.block(checkpoint=True)


RUNAWAYS = {
    "a lambda that calls itself": "f = lambda g: g(g)\n    return str(f(f))",
    "a generator that calls itself": (
        "def g():\n        yield from g()\n    for item in g():\n        return item"
    ),
    "a list of a huge range": "return str(len(list(range(10 ** 10))))",
    "a sum over a huge range": "return str(sum(range(10 ** 10)))",
    "huge bytes": "return str(len(bytes(10 ** 10)))",
    "a huge tuple out of a generator": "return str(len(tuple(i for i in range(10 ** 10))))",
    "recursion": "def g(n):\n        return g(n + 1)\n    return g(0)",
    "an endless loop": "while True:\n        pass",
    "a huge power": "return str(10 ** 10 ** 9)",
    "a huge text": "return 'x' * 10 ** 10",
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_runaway_code_stops_at_the_same_point_with_the_same_error(
    tmp_path: Path, name: str
) -> None:
    did = "service : () -> { f : () -> (text) }"
    code = f"from replica.abi.v1 import update\n\n@update\ndef f(ctx):\n    {RUNAWAYS[name]}\n"
    module = make_bundle(tmp_path / "src", code, did)
    seen = set()
    for node in range(4):
        machine = Machine(tmp_path / f"state{node}", trusted=(sha256(module),))
        machine.create(BOOK, [ADMIN.principal])
        machine.install(BOOK, module)
        with pytest.raises(Refused, match="BudgetExhausted") as caught:
            deeper(node * 7, lambda m=machine: m.call(BOOK, candid.parse(did), "f"))  # type: ignore[misc]
        seen.add((str(caught.value), machine.state._tip.system.digest))
    assert len(seen) == 1


def deeper(levels: int, action):  # type: ignore[no-untyped-def]
    """The host's own stack must make no difference."""
    return action() if levels == 0 else deeper(levels - 1, action)


# --- snapshots ---------------------------------------------------------------------------------


def test_a_snapshot_brings_code_and_rows_back(machine: Machine, tmp_path: Path) -> None:
    machine.call(BOOK, OLD_INTERFACE, "fill", 0, 50)
    taken = machine.manage(
        "take_canister_snapshot", {"canister_id": BOOK, "replace_snapshot": None}
    )
    old = machine.state._tip.canisters[BOOK].bundle
    install(machine, make_bundle(tmp_path / "new", NEW, NEW_DID, NEW_TABLES))
    assert machine.query(BOOK, NEW_INTERFACE, "get", 7)["owner"] == "OWNER 7"
    machine.certify()
    machine.block(checkpoint=True)
    assert machine.state.checkpoint_root_at(machine.height) == root_of(machine, tmp_path / "s")
    again = Machine(tmp_path / "other")
    folder = machine.state.folder(machine.height)
    snapshot, changes = checkpoint.load(folder, Height(machine.height))
    again.state._start_from(snapshot, changes, 1)
    again.height, again.time_ns, again.trusted = machine.height, machine.time_ns, machine.trusted
    for node in (machine, again):
        arg = {"canister_id": BOOK, "snapshot_id": taken["id"]}
        node.manage("load_canister_snapshot", arg)
        assert node.state._tip.canisters[BOOK].bundle == old
        assert node.call(BOOK, OLD_INTERFACE, "get", 7) == {"id": 7, "owner": "owner 7"}
        node.certify()
        assert node.call(BOOK, OLD_INTERFACE, "count") == 50
        assert len(node.manage("list_canister_snapshots", {"canister_id": BOOK})) == 1
        node.manage("delete_canister_snapshot", arg)
        with pytest.raises(Refused, match="no snapshot"):
            node.manage("load_canister_snapshot", arg)
    assert contents(machine) == contents(again)


def test_snapshots_are_bounded_and_replaced(machine: Machine) -> None:
    arg = {"canister_id": BOOK, "replace_snapshot": None}
    ids = [machine.manage("take_canister_snapshot", arg)["id"] for _ in range(10)]
    with pytest.raises(Refused, match="10 snapshots already"):
        machine.manage("take_canister_snapshot", arg)
    machine.manage("take_canister_snapshot", {**arg, "replace_snapshot": ids[0]})
    left = [s["id"] for s in machine.manage("list_canister_snapshots", {"canister_id": BOOK})]
    assert len(left) == 10 and ids[0] not in left


# --- stopping and uninstalling with open calls ---------------------------------------------------

WAITER_DID = "service : () -> { wait : (principal) -> (text) }"
WAITER = """
from replica.abi.v1 import LATER, MANAGEMENT_CANISTER, encode, reply, update

@update
def wait(ctx, who):
    arg = encode("(record { canister_id : principal })", {"canister_id": who})
    ctx.call(MANAGEMENT_CANISTER, "stop_canister", arg, on_reply="on_stopped")
    return LATER

@reply
def on_stopped(ctx, outcome, _context):
    return "stopped" if outcome.ok else outcome.reject_message
"""


def test_a_canister_that_waits_for_itself_to_stop_is_told_after_five_minutes(
    tmp_path: Path,
) -> None:
    module = make_bundle(tmp_path / "w", WAITER, WAITER_DID)
    machine = Machine(tmp_path / "state", trusted=(sha256(module),))
    machine.create(BOOK, [ADMIN.principal, BOOK])
    machine.install(BOOK, module)
    interface = candid.parse(WAITER_DID)
    arg = candid.encode(interface.methods["wait"].args, [BOOK], interface)
    id_, raw = machine.request(BOOK, "wait", arg)
    machine.block(raw)
    machine.block(seconds=200)
    assert machine.status(id_).status == "processing"
    machine.block(seconds=101)
    machine.block()
    assert machine.results[-2].executed == [(BOOK, "on_stopped")], "told that it did not stop"
    assert machine.state._tip.canisters[BOOK].status == "stopped"


def test_uninstalling_answers_all_who_wait(tmp_path: Path) -> None:
    module = make_bundle(tmp_path / "w", WAITER, WAITER_DID)
    machine = Machine(tmp_path / "state", trusted=(sha256(module),))
    machine.create(BOOK, [ADMIN.principal, BOOK])
    machine.install(BOOK, module)
    interface = candid.parse(WAITER_DID)
    arg = candid.encode(interface.methods["wait"].args, [BOOK], interface)
    id_, raw = machine.request(BOOK, "wait", arg)
    machine.block(raw)
    stop = {"canister_id": BOOK}
    uninstall = candid.encode(INTERFACE.methods["uninstall_code"].args, [stop], INTERFACE)
    other, raw = machine.request(MANAGEMENT_CANISTER, "uninstall_code", uninstall)
    machine.block(raw)
    assert machine.status(other).status == "replied"
    assert machine.status(id_).status == "rejected"
    assert "uninstalled while the call was open" in machine.status(id_).reject_message
