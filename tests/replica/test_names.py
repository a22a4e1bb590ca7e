"""Names of bundles: what the rule lets through, the database, the file system and SQL take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.abi import bundle as bundles
from replica.abi.names import COLUMNS_MAX, NAME_CHARACTERS_MAX, check_name
from replica.abi.tables import check_names_of, declare
from replica.client.table_schema import admit, try_tables
from replica.protocol import candid
from replica.protocol.errors import Malformed, Rejected
from replica.protocol.hashing import sha256
from replica.protocol.ids import canister_id
from tests.nns.harness import ADMIN, Machine, Refused, make_bundle

CODE = "from replica.abi.v1 import update\n@update\ndef go(ctx):\n    return 1\n"
DID = "service : () -> { go : () -> (nat64); }"
FIRST = canister_id(100)
KV = 'key=["k"]\ncolumns={k="nat64",v="nat64"}\n'
ODD_TABLES = {
    "an index that is another table": f'[tables.a]\n{KV}indexes={{b=["v"]}}\n[tables.a__b]\n{KV}',
    "our own column": '[tables.a]\nkey=["_key"]\ncolumns={_key="nat64"}\n',
    "columns that differ in case": '[tables.a]\nkey=["a"]\ncolumns={a="nat64",A="nat64"}\n',
    "a table of 300 letters": f"[tables.{'a' * 300}]\n{KV}",
    "letters of two bytes": f'[tables."{"ä" * 140}"]\n{KV}',
    "2001 columns": '[tables.a]\nkey=["c0"]\n[tables.a.columns]\n'
    + "\n".join(f'c{i}="nat64"' for i in range(2001)),
    "indexes that differ in case": f'[tables.a]\n{KV}indexes={{i=["v"],I=["v"]}}\n',
    "quotes and newlines": f'[tables.a]\n{KV}[tables.a.indexes]\n"x\\"y\\n"=["v"]\n',
    "a path with NUL": f'[tables.a]\n{KV}[tables.a.indexes]\n"../x\\u0000"=["v"]\n',
    "SQLite's tables": f"[tables.sqlite_master]\n{KV}",
    "a generation": f'[tables."a@1"]\n{KV}',
    "a column named twice": '[tables.a]\nkey=["k","k"]\ncolumns={k="nat64"}\n',
    "a key that is text": '[tables.a]\nkey="k"\ncolumns={k="nat64"}\n',
    "columns that are a list": '[tables.a]\nkey=["k"]\ncolumns=["k"]\n',
    "tables that are a number": "tables=7\n",
}


def packed(tables: str, **files: str) -> bytes:
    """Return a bundle that nobody has looked at."""
    plain = {"canister.toml": f'name = "sample"\nabi = "v1"\n{tables}', "sample.did": DID}
    named = {name.replace("__init__", "__init__.py"): text for name, text in files.items()}
    all_files = {**plain, "__init__.py": CODE, **named}
    return bundles.pack(sorted((n, t.encode()) for n, t in all_files.items()))


def fault_of_install(folder: Path, module: bytes) -> str:
    """Return why a subnet refuses to install a module, after which it goes on; "": it installs."""
    machine = Machine(folder, trusted=(sha256(module),))
    machine.create(FIRST, [ADMIN.principal])
    before = machine.state._tip.canisters[FIRST]
    fault = ""
    try:
        value = {"mode": {"install": None}, "canister_id": FIRST, "wasm_module": module}
        machine.manage("install_code", {**value, "arg": candid.encode([], [])})
    except Refused as error:
        fault = str(error)
        assert machine.state._tip.canisters[FIRST] == before, "without a trace"
    machine.certify()
    machine.block(checkpoint=True)
    machine.certify()
    return fault


@pytest.mark.parametrize("what", ODD_TABLES)
def test_an_odd_declaration_is_refused_and_the_subnet_goes_on(what: str, tmp_path: Path) -> None:
    """Seven of these ended every replica once the block that installs them was certified."""
    module = packed(ODD_TABLES[what])
    with pytest.raises(Rejected):
        admit(module)
    assert "the bundle is refused" in fault_of_install(tmp_path / "state", module)


@pytest.mark.parametrize(
    "line", ["x = {}['a']", "x = [][0]", "while True:\n    pass", "x = y", "x = [0] * 10 ** 9"]
)
def test_code_that_fails_when_it_is_loaded_is_refused(line: str, tmp_path: Path) -> None:
    module = packed("", __init__=f"{CODE}\n{line}\n")
    assert "loading it" in fault_of_install(tmp_path / "state", module)


@pytest.mark.parametrize(
    "deep", ["-" * 5000 + "1", "(" * 250 + "1" + ")" * 250, "a" + ".a" * 900, "-" * 85 + "1"]
)
def test_code_nested_deeper_than_some_callers_can_parse_is_refused_by_all(deep: str) -> None:
    with pytest.raises(Rejected):
        bundles.admit(packed("", __init__=f"{CODE}\ndef f(a):\n    return {deep}\n"))


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "", "a/__init__.py": ""},
        {"second.did": DID},
        {"A.py": ""},
        {"a__b.py": ""},
        {"aux .py": ""},
        {"è.py": ""},
    ],
)
def test_files_of_a_bundle_keep_the_rule_too(files: dict[str, str]) -> None:
    with pytest.raises(Rejected):
        bundles.admit(packed("", **files))


def test_methods_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    did = "service : () -> { go : () -> (nat64); Go : () -> (nat64) }"
    with pytest.raises(Malformed, match="differ in case"):
        make_bundle(tmp_path / "src", CODE, did)


def test_what_lies_in_a_state_already_is_read_whatever_its_names(tmp_path: Path) -> None:
    """A release with a stricter rule must not end where a laxer one has installed."""
    module = packed('[tables.a__b]\nkey=["k"]\ncolumns={k="nat64"}\n')
    assert bundles.read(module).tables[0].name == "a__b"
    with pytest.raises(Malformed):
        bundles.admit(module)


names = st.text(
    st.sampled_from("aAbzZ019_@#~$. \x00\n\"'`;äß\u212a\ud800"), min_size=0, max_size=6
) | st.sampled_from(["_key", "_check", "rowid", "OID", "sqlite_a", "a__b", "target", "select"])


@settings(max_examples=300, deadline=None)
@given(st.lists(names, min_size=1, max_size=4), st.lists(names, max_size=3))
def test_whatever_names_pass_the_rule_the_database_takes(
    columns: list[str], indexes: list[str]
) -> None:
    spec: dict[str, Any] = {
        "key": [columns[0]],
        "columns": dict.fromkeys(columns, "text"),
        "indexes": {name: [columns[-1]] for name in indexes},
    }
    try:
        tables = declare({"rows": spec, "more_rows": spec})
        check_names_of(tables)
    except Malformed:
        return
    try_tables("sample", tables)
    named = [*dict.fromkeys(columns), *dict.fromkeys(indexes)]
    assert all(n.isascii() and n == n.lower() and "__" not in n for n in named)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["k", "int"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "key", "columns", "indexes", "k"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_no_declaration_does_more_than_be_refused(spec: object) -> None:
    with suppress(Malformed):
        declare(spec)


@pytest.mark.parametrize("count", [COLUMNS_MAX, COLUMNS_MAX + 1])
def test_so_many_columns_and_no_more(count: int) -> None:
    tables = declare({"a": {"key": ["c0"], "columns": {f"c{i}": "int" for i in range(count)}}})
    if count > COLUMNS_MAX:
        with pytest.raises(Malformed, match="at most"):
            check_names_of(tables)
    else:
        check_names_of(tables)
        try_tables("sample", tables)


def test_the_longest_name_and_no_longer() -> None:
    assert check_name("table", "a" * NAME_CHARACTERS_MAX)
    with pytest.raises(Malformed):
        check_name("table", "a" * (NAME_CHARACTERS_MAX + 1))


def test_a_canisters_id_and_tables_can_be_taken_again_at_once(tmp_path: Path) -> None:
    """The table that is no longer used is dropped later only: its name was in the way."""
    module = packed(f'[tables.a]\n{KV}indexes={{by_v=["v"]}}\n')
    machine = Machine(tmp_path / "state", trusted=(sha256(module),))
    for _ in range(3):
        machine.create(FIRST, [ADMIN.principal])
        machine.install(FIRST, module)
        machine.certify()
        machine.manage("stop_canister", {"canister_id": FIRST})
        machine.manage("delete_canister", {"canister_id": FIRST})
        machine.certify()
    assert machine.state.store.drop_retired(machine.height) == 6
