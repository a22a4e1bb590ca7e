"""How commands speak: data on stdout, talk on stderr, one error format, fixed exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def say(text: str) -> None:
    """Tell a person something; never data."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: bytes as hex, principals as text."""
    from replica.protocol.ids import Principal

    if isinstance(value, Principal):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def check_format(output: str, known: Sequence[str]) -> None:
    """Raises: Malformed for a format that this command can't print."""
    from replica.protocol.errors import Malformed

    if output not in known:
        raise Malformed(f"-o takes {', '.join(known)} here, not {output}")


def emit(rows: Sequence[dict[str, Any]], output: str, *, key: str, columns: Sequence[str]) -> None:
    """Print rows in the format asked for. `key`: the column that -o id prints."""
    check_format(output, ("table", "json", "ndjson", "id"))
    ready = [plain(r) for r in rows]
    if output == "json":
        sys.stdout.write(json.dumps(ready, indent=1) + "\n")
    elif output == "ndjson":
        sys.stdout.write("".join(json.dumps(r) + "\n" for r in ready))
    elif output == "id":
        sys.stdout.write("".join(f"{r[key]}\n" for r in ready))
    else:
        table(ready, columns)


def lines(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return aligned columns, the heads first."""
    cells = [[str(r.get(c, "")) if r.get(c) is not None else "-" for c in columns] for r in rows]
    heads = [c.upper().replace("_", " ") for c in columns]
    widths = [max(len(x) for x in column) for column in zip(heads, *cells)]
    return ["  ".join(x.ljust(w) for x, w in zip(r, widths)).rstrip() for r in [heads, *cells]]


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print aligned columns; plain text, the same in a pipe and on a terminal."""
    for line in lines(rows, columns):
        sys.stdout.write(line + "\n")


def show(value: dict[str, Any], output: str) -> None:
    """Print one record."""
    check_format(output, ("table", "json", "ndjson"))
    ready = plain(value)
    if output != "table":
        sys.stdout.write(json.dumps(ready, indent=1 if output == "json" else None) + "\n")
        return
    width = max(len(k) for k in ready)
    for name, item in ready.items():
        if isinstance(item, list) and item:
            sys.stdout.write(f"{name}:\n")
            for entry in item:
                text = entry if isinstance(entry, str) else json.dumps(entry)
                sys.stdout.write(f"  - {text}\n")
        else:
            text = item if isinstance(item, str) else json.dumps(item)
            sys.stdout.write(f"{name.ljust(width)}  {text}\n")


@contextmanager
def errors() -> Iterator[None]:
    """Turn errors into one line on stderr and the class's exit code."""
    from replica.protocol.errors import ReprisError

    try:
        yield
    except ReprisError as error:
        say(f"error [{error.code}]: {error}")
        raise SystemExit(error.exit_code) from None
    except (OSError, json.JSONDecodeError) as error:
        say(f"error: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(130) from None


def progress(what: str) -> Callable[[str], None]:
    """Return a function that reports a step of long work."""

    def step(text: str) -> None:
        say(f"{what}: {text}")

    return step
