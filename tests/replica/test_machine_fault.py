"""An error of the database is never a result, whatever voted code makes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replica.abi.bundle import BundleRefused
from replica.execution import python_runtime
from replica.execution.metering import BudgetExhausted
from replica.protocol import candid
from replica.protocol.errors import MachineFault, Unavailable
from replica.protocol.hashing import sha256
from replica.state.access import BUSY_TRIES_MAX, Access, Latch
from replica.state.store import Store
from simulation.system import database
from tests.nns.harness import ADMIN, Machine, Refused, make_bundle
from tests.replica.swallowing import CODE, DID, DID_TEXT, FIRST, METHODS, TABLES, Filed, subnet


def ends_unsigned(machine: Machine, act: Callable[[], Any]) -> None:
    """The act raises a fault; afterwards no root, checkpoint or block leaves the machine."""
    state = machine.state
    before = state._tip
    with pytest.raises(MachineFault):
        act()
    assert state._tip is before or state.store.latch.fault is not None
    for ask in (
        lambda: state.certified_root_at(state.latest_height),
        lambda: state.checkpoint_root_at(state.latest_height),
        lambda: machine.block(),
        lambda: state.make_checkpoint(),
        lambda: machine.certify(),
    ):
        with pytest.raises(MachineFault):
            ask()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [k[1] for k in database.READ_ERRORS])
@pytest.mark.parametrize("method", METHODS)
def test_code_that_catches_everything_catches_no_error_of_the_database(
    method: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was a trap or an answer, and signed."""
    monkeypatch.setattr(database, "READ_ERRORS", [k for k in database.READ_ERRORS if k[1] == kind])
    with subnet(tmp_path) as (machine, bad):
        height = machine.state.latest_height
        bad.fail(0, reads_only=True)
        ends_unsigned(machine, lambda: machine.call(FIRST, DID, method, 3))
        assert machine.state.latest_height <= height + 1 and bad.failures == 1


@pytest.mark.parametrize("after", range(12))
def test_any_statement_of_a_block_may_fail(after: int, tmp_path: Path) -> None:
    """The first read, a later page of a range, a write, the fence, the commit."""
    with subnet(tmp_path) as (machine, bad):

        def act() -> None:
            for _ in range(9):
                machine.call(FIRST, DID, "with_range", 0)
                machine.call(FIRST, DID, "put", 3, f"new {after}")
                machine.certify()

        bad.fail(after)
        ends_unsigned(machine, act)


def test_a_table_that_can_not_be_made_is_a_fault(tmp_path: Path) -> None:
    with subnet(tmp_path) as (machine, bad):
        other = make_bundle(
            tmp_path / "other",
            CODE,
            DID_TEXT,
            TABLES + "\n[tables.b]\nkey=['k']\ncolumns={k='int'}",
        )
        machine.trusted += (sha256(other),)
        machine.install(FIRST, other, mode="upgrade")
        bad.fail(0, stays_bad=True)
        ends_unsigned(machine, machine.certify)


MOVING = (
    CODE.replace("import LATER,", "import LATER, migrate,")
    + """
@migrate
def a(row):
    try:
        return {"k": row["k"], "v": row["v"], "w": 1}
    except Exception:
        return None
"""
)


@pytest.mark.parametrize("after", [0, 1])
def test_rows_that_can_not_be_read_are_not_left_out_of_an_upgrade(
    after: int, tmp_path: Path
) -> None:
    with subnet(tmp_path) as (machine, bad):
        wider = TABLES.replace('v = "text" }', 'v = "text", w = "int" }')
        other = make_bundle(tmp_path / "other", MOVING, DID_TEXT, wider)
        machine.trusted += (sha256(other),)
        bad.fail(after, reads_only=True)
        ends_unsigned(machine, lambda: machine.install(FIRST, other, mode="upgrade"))


