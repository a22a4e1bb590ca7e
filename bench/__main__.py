"""`make bench [ONLY=name] [JSON=file]`: figures beside a peer or a bound, in the same run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import consensus, simulation, soak, table

BENCHES = {"simulation": simulation.run, "consensus": consensus.run, "soak": soak.run}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    only: Annotated[str, typer.Option(help=f"One of: {', '.join(BENCHES)}.")] = "",
    json: Annotated[Path | None, typer.Option(help="Also write the rows to this file.")] = None,
) -> None:
    """Measure and print a table. Exit status 1: a target was missed."""
    if only and only not in BENCHES:
        raise typer.BadParameter(f"no such benchmark: {only}; there are {', '.join(BENCHES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that swarms are taken down
    rows: list[table.Row] = []
    for name, bench in BENCHES.items():
        if only in ("", name):
            rows += bench(lambda text: print(text, file=sys.stderr))
    print(table.render(rows))
    if json is not None:
        table.write(rows, json)
    raise typer.Exit(1 if any(r.met is False for r in rows) else 0)


if __name__ == "__main__":
    app()
