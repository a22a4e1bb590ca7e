"""`make drill-disks`: real file systems, real processes, and what disks do.

Prints a table, or JSON. Exit status: 1 when a case failed, 2 when nothing could be run here.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cli.lab.disks import cuts, faults, full, rot
from cli.lab.disks.cases import Case, Work
from cli.lab.disks.tools import why_no_images, why_no_injection
from cli.output import say, table

COLUMNS = ("part", "name", "ok", "healthy_after_s", "entries", "contradictions", "took_s", "note")


STOPS = (signal.SIGTERM, signal.SIGINT)


def _stop(number: int, _: object) -> None:
    """End, once: what was begun is put away undisturbed."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cli.lab.disks", description=__doc__)
    parser.add_argument("--cuts", type=int, default=20, help="power cuts of a whole swarm")
    parser.add_argument("--fresh", type=int, help="so many right after `up`; default: a quarter")
    parser.add_argument("--faults", type=int, default=20, help="system calls that fail")
    parser.add_argument("--first", type=int, default=0, help="the first of these calls")
    parser.add_argument("--rot", type=int, default=3, help="random bytes over databases")
    parser.add_argument("--full", type=int, default=1, help="four of four disks full")
    parser.add_argument("--patience", type=float, default=1.0, help="bounds in time, times this")
    parser.add_argument("--seed", type=int, default=0, help="draws when power is cut")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    for number in STOPS:
        signal.signal(number, _stop)
    asked = _arguments()
    missing: list[str] = []
    cases: list[Case] = []
    try:
        with tempfile.TemporaryDirectory(prefix="reprise-disks-") as work:
            for case in _cases(asked, Work(Path(work), asked.patience), missing):
                cases.append(case)  # one by one: what is done is shown also when the rest is not
    finally:
        _show(cases, missing, asked.json)
    if not cases and missing:
        return 2
    return 0 if all(c.ok for c in cases) else 1


def _show(cases: list[Case], missing: list[str], as_json: bool) -> None:
    rows = [c.to_plain() for c in cases]
    if as_json:
        sys.stdout.write(json.dumps({"missing": missing, "cases": rows}, indent=1) + "\n")
    else:
        table(rows, COLUMNS)
    good = sum(c.ok for c in cases)
    say(f"{good} of {len(cases)} cases are good" + "".join(f"; skipped: {m}" for m in missing))


def _cases(asked: argparse.Namespace, work: Work, missing: list[str]) -> Iterator[Case]:
    draw = random.Random(asked.seed)
    no_images = why_no_images() if asked.cuts or asked.full else ""
    fresh = asked.cuts // 4 if asked.fresh is None else min(asked.fresh, asked.cuts)
    if asked.cuts and no_images:
        missing.append(f"power cuts ({no_images}): torn writes and kills take their place")
        fresh = 0
    yield from cuts.under_load(work, asked.cuts - fresh, draw, not no_images)
    yield from cuts.when_fresh(work, fresh)
    if asked.faults and (why := why_no_injection()):
        missing.append(f"failing system calls ({why})")
    else:
        yield from faults.injected(work, asked.first, asked.faults)
    yield from rot.rotten(work, asked.rot)
    if asked.full and no_images:
        missing.append(f"full disks ({no_images})")
    else:
        yield from full.full(work, asked.full)


if __name__ == "__main__":
    sys.exit(main())