@pytest.mark.parametrize("what", ["statement", "opening", "import"])
def test_opening_and_importing_fail_as_faults(what: str, tmp_path: Path) -> None:
    with subnet(tmp_path) as (machine, bad):
        machine.block(checkpoint=True)
        after = {"opening": 0, "statement": 7, "import": 45}[what]
        bad.fail(after, stays_bad=True)
        with pytest.raises(MachineFault, match=r"database|checkpoint|table|fence"):
            other = Filed(machine.folder)
            other.state.open(_package(machine))
        bad.heal()
        again = Filed(machine.folder)
        again.state.open(_package(machine))
        assert again.state.latest_height == machine.height, "and heals"


def _package(machine: Machine) -> Any:
    from replica.protocol.ids import Height
    from tests.replica.test_execution import recovery_cup

    root = machine.state.checkpoint_root_at(machine.height)
    assert root is not None
    return recovery_cup(Height(machine.height), root)


@pytest.mark.parametrize("method", ["look", "look_carefully"])
def test_a_query_that_can_not_read_says_so_and_nothing_ends(method: str, tmp_path: Path) -> None:
    with subnet(tmp_path) as (machine, bad):
        state = machine.state
        ask = _query_of(machine, method)
        bad.fail(0, reads_only=True)
        with pytest.raises(Unavailable, match="ask another one") as caught:
            ask()
        assert caught.value.http_status == 503
        assert state.store.latch.fault is None
        assert ask().reply is not None
        assert machine.call(FIRST, DID, "get", 3) == "v3"


def _query_of(machine: Machine, method: str) -> Callable[[], Any]:
    from replica.execution.round import query
    from replica.protocol import envelope
    from replica.protocol.ids import TimeNs

    arg = candid.encode(DID.methods[method].args, [3])
    time_ns = TimeNs(machine.time_ns)
    request = envelope.Request("query", ADMIN.principal, time_ns, b"", b"", FIRST, method, arg)
    rows = machine.state.store.for_query
    return lambda: query(machine.state._tip, rows(), request, b"a certificate")


def test_a_damaged_row_is_noticed_although_the_database_sees_nothing(tmp_path: Path) -> None:
    """SQLite keeps no checksums: a bit that flips in a text is another text."""
    with subnet(tmp_path) as (machine, _):
        raw: Any = machine.state.store._connection.connection.driver_connection
        raw.execute("UPDATE c100_sample_a SET v = 'w3' WHERE v = 'v3'")
        raw.commit()
        ends_unsigned(machine, lambda: machine.call(FIRST, DID, "get", 3))


