"""A canister that swallows whatever it can, on a machine whose database fails when told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica.protocol import candid
from replica.protocol.hashing import sha256
from replica.protocol.ids import canister_id
from replica.state.store import Store
from simulation.system.database import Database, Databases
from tests.nns import harness
from tests.nns.harness import ADMIN, Machine, make_bundle

FIRST = canister_id(100)
ROWS = 60
TABLES = """
[tables.a]
key = ["k"]
columns = { k = "nat64", v = "text" }
indexes = { by_v = ["v"] }
"""
CODE = """
from replica.abi.v1 import LATER, decode, encode, query, reply, update

class Swallow:
    def __enter__(self):
        return self
    def __exit__(self, *error):
        return True

def read(ctx, k):
    row = ctx.table("a").get(k)
    return "none" if row is None else row["v"]

@update
def put(ctx, k, v):
    ctx.table("a").put(k=k, v=v)
    return v

@update
def get(ctx, k):
    return read(ctx, k)

@query
def look(ctx, k):
    return read(ctx, k)

@query
def look_carefully(ctx, k):
    try:
        return read(ctx, k)
    except Exception:
        return "lost"

@update
def with_except(ctx, k):
    try:
        return read(ctx, k)
    except Exception:
        ctx.table("a").put(k=k, v="lost")
        return "lost"

@update
def with_finally(ctx, k):
    try:
        read(ctx, k)
    finally:
        return "lost"

@update
def with_break(ctx, k):
    while True:
        try:
            read(ctx, k)
        finally:
            break
    return "lost"

@update
def with_context(ctx, k):
    with Swallow():
        read(ctx, k)
    return "lost"

def generate(ctx, k):
    try:
        yield read(ctx, k)
    except Exception:
        yield "lost"

@update
def with_generator(ctx, k):
    return next(generate(ctx, k))

class Reads:
    def __init__(self, ctx, k):
        self.ctx, self.k = ctx, k
    def __del__(self):
        read(self.ctx, self.k)

@update
def with_destructor(ctx, k):
    Reads(ctx, k)
    return "lost"

@update
def with_range(ctx, k):
    try:
        return "".join([row["v"] for row in ctx.table("a").range(start=(k,))])
    finally:
        return "lost"

@update
def with_index(ctx, k):
    try:
        return "".join([row["v"] for row in ctx.table("a").by_index("by_v", "v3")])
    finally:
        return "lost"

@update
def ask(ctx, k):
    ctx.call(ctx.self_id, "with_finally", encode("(nat64)", k), on_reply="on_said")
    return LATER

@reply
def on_said(ctx, outcome, context):
    try:
        return "lost" if outcome.ok else "refused"
    finally:
        read(ctx, 3)
"""
METHODS = (
    "get with_except with_finally with_break with_context with_generator with_destructor "
    "with_range with_index ask"
).split()
DID_TEXT = f"""service : () -> {{
  put : (nat64, text) -> (text);
  look : (nat64) -> (text) query; look_carefully : (nat64) -> (text) query;
  {" ".join(f"{m} : (nat64) -> (text);" for m in METHODS)}
}}"""
DID = candid.parse(DID_TEXT)


@contextmanager
def subnet(folder: Path, code: str = CODE) -> Iterator[tuple[Machine, Database]]:
    """Yield a machine of one canister with rows, whose next reads ask the database."""
    module = make_bundle(folder / "src", code, DID_TEXT, TABLES)
    bad = Database(lambda *_: 0.0)
    databases = Databases()
    databases.add(folder, bad)
    with databases.watched():
        machine = Filed(folder / "state", trusted=(sha256(module),))
        machine.create(FIRST, [ADMIN.principal])
        machine.install(FIRST, module)
        for k in range(ROWS):
            machine.call(FIRST, DID, "put", k, f"v{k % 7}")
        machine.certify()
        machine.block()
        machine.certify()
        yield machine, bad
        machine.state.store.close()


class Filed(Machine):
    """One whose database is a file."""

    def __post_init__(self) -> None:
        real, harness.Store = harness.Store, self._store  # type: ignore[misc, assignment]
        try:
            super().__post_init__()
        finally:
            harness.Store = real  # type: ignore[misc]

    def _store(self, _url: str) -> Store:
        return Store(f"sqlite:///{self.folder}.db", fresh=True)
