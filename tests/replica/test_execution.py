"""Execution of Python canisters: rounds, calls, traps, budgets, upgrades, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replica.abi import bundle as bundles
from replica.abi.bundle import BundleRefused
from replica.execution.round import Round
from replica.protocol import artifacts, candid, canonical, cup, manifest
from replica.protocol.artifacts import Block, Summary, ValidationContext
from replica.protocol.crypto.scheme import Transcript
from replica.protocol.hashing import sha256
from replica.protocol.ids import (
    ROOT,
    Epoch,
    Height,
    Principal,
    Rank,
    RegistryVersion,
    SubnetId,
    TimeNs,
    canister_id,
)
from replica.state import checkpoint, checkpoints
from replica.state.records import IngressStatus
from tests.nns.harness import ADMIN, Machine, Refused, make_bundle

COUNTER_DID = """
service : () -> {
  add : (nat64) -> (nat64);
  get : () -> (nat64) query;
  crash : () -> (nat64);
  forever : () -> ();
  ask : (principal, text) -> (text);
  say : (text) -> (text) query;
}
"""
COUNTER = """
from replica.abi.v1 import LATER, Refuse, decode, encode, query, reply, update

def total(ctx):
    row = ctx.table("totals").get("all")
    return 0 if row is None else row["value"]

@update
def add(ctx, amount):
    ctx.table("totals").put(name="all", value=total(ctx) + amount)
    return total(ctx)

@query
def get(ctx):
    return total(ctx)

@update
def crash(ctx):
    ctx.table("totals").put(name="all", value=999)
    return [][0]

@update
def forever(ctx):
    while True:
        pass

@update
def ask(ctx, who, text):
    ctx.call(who, "say", encode("(text)", text), on_reply="on_said")
    return LATER

@reply
def on_said(ctx, outcome, context):
    if not outcome.ok:
        raise Refuse("no answer: " + outcome.reject_message)
    return decode("(text)", outcome.reply)[0]

@query
def say(ctx, text):
    return text.upper()