def test_an_index_that_points_nowhere_is_a_fault(tmp_path: Path) -> None:
    with subnet(tmp_path) as (machine, _):
        raw: Any = machine.state.store._connection.connection.driver_connection
        raw.execute("DELETE FROM c100_sample_a WHERE v = 'v3'")
        raw.commit()
        ends_unsigned(machine, lambda: machine.call(FIRST, DID, "with_index", 3))


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize("method", [m for m in METHODS[:7] if m != "with_destructor"])
def test_the_hosts_own_limits_are_no_result_either(
    method: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subnet(tmp_path) as (machine, _):

        def fails(*_: object) -> Any:
            raise error("of the host")

        monkeypatch.setattr("replica.abi.tables.encode_key", fails)
        ends_unsigned(machine, lambda: machine.call(FIRST, DID, method, 3))


SPENDS = """
from replica.abi.v1 import update

class Swallow:
    def __enter__(self):
        return self
    def __exit__(self, *error):
        return True

@update
def with_finally(ctx):
    try:
        return 10 ** 10 ** 9
    finally:
        return 1

@update
def with_context(ctx):
    with Swallow():
        return 10 ** 10 ** 9
    return 1
"""


@pytest.mark.parametrize("method", ["with_finally", "with_context"])
def test_an_exhausted_budget_is_not_swallowed_either(method: str, tmp_path: Path) -> None:
    did = "service : () -> { with_finally : () -> (nat64); with_context : () -> (nat64) }"
    module = make_bundle(tmp_path / "src", SPENDS, did)
    machine = Machine(tmp_path / "state", trusted=(sha256(module),))
    machine.create(FIRST, [ADMIN.principal])
    machine.install(FIRST, module)
    with pytest.raises(Refused, match="million bits"):
        machine.call(FIRST, candid.parse(did), method)


def test_grouped_exceptions_are_no_way_around(tmp_path: Path) -> None:
    code = "def f():\n    try:\n        pass\n    except* ValueError:\n        pass\n"
    with pytest.raises(BundleRefused, match=r"except\*"):
        make_bundle(tmp_path / "src", code, "service : () -> {}")


@pytest.mark.parametrize(
    "value", ["\ud800", "x" * 2000], ids=["half a character", "too long a key"]
)
def test_what_arguments_can_provoke_is_a_trap_of_ours(value: str, tmp_path: Path) -> None:
    code = "from replica.abi.v1 import update\n"
    code += f"@update\ndef f(ctx):\n    ctx.table('t').put(k={value!r}, v=1)\n"
    code += "@update\ndef g(ctx):\n    ctx.table('t').get({'a': 1})\n"
    code += "@update\ndef h(ctx):\n    ctx.table('t').put(k='k', v=1 << 63)\n"
    did = "service : () -> { f : () -> (); g : () -> (); h : () -> () }"
    tables = '[tables.t]\nkey=["k"]\ncolumns={ k="text", v="int" }\n'
    module = make_bundle(tmp_path / "src", code, did, tables)
    machine = Machine(tmp_path / "state", trusted=(sha256(module),))
    machine.create(FIRST, [ADMIN.principal])
    machine.install(FIRST, module)
    for method in ("f", "g", "h"):
        with pytest.raises(Refused, match=r"IC0502 (Malformed|LimitExceeded)"):
            machine.call(FIRST, candid.parse(did), method)
    machine.certify()
    assert machine.state.store.latch.fault is None


def _busy(tries: int) -> Callable[[], str]:
    left = [tries]

    def act() -> str:
        if left[0]:
            left[0] -= 1
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error
        return "done"

    return act


def test_a_lock_of_somebody_elses_is_waited_for_and_says_nothing_of_the_disk() -> None:
    store = Store("sqlite://")
    latch = Latch()
    access = Access(store._connection, latch, tries_max=BUSY_TRIES_MAX)
    assert access.attempt("reading", _busy(BUSY_TRIES_MAX - 1)) == "done"
    assert latch.fault is None
    with pytest.raises(MachineFault, match="database is locked"):
        access.attempt("reading", _busy(BUSY_TRIES_MAX))


def test_no_layer_joins_another_once_a_read_has_failed(tmp_path: Path) -> None:
    from replica.state.rows import Layer

    store = Store("sqlite://")
    low = Layer(store)
    high = Layer(low)
    high.put("t", b"k", b"row")
    store.latch.trip("reading", OSError("disk I/O error"))
    with pytest.raises(MachineFault, match="disk I/O error"):
        high.merge_into(low)
    assert not low.changes


def test_guarding_is_what_execution_goes_through() -> None:
    """The mutant `disk-signs` replaces this function: it must be the one that is called."""
    assert issubclass(MachineFault, BaseException) and not issubclass(MachineFault, Exception)
    assert not issubclass(BudgetExhausted, Exception)
    assert python_runtime.run.__globals__["guard"] is python_runtime.guard


GROUPS = """
from replica.abi.v1 import update

@update
def go(ctx):
    try:
        ctx.table("a").get(1)
    except* Exception:
        pass
    return 1
"""


def test_a_bundle_of_a_former_release_catches_nothing_in_groups_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Any:
        raise MemoryError

    did = "service : () -> { go : () -> (nat64) }"
    with monkeypatch.context() as patch:
        patch.setattr("replica.abi.bundle._admit_source", lambda *_: None)
        module = make_bundle(tmp_path / "src", GROUPS, did, TABLES)
        machine = Machine(tmp_path / "state", trusted=(sha256(module),))
        machine.create(FIRST, [ADMIN.principal])
        machine.install(FIRST, module)
    assert machine.call(FIRST, candid.parse(did), "go") == 1
    monkeypatch.setattr("replica.abi.tables.encode_key", fails)
    ends_unsigned(machine, lambda: machine.call(FIRST, candid.parse(did), "go"))
