"""`make simulate` and `make mutants`."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from cli.lab.drills import SIMULATED
from simulation import campaign, shrink
from simulation.plan import ADVERSARIAL_KINDS, KINDS, SYSTEM_KINDS

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Workers = Annotated[int, typer.Option(help="Processes; default: one a core.", min=1)]
CORES = os.cpu_count() or 1


@app.callback()
def main() -> None:
    """Run the system under virtual time, with faults."""
    gc.freeze()


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 100,
    first: Annotated[int, typer.Option(help="The first seed; none is special.", min=0)] = 0,
    scenario: Annotated[
        str,
        typer.Option(
            help="consensus, adversarial, system (a drill a seed), a drill's name, or all (drills)."
        ),
    ] = campaign.CONSENSUS,
    workers: Workers = CORES,
) -> None:
    """Run seeds FIRST to FIRST + SEEDS - 1 and report what they met. Exit status 1: a violation."""
    drills = tuple(SIMULATED)
    known = {name: (name,) for name in campaign.ALONE} | {"all": drills}
    known |= {name: (name,) for name in (campaign.SYSTEM, *drills)}
    if scenario not in known:
        raise typer.BadParameter(f"no such scenario: {scenario}; there are {', '.join(known)}")
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = seeds * len(known[scenario])
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(scenario, total=total)
        watch = Watch(lambda text: console.print(text, markup=False, soft_wrap=True), total)

        def look(so_far: campaign.Result) -> None:
            progress.update(task, completed=so_far.seeds)
            watch.look(so_far, in_tenths=not console.is_terminal)

        result = campaign.run(seeds, first, workers, look, known[scenario])
    for line in report(scenario, result, first, seeds):
        sys.stdout.write(line + "\n")
    raise typer.Exit(0 if result.passed else 1)


@app.command("mutants")
def mutants_(workers: Workers = CORES) -> None:
    """Run every deliberately broken variant, and what catches it without it.

    Exit status 1: one of them survived.
    """
    from simulation import mutants

    width = max(len(m.name) for m in mutants.MUTANTS)
    survived = 0
    for verdict in mutants.run(workers):
        survived += not verdict.killed
        seen = f"seed {verdict.seed}: {verdict.reason}"
        what = seen if verdict.killed else f"SURVIVED: {verdict.reason}"
        line = (
            f"{verdict.mutant:<{width}}  {verdict.campaign:<11}  {verdict.seconds:5.1f} s  {what}"
        )
        sys.stdout.write(line[:150] + "\n")
        sys.stdout.flush()
    total = len(mutants.MUTANTS)
    sys.stdout.write(f"{total - survived} of {total} mutants killed\n")
    raise typer.Exit(1 if survived else 0)


@app.command("shrink")
def shrink_(
    seed: Annotated[int, typer.Option(help="A seed that fails.", min=0)],
    out: Annotated[Path, typer.Option(help="Where the scenario is written.")],
    about: Annotated[str, typer.Option(help="What went wrong, for the file.")] = "",
    scenario: Annotated[
        str,
        typer.Option(
            help="consensus, adversarial, system, or a drill's name: as the campaign had it."
        ),
    ] = campaign.CONSENSUS,
) -> None:
    """Reduce a failing seed to the faults that matter, and write them down as a scenario."""
    drill = "" if scenario in campaign.ALONE else scenario
    if drill:
        from simulation.system import drills, storms

        drill = drills.drawn(seed) if drill == campaign.SYSTEM else drill
        plan = storms.storm(drill, seed)
    else:
        plan = campaign.plan_of(scenario, seed)
    reason = shrink.why(seed, plan, drill)
    if reason is None:
        sys.stderr.write(f"seed {seed} does not fail\n")
        raise typer.Exit(1)
    sys.stderr.write(f"seed {seed}: {reason}\n")
    small = shrink.shrink(plan, lambda p: shrink.why(seed, p, drill), _tell)
    shrink.store(shrink.Scenario(about or reason, seed, small, drill), out)
    sys.stdout.write(f"{out}\n")


class Watch:
    """Tells what a long campaign has found while it runs: it may be stopped before its end."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        """`total`: how many seeds it has."""
        self.say, self.total = say, total
        self.told = self.tenths = 0

    def look(self, so_far: campaign.Result, *, in_tenths: bool) -> None:
        """Tell of new violations; and, `in_tenths`, how far it is."""
        for failure in so_far.failures[self.told :]:
            self.say(f"{failure.scenario}, seed {failure.seed}: {failure.reason}")
        self.told = len(so_far.failures)
        tenths = 10 * so_far.seeds // self.total
        if in_tenths and self.tenths < tenths < 10:
            self.tenths = tenths
            self.say(
                f"{so_far.seeds} of {self.total} seeds, {so_far.seconds:.0f} s, "
                f"{self.told} violations"
            )


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")


def groups(counts: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Tell apart what plans injected, what came of it or went on anyway, and which drills ran."""
    faults = {*KINDS, *SYSTEM_KINDS, *ADVERSARIAL_KINDS}
    named = sorted(counts)
    for title, kinds in (
        ("faults injected", [k for k in named if k in faults]),
        ("situations met", [k for k in named if k not in faults and k not in SIMULATED]),
        ("drills run", [k for k in named if k in SIMULATED]),
    ):
        if kinds:
            yield title, kinds


def report(scenario: str, result: campaign.Result, first: int, seeds: int) -> list[str]:
    """Return what a person wants to know of a campaign, line by line."""
    seconds = result.seconds or 1e-9
    lines = [
        f"{scenario}, seeds {first} to {first + seeds - 1}: "
        f"{result.seeds / seconds:.1f} seeds/s, {result.rounds / seconds:.0f} rounds/s, "
        f"{result.rounds} rounds, {len(result.failures)} violations",
    ]
    width = max((len(k) for k in result.counts), default=0)
    for title, kinds in groups(result.counts):
        lines += [f"  {title}", *[f"    {k:<{width}}  {result.counts[k]}" for k in kinds]]
    lines += [f"  never met: {what}" for what in result.never_met]
    lines += [
        f"  {f.scenario}, seed {f.seed}: {f.reason}\n"
        f"    again: make simulate SEEDS=1 FIRST={f.seed} SCENARIO={f.scenario}"
        for f in result.failures
    ]
    return lines


if __name__ == "__main__":
    app()