"""
TABLES = """
[tables.totals]
key = ["name"]
columns = { name = "text", value = "nat64" }
"""
DID = candid.parse(COUNTER_DID)
FIRST, SECOND = canister_id(100), canister_id(101)


@pytest.fixture
def module(tmp_path: Path) -> bytes:
    return make_bundle(tmp_path / "src", COUNTER, COUNTER_DID, TABLES)


@pytest.fixture
def machine(tmp_path: Path, module: bytes) -> Iterator[Machine]:
    made = Machine(tmp_path / "state", trusted=(sha256(module),))
    for id_ in (FIRST, SECOND):
        made.create(id_, [ADMIN.principal])
        made.install(id_, module)
    yield made


def test_updates_and_queries(machine: Machine) -> None:
    assert machine.call(FIRST, DID, "add", 5) == 5
    assert machine.call(FIRST, DID, "add", 2) == 7
    assert machine.query(FIRST, DID, "get") == 7
    assert machine.call(FIRST, DID, "get") == 7, "a query is callable as an update"
    assert machine.query(SECOND, DID, "get") == 0, "rows belong to one canister"


def test_a_trap_leaves_no_trace(machine: Machine) -> None:
    machine.call(FIRST, DID, "add", 5)
    with pytest.raises(Refused, match="IC0502 IndexError"):
        machine.call(FIRST, DID, "crash")
    assert machine.query(FIRST, DID, "get") == 5


def test_the_step_budget_ends_an_endless_loop(machine: Machine) -> None:
    with pytest.raises(Refused, match="step budget"):
        machine.call(FIRST, DID, "forever")
    assert machine.call(FIRST, DID, "add", 1) == 1


@pytest.mark.parametrize(
    "body, what",
    [
        ("return 10 ** 10 ** 9", "million bits"),
        ("return 'x' * 10 ** 10", "million items"),
        ("return 1 << 10 ** 9", "million bits"),
        ("return f(ctx)", "nested deeper"),
    ],
)
def test_values_that_explode_stop_at_the_same_point(tmp_path: Path, body: str, what: str) -> None:
    code = f"from replica.abi.v1 import update\n@update\ndef f(ctx):\n    {body}\n"
    did = "service : () -> { f : () -> (text) }"
    module = make_bundle(tmp_path / "src", code, did)
    seen = set()
    for copy in range(2):
        machine = Machine(tmp_path / f"state{copy}", trusted=(sha256(module),))
        machine.create(FIRST, [ADMIN.principal])
        machine.install(FIRST, module)
        with pytest.raises(Refused, match=what) as caught:
            machine.call(FIRST, candid.parse(did), "f")
        seen.add((str(caught.value), machine.state._tip.system.digest))
    assert len(seen) == 1


def test_calls_between_canisters(machine: Machine) -> None:
    assert machine.call(FIRST, DID, "ask", SECOND, "hello") == "HELLO"
    assert machine.call(FIRST, DID, "ask", FIRST, "self") == "SELF"
    with pytest.raises(Refused, match="no answer: there is no canister"):
        machine.call(FIRST, DID, "ask", canister_id(7777), "x")


def test_a_stopped_canister_is_not_called(machine: Machine) -> None:
    machine.manage("stop_canister", {"canister_id": SECOND})
    with pytest.raises(Refused, match="IC0508"):
        machine.call(SECOND, DID, "add", 1)
    machine.manage("start_canister", {"canister_id": SECOND})
    assert machine.call(SECOND, DID, "add", 1) == 1


def test_a_repeated_request_is_executed_once(machine: Machine) -> None:
    arg = candid.encode(DID.methods["add"].args, [3])
    _, raw = machine.request(FIRST, "add", arg)
    machine.block(raw)
    machine.block(raw, raw)
    assert machine.query(FIRST, DID, "get") == 3


def test_an_expired_request_is_not_executed(machine: Machine) -> None:
    arg = candid.encode(DID.methods["add"].args, [3])
    _, raw = machine.request(FIRST, "add", arg)
    machine.block(seconds=1000)
    machine.block(raw)
    assert machine.query(FIRST, DID, "get") == 0


def test_upgrade_keeps_rows_and_reinstall_drops_them(
    machine: Machine, module: bytes, tmp_path: Path
) -> None:
    machine.call(FIRST, DID, "add", 5)
    newer = make_bundle(tmp_path / "src2", COUNTER + "\n# newer\n", COUNTER_DID, TABLES)
    machine.trusted += (sha256(newer),)
    machine.install(FIRST, newer, mode="upgrade")
    assert machine.query(FIRST, DID, "get") == 5
    machine.install(FIRST, newer, mode="reinstall")
    assert machine.query(FIRST, DID, "get") == 0


def test_a_bundle_that_nobody_lists_is_refused(machine: Machine, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", COUNTER + "\n# other\n", COUNTER_DID, TABLES)
    before = machine.state._tip.canisters[FIRST]
    with pytest.raises(Refused, match="does not list the bundle"):
        machine.install(FIRST, other, mode="upgrade")
    assert machine.state._tip.canisters[FIRST] == before
    # One that root controls may run what governance decided.
    machine.create(canister_id(102), [ADMIN.principal, ROOT])
    machine.install(canister_id(102), other)


def test_only_controllers_and_the_whitelist_get_through(machine: Machine) -> None:
    from replica.protocol.crypto.keys import Ed25519Key

    stranger = Ed25519Key(b"\x09" * 32)
    with pytest.raises(Refused, match="IC0512"):
        machine.manage("stop_canister", {"canister_id": FIRST}, key=stranger)
    value = {"amount": None, "settings": None, "specified_id": None}
    with pytest.raises(Refused, match="may not create"):
        machine.manage("provisional_create_canister_with_cycles", value, key=stranger)
    with pytest.raises(Refused, match="IC0407"):
        machine.raw_call(canister_id(100).__class__(b""), "no_such", b"DIDL\x00\x00")


@pytest.mark.parametrize(
    "line, what",
    [
        ("import time", "import time"),
        ("from random import random", "import of random"),
        ("from replica.protocol import cbor", "import of replica.protocol"),
        ("x = 1.5", "float"),
        ("x = 1 / 2", "true division"),
        ("x = {1, 2}", "sets"),
        ("x = ().__class__", "__class__"),
        ("x = eval('1')", "eval"),
        ("async def f(): pass", "async"),
        ("try:\n    pass\nexcept:\n    pass", "bare except"),
        ("x = hash('a')", "hash"),
    ],
)
def test_code_that_breaks_a_rule_is_refused_with_its_line(
    tmp_path: Path, line: str, what: str
) -> None:
    with pytest.raises(BundleRefused, match=r"__init__\.py:[2-4]: .*") as caught:
        make_bundle(tmp_path / "src", f"\n{line}\n", "service : () -> {}")
    assert what in str(caught.value)


def test_bundles_are_reproducible_and_bombs_are_not_unpacked(tmp_path: Path) -> None:
    import io
    import os
    import zipfile

    first = make_bundle(tmp_path / "a", COUNTER, COUNTER_DID, TABLES)
    os.umask(0o077)
    second = make_bundle(tmp_path / "b", COUNTER, COUNTER_DID, TABLES)
    os.umask(0o022)
    assert first == second
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__init__.py", b" " * (9 << 20))
    with pytest.raises((BundleRefused, Exception), match="unpacks"):
        bundles.read(out.getvalue())


# --- determinism -------------------------------------------------------------------------------


def test_fifty_canisters_under_a_round_limit_run_in_one_order_on_four_nodes(
    tmp_path: Path, module: bytes
) -> None:
    orders, digests = [], []
    for node in range(4):
        machine = Machine(tmp_path / f"node{node}", trusted=(sha256(module),))
        ids = [canister_id(200 + i) for i in range(50)]
        for id_ in ids:
            machine.create(id_, [ADMIN.principal])
            machine.install(id_, module)
        # The same requests on every node: the nonces run alike.
        arg = candid.encode(DID.methods["add"].args, [1])
        requests = [machine.request(i, "add", arg)[1] for i in ids for _ in range(3)]
        order = []
        machine.height += 1
        machine.time_ns += 10**9
        result = limited_round(machine, tuple(requests), steps_max=60_000)
        order += result.executed
        assert 0 < len(order) < 150, "the limit must bite"
        orders.append(order)
        digests.append(result.snapshot.system.digest)
    assert all(o == orders[0] for o in orders)
    assert len(set(digests)) == 1
    first_turn = [i for i, _ in orders[0][:20]]
    assert len(set(first_turn)) == 20, "canisters take turns"


def limited_round(machine: Machine, requests: tuple[bytes, ...], steps_max: int):  # type: ignore[no-untyped-def]
    from replica.consensus.delivery import Batch, Randomness
    from replica.protocol.ids import Epoch, RegistryVersion, TimeNs

    batch = Batch(
        Height(machine.height),
        Epoch(1),
        TimeNs(machine.time_ns),
        RegistryVersion(1),
        Randomness(Height(machine.height), bytes(32)),
        requests,
        False,
    )
    return Round(
        machine.state._tip, machine.state._rows(), batch, machine.policy(), steps_max
    ).run()


# --- checkpoints -------------------------------------------------------------------------------


def test_checkpoint_is_a_function_of_the_state_alone(machine: Machine, tmp_path: Path) -> None:
    """Incremental and from scratch, and through a restart: the same root."""
    for amount in range(40):
        machine.call(FIRST, DID, "add", amount)
        if amount % 10 == 0:
            machine.block(checkpoint=True)
    machine.block(checkpoint=True)
    incremental = machine.state.checkpoint_root_at(machine.height)
    folder = tmp_path / "scratch"
    folder.mkdir()
    writer = checkpoint.Writer(folder, None)
    writer.write(machine.state._tip, machine.state._rows(), checkpoint.Changed())
    assert manifest.root(checkpoint.compute_manifest(folder)) == incremental
    snapshot, changes = checkpoint.load(machine.state.folder(machine.height), Height(7))
    assert snapshot.system == machine.state._tip.system
    assert snapshot.canisters == machine.state._tip.canisters
    assert sum(len(r) for n, r in changes.items() if "#" not in n) == 1


def test_a_checkpoint_packs_only_requests_of_spans_that_changed(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While requests come, are answered and expire: the same files as from scratch."""
    packed: list[object] = []
    pack = canonical.pack
    monkeypatch.setattr(canonical, "pack", lambda record: packed.append(record) or pack(record))
    sizes = []
    for turn in range(30):
        for amount in range(6):
            machine.call(FIRST, DID, "add", amount)
        machine.block(seconds=9, checkpoint=False)
        packed.clear()
        machine.block(checkpoint=True)
        sizes.append(sum(isinstance(r, IngressStatus) for r in packed))
        folder = tmp_path / f"scratch-{turn}"
        folder.mkdir()
        checkpoint.Writer(folder, None).write(
            machine.state._tip, machine.state._rows(), checkpoint.Changed()
        )
        root = machine.state.checkpoint_root_at(machine.height)
        assert manifest.root(checkpoint.compute_manifest(folder)) == root
    count = len(machine.state._tip.ingress)
    assert count < 30 * 6, "the oldest have expired"
    assert count > 5 * max(sizes[5:]), "most were linked"


def test_a_call_in_flight_survives_checkpoint_sync_and_recovery(
    machine: Machine, tmp_path: Path
) -> None:
    """The question is asked, the round's budget ends, a checkpoint falls between; it goes on.

    Another node takes the files over by state sync, and adopts them under a recovery's height.
    """
    arg = candid.encode(DID.methods["ask"].args, [SECOND, "hello"])
    id_, raw = machine.request(FIRST, "ask", arg)
    machine.height += 1
    machine.time_ns += 10**9
    result = limited_round(machine, (raw,), steps_max=1)
    assert result.snapshot.ingress[id_].status == "processing"
    folder = tmp_path / "mid-call"
    folder.mkdir()
    checkpoint.Writer(folder, None).write(result.snapshot, result.rows, checkpoint.Changed())
    other = Machine(tmp_path / "other", trusted=machine.trusted)
    root = manifest.root(checkpoint.compute_manifest(folder))
    synced_at, recovered_at = Height(500), Height(1000)
    other.state.install_synced(folder, synced_at, root, epoch=1)
    other.state.open(recovery_cup(recovered_at, root))
    assert other.state.latest_height == recovered_at
    waiting = other.state._tip.canisters
    assert waiting[FIRST].contexts and waiting[SECOND].inbox
    machine, machine.height, machine.time_ns = other, recovered_at, machine.time_ns
    other.time_ns = result.snapshot.system.time_ns
    machine.block()
    status = machine.status(id_)
    assert status.status == "replied"
    assert candid.decode(DID.methods["ask"].results, status.reply) == ["HELLO"]


def recovery_cup(height: Height, state_hash: bytes) -> cup.CatchUpPackage:
    keys = Transcript(1, (), b"k", ())
    summary = Summary(RegistryVersion(7), height, 9, 9, keys, keys, RegistryVersion(7), (), height)
    block = Block(
        "v1",
        height,
        SubnetId(Principal(b"s")),
        Epoch(7),
        height,
        Rank(0),
        b"",
        artifacts.payload_hash(summary),
        ValidationContext(RegistryVersion(7), height, TimeNs(1)),
    )
    beacon = artifacts.Beacon(Epoch(7), height, b"", b"")
    return cup.CatchUpPackage(cup.content(block, summary, beacon, state_hash), b"")


@pytest.mark.parametrize("victim", ["system.cbor", "canister.cbor", ".rows", "bundle.zip"])
def test_a_damaged_checkpoint_is_noticed(machine: Machine, victim: str) -> None:
    machine.call(FIRST, DID, "add", 1)
    machine.block(checkpoint=True)
    folder = machine.state.folder(machine.height)
    path = next(p for p in sorted(folder.rglob("*")) if p.name.endswith(victim))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    from replica.protocol.errors import Rejected

    with pytest.raises(Rejected):
        checkpoint.load(folder, Height(machine.height))


@pytest.mark.parametrize("shared", [False, True], ids=["the newest only", "older ones as well"])
def test_rot_in_a_checkpoint_is_noticed_at_the_next_start(machine: Machine, shared: bool) -> None:
    """Both were found by simulated storms: a rotten checkpoint's manifest outlived it, and an older
    one, of which no package tells the root, was believed."""
    for amount in (5, 6, 7):
        machine.call(FIRST, DID, "add", amount)
        machine.block(checkpoint=True)
    first, second = machine.state.checkpoint_heights()[-2:]
    roots = {h: machine.state.checkpoint_root_at(h) for h in (first, second)}
    assert roots[first] != roots[second]
    for height in (first, second) if shared else (second,):
        path = next(p for p in machine.state.folder(height).rglob("system.cbor"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()
        path.write_bytes(bytes(data))
    other = Machine(machine.folder, trusted=machine.trusted)
    root = roots[second]
    assert root is not None
    other.state.open(recovery_cup(Height(second), root))
    kept = other.state.checkpoint_heights()
    assert second not in kept and (first in kept) == (not shared)
    assert other.state.latest_height <= first
    if shared:
        return
    assert other.state.latest_height == first
    other.height, other.time_ns = machine.height, machine.time_ns
    while other.state.latest_height < second:
        other.height = other.state.latest_height
        other.block(checkpoint=other.height + 1 == second)
    rewritten = other.state.checkpoint_root_at(second)
    folder = other.state.folder(second)
    assert rewritten == manifest.root(checkpoint.compute_manifest(folder)), "of what is there now"


def test_a_rotten_checkpoint_above_the_package_is_written_anew(machine: Machine) -> None:
    """Found by a simulated storm: its new root replaced the noted one, and later starts took it."""
    for amount in (5, 6):
        machine.call(FIRST, DID, "add", amount)
        machine.block(checkpoint=True)
    first, second = machine.state.checkpoint_heights()[-2:]
    root = machine.state.checkpoint_root_at(first)
    assert root is not None
    path = machine.state.folder(second) / "system.cbor"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    other = Machine(machine.folder, trusted=machine.trusted)
    other.state.open(recovery_cup(Height(first), root))
    assert other.state.latest_height == first
    other.time_ns = machine.time_ns
    while other.state.latest_height < second:
        other.height = other.state.latest_height
        other.block(checkpoint=other.height + 1 == second)
    folder = other.state.folder(second)
    assert checkpoint.load(folder, Height(second))[0] == other.state._tip
    found = manifest.root(checkpoint.compute_manifest(folder))
    assert other.state.checkpoint_root_at(second) == found


def test_a_checkpoints_root_is_of_what_was_written_whatever_the_disk_holds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a simulated storm: a node attested what a misdirected write had left of its state,
    and no recovery could be agreed on."""
    machine.call(FIRST, DID, "add", 5)

    def damage(folder: Path) -> None:
        path = folder / "system.cbor"
        path.write_bytes(bytes(path.stat().st_size))

    machine.block(checkpoint=False)
    expected = machine.state.make_checkpoint()
    height = machine.state.latest_height
    machine.state._files.discard(height)
    monkeypatch.setattr(checkpoints, "sync_folder", damage)
    assert machine.state.make_checkpoint() == expected
    assert manifest.root(checkpoint.compute_manifest(machine.state.folder(height))) != expected
